"""Level 9: many steps, many tensors, several threads: nothing leaks and nothing is mixed up."""

from __future__ import annotations

import gc
import threading

from ds_core.accelerator.contract import Capability
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS"]

STRESS = Group("stress", level=9)
GROUPS = (STRESS,)

COUNTED = Needs(capabilities=(Capability.ALLOCATOR_STATS,))
STEPS = 50
HOST_SLACK_BYTES = 24 << 20
"""What the host's figure, that of a whole process, may drift by."""


def _allocated(kit: Kit) -> int:
    gc.collect()
    kit.accelerator.synchronize()
    kit.accelerator.empty_cache()
    return int(kit.accelerator.memory().allocated_bytes or 0)


def _slack(kit: Kit) -> int:
    return HOST_SLACK_BYTES if kit.accelerator.device_type == "cpu" else 0


@STRESS.case("memory that tensors took is given back, over and over", COUNTED)
def tensors_do_not_leak(kit: Kit) -> None:
    for _ in range(2):
        torch.ones(1 << 22, device=kit.device).mul_(2)
    before = _allocated(kit)
    for _ in range(STEPS):
        x = torch.ones(1 << 22, device=kit.device)
        y = (x * 2).relu()
        del x, y
    after = _allocated(kit)
    kit.expect(after - before <= _slack(kit), f"{before} bytes, as before", after)


@STRESS.case("training holds no more memory after 50 steps than after 5", COUNTED)
def training_does_not_leak(kit: Kit) -> None:
    from ds_core.testing.conformance import models

    engine = models.engine_for(kit.bench.target.id, "gpt", models.config(models.ROWS, gradient_clipping=1.0))
    (data,) = models.batches("gpt", 1, models.ROWS)
    held = []
    losses = []
    for step in range(STEPS):
        losses.append(models.step(engine, *data))
        if step in (4, STEPS - 1):
            held.append(_allocated(kit))
    engine.destroy()
    kit.expect(held[1] - held[0] <= _slack(kit), f"{held[0]} bytes, as after 5 steps", held[1])
    kit.expect(losses[-1] < 0.5 * losses[0], f"a loss of less than half of {losses[0]:.3f}", f"{losses[-1]:.3f}")


@STRESS.case("an engine that is gone leaves no memory behind", COUNTED)
def engines_do_not_leak(kit: Kit) -> None:
    from ds_core.testing.conformance import jobs, models

    settings = models.config(models.ROWS)
    jobs.train(kit.bench.target.id, "mlp", settings, steps=1)
    before = _allocated(kit)
    for _ in range(4):
        jobs.train(kit.bench.target.id, "mlp", settings, steps=1)
    after = _allocated(kit)
    kit.expect(after - before <= _slack(kit), f"{before} bytes, as before", after)


@STRESS.case("thousands of small tensors live side by side")
def many_small_tensors(kit: Kit) -> None:
    made = [torch.full((1 + index % 5,), float(index), device=kit.device) for index in range(2000)]
    del made[::3]
    total = torch.cat(made).sum().item()
    wanted = sum(float(index) * (1 + index % 5) for index in range(2000) if index % 3)
    kit.expect(abs(total - wanted) <= 1e-5 * wanted, f"{wanted}", total)


@STRESS.case("threads compute on the device at the same time, each with its own results")
def threads(kit: Kit) -> None:
    found: dict[int, torch.Tensor] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            x = torch.full((64, 64), float(number + 1), device=kit.device, requires_grad=True)
            for _ in range(20):
                y = (x @ x).mean()
                (grad,) = torch.autograd.grad(y, x)
            found[number] = grad.cpu()
        except BaseException as error:  # noqa: BLE001 - told below, from the thread of the case
            errors.append(error)

    started = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    kit.expect(not errors, "no error in any thread", [f"{type(e).__name__}: {e}" for e in errors])
    for number, grad in found.items():
        kit.expect_close(grad, torch.full((64, 64), 2 * (number + 1) / 64), f"the gradient of thread {number}", 1e-4)


@STRESS.case("a backward pass from another thread than the forward pass gives the gradients")
def backward_in_another_thread(kit: Kit) -> None:
    x = torch.ones(100, device=kit.device, requires_grad=True)
    loss = (x * 3).sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    kit.expect(x.grad is not None, "a gradient", x.grad)
    assert x.grad is not None
    kit.expect_same(x.grad, torch.full((100,), 3.0), "the gradient")


@STRESS.case("work of many streams is done in the order of events", Needs(capabilities=(Capability.STREAMS,)))
def many_streams(kit: Kit) -> None:
    streams = [kit.accelerator.stream() for _ in range(8)]
    results = []
    kit.accelerator.synchronize()
    for number, stream in enumerate(streams):
        with kit.accelerator.use_stream(stream):
            results.append(torch.full((1000,), float(number), device=kit.device) * 2)
    kit.accelerator.synchronize()
    for number, result in enumerate(results):
        kit.expect_same(result, torch.full((1000,), 2.0 * number), f"the result of stream {number}")
