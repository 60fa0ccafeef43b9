"""Level 8: states that leave the device and come back: offload to the host, checkpoints, a move to another device."""

from __future__ import annotations

import gc
from typing import Any

from ds_core.accelerator.contract import Capability
from ds_core.testing.conformance.case import NOTHING, Group, Needs
from ds_core.testing.conformance.cases.training import SAME_DEVICE, TO_HOST, compare
from ds_core.testing.conformance.kit import Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS"]

CHECKPOINT = Group("checkpoint", level=8)
OFFLOAD = Group("offload", level=8)
GROUPS = (CHECKPOINT, OFFLOAD)

ZERO = Needs(wheels=("ds-zero",))
ALIASING = Needs(capabilities=(Capability.STORAGE_ALIASING,))


def _same_run(kit: Kit, dropout: bool) -> None:
    from ds_core.testing.conformance import jobs

    me = kit.bench.target.id
    kit.accelerator.manual_seed(1)
    straight = jobs.continued([me], kit.folder / "none", 4, dropout=dropout)
    kit.accelerator.manual_seed(2)
    stopped = jobs.continued([me, me], kit.folder / "run", 2, dropout=dropout)
    kit.expect(stopped.losses == straight.losses, f"the losses {straight.losses}", stopped.losses)
    for key, wanted in straight.params.items():
        kit.expect_same(stopped.params[key], wanted, f"parameter {key} of a run that was stopped")


@CHECKPOINT.case("a run that was stopped and loaded ends bit-equal to one that was not")
def run_goes_on(kit: Kit) -> None:
    _same_run(kit, dropout=False)


@CHECKPOINT.case("so does one with dropout: the checkpoint holds the state of the device's generator")
def run_with_dropout_goes_on(kit: Kit) -> None:
    _same_run(kit, dropout=True)


def _moved(kit: Kit, name: str) -> None:
    from ds_core.accelerator import select
    from ds_core.testing.conformance import jobs

    if kit.accelerator.device_type == "cpu":
        kit.lacks("own", "a device apart from the host", "the device is the host")
    me, host = kit.bench.target.id, select("cpu").id
    order = [me, host] if name == "device_to_host" else [host, me]
    straight = jobs.continued([me], kit.folder / "none", 4)
    moved = jobs.continued(order, kit.folder / "run", 2)
    compare(kit, moved, straight, f"{name}, against a run on the device alone", TO_HOST)


CHECKPOINT.each(
    "a checkpoint of one device kind loads on another",
    ["device_to_host", "host_to_device"],
    _moved,
    lambda name: NOTHING,
)


@CHECKPOINT.case("module_state_dict() and save_16bit_model() give the weights of the device")
def weights_are_written(kit: Kit) -> None:
    from safetensors.torch import load_file

    from ds_core.testing.conformance import models

    engine = models.engine_for(kit.bench.target.id, "mlp", models.config(models.ROWS))
    wanted = models.parameters_of(engine)
    engine.save_16bit_model(kit.folder / "out", "model.safetensors")
    found = load_file(kit.folder / "out" / "model.safetensors")
    engine.destroy()
    kit.expect(found.keys() == wanted.keys(), f"{sorted(wanted)}", sorted(found))
    for key, theirs in wanted.items():
        kit.expect_same(found[key].float(), theirs.to(found[key].dtype).float(), f"weight {key}")


def _allocated(kit: Kit) -> int:
    gc.collect()
    kit.accelerator.synchronize()
    kit.accelerator.empty_cache()
    return int(kit.accelerator.memory().allocated_bytes or 0)


@OFFLOAD.case("engine.offload_states() frees the device's memory, and reload_states() brings back every bit", ALIASING)
def states_leave_and_come_back(kit: Kit) -> None:
    import ds_core
    from ds_core.testing.conformance import models

    with kit.device:
        big = torch.nn.Sequential(torch.nn.Linear(7, 60_000), torch.nn.Linear(60_000, 7))
    engine: Any = ds_core.initialize(model=big, config=models.config(models.ROWS), accelerator=kit.bench.target.id)[0]
    x, y = models.batches("mlp", 1, models.ROWS)[0]
    models.step(engine, x, y)
    before, held = models.parameters_of(engine), _allocated(kit)
    engine.offload_states()
    left = _allocated(kit)
    counted = kit.accelerator.has(Capability.ALLOCATOR_STATS) and kit.accelerator.device_type != "cpu"
    numel = sum(parameter.numel() for parameter in before.values())
    if counted:
        kit.expect(held - left > 0.9 * 12 * numel, f"about {12 * numel} bytes less on the device", held - left)
    engine.reload_states()
    after = models.parameters_of(engine)
    for key, wanted in before.items():
        kit.expect_same(after[key], wanted, f"parameter {key} after offload and reload")
    models.step(engine, x, y)
    engine.destroy()


def _offloaded(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance import jobs, models

    what, _, stage = name.partition(".")
    section: dict[str, Any] = {"stage": int(stage[-1]), "param_persistence_threshold": 10}
    settings = models.config(models.ROWS, gradient_accumulation_steps=2, zero_optimization=dict(section))
    wanted = jobs.train(kit.bench.target.id, "gpt", settings)
    place: dict[str, Any] = {"device": "cpu"}
    if what == "files":
        place = {"device": "nvme", "nvme_path": str(kit.folder)}
    section["offload_optimizer"] = place
    if what == "parameters":
        section["offload_param"] = place
    found = jobs.train(kit.bench.target.id, "gpt", settings | {"zero_optimization": section})
    compare(kit, found, wanted, f"{name}, against the same without offload", SAME_DEVICE)


OFFLOAD.each(
    "ZeRO with states on the host or in files gives the numbers of ZeRO with states on the device",
    [*(f"optimizer.stage{stage}" for stage in (1, 2, 3)), "parameters.stage3", "files.stage3"],
    _offloaded,
    lambda name: ZERO,
)
