"""Checkpoints between precisions, optimizers and places of offload; and runs that go on with another number of ranks.

What survives a change of precision is the finest values there are: the master weights, or the weights where there are
none. Working weights are those rounded once; moments are kept to the bit, but for those packed into bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import resharding
import torch
import torch.distributed as dist

from ds_core import comm
from ds_core.testing import run_ranks
from ds_core.utils import safe_get_full_fp32_param

OFF: dict[str, Any] = {"enabled": False}
KINDS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp32": {"bf16": OFF},
    "fp16": {"bf16": OFF, "fp16": {"enabled": True, "initial_scale_power": 9}},
    "optimizer on host": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
    "optimizer in files": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}, "sub_group_size": 150}},
    "parameters in files": {"zero_optimization": {"offload_param": {"device": "nvme", "max_in_cpu": 0}}},
    "torch fused": {"adam": {"torch_adam": True}},
    "torch foreach": {"adam": {"torch_adam": True, "foreach": True}},
    "packed": {"adam": {"state_bits": 8, "state_block": 256}},
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MOMENTS = ("optimizer/exp_avg/", "optimizer/exp_avg_sq/")


def make(kind: str, stage: int, files: str) -> Any:
    changes = {**KINDS[kind]}
    zero = dict(changes.get("zero_optimization", {}))
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device") == "nvme":
            zero[key] = {**zero[key], "nvme_path": files}
    return resharding.build(stage, **{**changes, "zero_optimization": zero})


def train(engine: Any, steps: int) -> None:
    resharding.train(engine, steps)


def save_all(folder: str, files: str) -> None:
    """Every kind trains 3 steps at a stage where it works, and saves."""
    for kind in KINDS:
        engine = make(kind, 3 if kind == "parameters in files" else 2, files)
        train(engine, 3)
        engine.save_checkpoint(folder, tag=kind.replace(" ", "-"))
        engine.destroy()


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[str, str]:
    folder, files = str(tmp_path_factory.mktemp("kinds")), str(tmp_path_factory.mktemp("files"))
    run_ranks(save_all, 2, folder, files)
    return folder, files


def converted(found: dict[str, torch.Tensor], trained: Collection[str], kind: str) -> dict[str, torch.Tensor]:
    """What an engine of `kind` has to hold after loading `found`."""
    dtype = DTYPES.get(kind, torch.bfloat16)
    expected: dict[str, torch.Tensor] = {}
    for key, value in found.items():
        family, _, name = key.partition("/")
        if key == "model/seen":  # a buffer of the model's own stays in the dtype it was made in
            expected[key] = value
        elif family == "model":
            fine = found.get(f"optimizer/master/{name}", value)
            expected[key] = value if value.dtype == dtype else fine.to(dtype) if value.is_floating_point() else value
            if dtype != torch.float32 and name in trained:
                expected[f"optimizer/master/{name}"] = fine.float()
        elif not key.startswith("optimizer/master/"):
            expected[key] = value
    return expected


def take_all(target: str, stage: int, folder: str, files: str) -> list[str]:
    wrong = []
    engine = make(target, stage, files)
    for kind in KINDS:
        tag = kind.replace(" ", "-")
        train(engine, 1)
        scale = engine.optimizer.loss_scale
        engine.load_checkpoint(folder, tag=tag)
        told = resharding.values(folder, tag)
        expected = converted(resharding.tensors(folder, tag), told["optimizer_scalars"], target)
        told.pop("optimizer")
        saved_scale = told.pop("loss_scale")
        found = resharding.differences(engine, expected, told)
        if target == "packed":
            found = [each for each in found if not each.startswith(MOMENTS)]
        wrong += [f"{kind} to {target}: {each}" for each in found]
        if target == "fp16" and engine.optimizer.loss_scale != (saved_scale["scale"] if saved_scale else scale):
            wrong.append(f"{kind} to {target}: loss scale {engine.optimizer.loss_scale}")
        train(engine, 1)
    engine.destroy()
    return wrong


@pytest.mark.parametrize(
    ("kind", "stage", "ranks"),
    [
        ("bf16", 3, 3),
        ("fp32", 1, 3),
        ("fp16", 3, 3),
        ("optimizer on host", 2, 3),
        ("optimizer in files", 3, 3),
        ("parameters in files", 3, 3),
        ("torch fused", 0, 1),
        ("torch foreach", 3, 3),
        ("packed", 3, 3),
    ],
)
def test_every_kind_takes_what_any_kind_saved(places, kind, stage, ranks):
    for wrong in run_ranks(take_all, ranks, kind, stage, *places):
        assert wrong == []


def packed_again(folder: str) -> list[str]:
    engine = resharding.build(2, **KINDS["packed"])
    engine.load_checkpoint(folder, tag="packed")
    return resharding.differences(engine, resharding.tensors(folder, "packed"), resharding.values(folder, "packed"))


def test_packed_moments_are_exact_where_shards_stay_as_they_were(places):
    for wrong in run_ranks(packed_again, 2, places[0]):
        assert wrong == []


# --- weights alone ----------------------------------------------------------------------------------------------------


def doubled(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Loads all weights, one of them changed."""
    dst.load_state_dict({**src, "up.weight": src["up.weight"] * 2}, strict=False)


def masters_after(folder: str, kind: str, more: dict[str, Any]) -> list[str]:
    """Masters that are not the finest the checkpoint has, or, where the function changed it, the working weight."""
    engine = resharding.build(3)
    engine.load_checkpoint(folder, tag=kind, **more)
    found = resharding.tensors(folder, kind)
    wrong = []
    for name, parameter in engine.module.named_parameters():
        master = safe_get_full_fp32_param(parameter)
        weight = found[f"model/{name}"]
        fine = found.get(f"optimizer/master/{name}", weight)
        if name == "up.weight" and "custom_load_fn" in more:
            fine = (weight * 2).bfloat16()
        if parameter.requires_grad and not torch.equal(master, fine.float()):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("more", [{"load_module_only": True}, {"custom_load_fn": doubled}], ids=["alone", "function"])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_masters_of_weights_that_are_loaded_alone_are_as_fine_as_the_checkpoint(places, kind, more):
    for wrong in run_ranks(masters_after, 2, places[0], kind, more):
        assert wrong == []


# --- going on ---------------------------------------------------------------------------------------------------------


def steady(stage: int, **changes: Any) -> Any:
    ranks = dist.get_world_size()
    sizes = {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 12 // ranks}
    return resharding.build(stage, steady=True, **{"bf16": OFF, **sizes, **changes})


def straight(folder: str, stage: int, changes: dict[str, Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Trains 7 steps and saves after the third, in the middle of the first epoch."""
    engine = steady(stage, **changes)
    losses = resharding.train(engine, 3)
    engine.save_checkpoint(folder, tag="three")
    losses = [*losses, *resharding.train(engine, 4)]
    engine.save_checkpoint(folder, tag=f"all{dist.get_world_size()}")
    return losses[3:], engine.get_lr()


def resumed(folder: str, stage: int, changes: dict[str, Any], tag: str) -> tuple[list[float], list[float]]:
    engine = steady(stage, **changes)
    engine.load_checkpoint(folder, tag="three")
    losses = resharding.train(engine, 4)
    engine.save_checkpoint(folder, tag=tag)
    return losses, engine.get_lr()


def mean(rows: list[tuple[list[float], Any]]) -> torch.Tensor:
    """Losses of every step, over ranks."""
    return torch.tensor([losses for losses, _ in rows], dtype=torch.float64).mean(0)


ACCUMULATED = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("changes", [{}, {"bf16": {"enabled": True}}, {"adam": {"torch_adam": True}}, ACCUMULATED])
def test_a_run_goes_on_to_the_bit_on_as_many_ranks(tmp_path, changes):
    folder = str(tmp_path)
    unbroken = run_ranks(straight, 3, folder, 3, changes)
    assert run_ranks(resumed, 3, folder, 3, changes, "again") == unbroken
    left, right = (resharding.tensors(folder, tag) for tag in ("all3", "again"))
    assert [key for key, value in left.items() if not resharding.same(value, right[key])] == []


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 3), (4, 2)])
def test_a_run_goes_on_within_rounding_on_other_ranks(tmp_path, ranks, stage):
    folder = str(tmp_path)
    unbroken = run_ranks(straight, 3, folder, 3, {})
    others = run_ranks(resumed, ranks, folder, stage, {}, "other")
    assert others[0][1] == unbroken[0][1]
    torch.testing.assert_close(mean(others), mean(unbroken), rtol=1e-6, atol=0)
    left, right = (resharding.tensors(folder, tag) for tag in ("all3", "other"))
    for key, value in left.items():
        if not key.startswith("random/"):
            torch.testing.assert_close(
                right[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )


# --- data -------------------------------------------------------------------------------------------------------------


def samples(folder: str, steps: int, load: bool) -> list[int]:
    """Samples that all ranks saw in some steps, all of one epoch."""
    seen: list[int] = []
    engine = resharding.build(1)
    loader = engine.training_dataloader
    loader.dataset = torch.utils.data.TensorDataset(torch.arange(resharding.ROWS))
    if load:
        engine.load_checkpoint(folder, tag="mid")
    for _, (batch,) in zip(range(steps), engine._batches(None), strict=False):
        seen += batch.tolist()
        engine.backward(engine(batch % 11))
        engine.step()
    if not load:
        engine.save_checkpoint(folder, tag="mid")
    return sorted(sample for row in comm.gather_json(seen) for sample in row)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_sample_of_an_epoch_is_seen_once_though_the_number_of_ranks_changes(tmp_path, ranks):
    folder = str(tmp_path)
    before = run_ranks(samples, 2, folder, 3, False)[0]
    assert len(before) == 24
    left = (resharding.ROWS - len(before)) // (4 * ranks)
    after = run_ranks(samples, ranks, folder, left, True)[0]
    assert len(set(before + after)) == len(before + after) == 24 + left * 4 * ranks
    assert set(after).isdisjoint(before)
