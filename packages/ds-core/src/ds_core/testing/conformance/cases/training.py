"""Level 7: the engine against plain torch on the device, and against the host; data parallel and ZeRO on two ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_core.testing.conformance.case import NOTHING, Group, Needs
from ds_core.testing.conformance.kit import Kit
from ds_core.testing.conformance.lazy import torch

if TYPE_CHECKING:
    from ds_core.testing.conformance.models import Trained

__all__ = ["GROUPS", "compare"]

TRAINING = Group("training", level=7)
OPTIMIZERS = Group("optimizers", level=7)
ZERO = Group("zero", level=7)
GROUPS = (TRAINING, OPTIMIZERS, ZERO)

SAME_DEVICE = 2e-4
TO_HOST = 2e-3
"""Relative differences of losses and parameters after a few steps in float32, whose sums are in another order."""

LOW = {"bfloat16": 0.08, "float16": 0.02}
"""Of losses against a float32 run of the host."""

ENGINE_MODELS = ("mlp", "reused", "tied", "frozen", "unused", "odd", "gpt")


def compare(kit: Kit, found: Trained, wanted: Trained, what: str, bound: float) -> None:
    """Fails unless losses and last parameters agree within `bound`."""
    kit.expect_close(torch.tensor(found.losses), torch.tensor(wanted.losses), f"{what}: losses", bound)
    kit.expect(found.params.keys() == wanted.params.keys(), f"{sorted(wanted.params)}", sorted(found.params))
    for key, theirs in wanted.params.items():
        kit.expect_close(found.params[key], theirs, f"{what}: parameter {key}", bound)


def _host() -> Any:
    return torch.device("cpu")


def _plain(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance import models

    data = models.batches(name, 4, models.ROWS)
    ours, theirs = models.plain(name, kit.device, data), models.plain(name, _host(), data)
    compare(kit, ours, theirs, f"{name} by plain torch, against the host", TO_HOST)
    kit.expect(ours.losses[-1] != ours.losses[0], "losses that change", ours.losses)


def _engine(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance import jobs, models

    data = models.batches(name, jobs.STEPS, models.ROWS)
    found = jobs.train(kit.bench.target.id, name, models.config(models.ROWS))
    compare(kit, found, models.plain(name, kit.device, data), f"{name} by the engine, against plain torch", SAME_DEVICE)
    compare(kit, found, models.plain(name, _host(), data), f"{name} by the engine, against the host", TO_HOST)


TRAINING.each(
    "plain torch trains on the device as on the host, within the rounding of float32",
    [f"plain_torch.{name}" for name in ("mlp", "gpt")],
    lambda kit, name: _plain(kit, name.rpartition(".")[2]),
    lambda name: NOTHING,
)
TRAINING.each(
    "ds_core.initialize(accelerator=...) trains to the numbers of plain torch on the device, for models of every shape",
    [f"engine.{name}" for name in ENGINE_MODELS],
    lambda kit, name: _engine(kit, name.rpartition(".")[2]),
    lambda name: NOTHING,
)


@TRAINING.case("gradients of accumulated micro-batches are those of the whole batch")
def accumulation(kit: Kit) -> None:
    from ds_core.testing.conformance import jobs, models

    settings = models.config(models.ROWS, gradient_accumulation_steps=3)
    found = jobs.train(kit.bench.target.id, "gpt", settings)
    data = models.batches("gpt", jobs.STEPS, 3 * models.ROWS)
    compare(kit, found, models.plain("gpt", kit.device, data, pieces=3), "3 micro-batches", SAME_DEVICE)


@TRAINING.case("gradients are clipped at gradient_clipping, and the norm before it is told")
def clipping(kit: Kit) -> None:
    from ds_core.testing.conformance import jobs, models

    found = jobs.train(kit.bench.target.id, "gpt", models.config(models.ROWS, gradient_clipping=0.1))
    wanted = models.plain("gpt", kit.device, models.batches("gpt", jobs.STEPS, models.ROWS), clip=0.1)
    compare(kit, found, wanted, "clipped at 0.1", SAME_DEVICE)
    kit.expect_close(torch.tensor(found.norms), torch.tensor(wanted.norms), "gradient norms", SAME_DEVICE)


def _precision(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance import jobs, models

    kind = name.rpartition(".")[2]
    section: dict[str, dict[str, Any]] = {
        "bfloat16": {"bf16": {"enabled": True}},
        "float16": {"fp16": {"enabled": True, "loss_scale": 128.0}},
    }
    found = jobs.train(kit.bench.target.id, "gpt", models.config(models.ROWS, **section[kind]), steps=6)
    wanted = models.plain("gpt", _host(), models.batches("gpt", 6, models.ROWS))
    kit.expect_close(torch.tensor(found.losses), torch.tensor(wanted.losses), f"losses in {kind}", LOW[kind])


TRAINING.each(
    "training in a 16-bit dtype with float32 masters follows the float32 run of the host",
    [f"precision.{kind}" for kind in LOW],
    _precision,
    lambda name: Needs(dtypes=(name.rpartition(".")[2],)),
)


@TRAINING.case("a step whose gradients overflow is skipped, and the loss scale goes down", Needs(dtypes=("float16",)))
def overflow_is_skipped(kit: Kit) -> None:
    from ds_core.testing.conformance import models

    scaling = {"enabled": True, "initial_scale_power": 30, "hysteresis": 1}
    engine = models.engine_for(kit.bench.target.id, "mlp", models.config(models.ROWS, fp16=scaling))
    before = models.parameters_of(engine)
    x, y = models.batches("mlp", 1, models.ROWS)[0]
    models.step(engine, x, y * 100)
    after = models.parameters_of(engine)
    engine.destroy()
    kit.expect(not engine.was_step_applied(), "a step that is skipped", "a step that was taken")
    for key, wanted in before.items():
        kit.expect_same(after[key], wanted, f"parameter {key} after a skipped step")


def _optimizer(kit: Kit, name: str) -> None:
    from ds_core.accelerator import select
    from ds_core.testing.conformance import jobs, models

    parameters = {"Lamb": {"lr": 1e-2}, "Lion": {"lr": 1e-3}, "SGD": {"lr": 1e-1, "momentum": 0.9}}
    chosen = parameters.get(name, {"lr": 1e-2, "eps": 1e-4})
    settings = models.config(models.ROWS, optimizer={"type": name, "params": chosen})
    found = jobs.train(kit.bench.target.id, "mlp", settings)
    wanted = jobs.train(select("cpu").id, "mlp", settings)
    compare(kit, found, wanted, f"{name}, against the host", TO_HOST)


OPTIMIZERS.each(
    "optimizers by name give the numbers of the host, whether the device has kernels for them or not",
    ["Adam", "AdamW", "Adagrad", "Lamb", "Lion", "SGD", "Muon"],
    _optimizer,
    lambda name: NOTHING,
)


def _two_ranks(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance import jobs, models
    from ds_core.testing.conformance.models import Trained
    from ds_core.testing.conformance.together import on_ranks

    stage, _, kind = name.partition(".")
    more: dict[str, Any] = {"gradient_accumulation_steps": 2, "gradient_clipping": 0.5}
    if stage != "data_parallel":
        more["zero_optimization"] = {"stage": int(stage[-1]), "param_persistence_threshold": 10}
    if kind == "bfloat16":
        more["bf16"] = {"enabled": True}
    results = on_ranks(kit, jobs.train_rank, 2, "gpt", models.config(models.ROWS, **more))
    data = models.batches("gpt", jobs.STEPS, 4 * models.ROWS)
    wanted = models.plain("gpt", _host(), data, pieces=4, clip=0.5)
    first = Trained(**results[0])
    for rank, result in enumerate(results):
        for key, theirs in first.params.items():
            kit.expect_same(result["params"][key], theirs, f"parameter {key} on rank {rank}, as on rank 0")
    if kind == "bfloat16":
        kit.expect_close(torch.tensor(first.losses), torch.tensor(wanted.losses), "losses in bfloat16", LOW[kind])
    else:
        compare(kit, first, wanted, f"2 ranks, {stage}, against one process on the host", TO_HOST)


def _zero_needs(name: str) -> Needs:
    kind = name.partition(".")[2]
    wheels = () if name.startswith("data_parallel") else ("ds-zero",)
    dtypes = ("bfloat16",) if kind == "bfloat16" else ()
    return Needs(dtypes=dtypes, wheels=wheels)


ZERO.each(
    "two ranks train to the numbers of one process with all the data, whatever is sharded",
    [
        f"{stage}.{kind}"
        for stage in ("data_parallel", "stage1", "stage2", "stage3")
        for kind in ("float32", "bfloat16")
    ],
    _two_ranks,
    _zero_needs,
)
