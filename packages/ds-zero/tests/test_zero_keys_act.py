"""Every served key of ``zero_optimization`` does something: each has a test that sets it and observes the change."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ds_core.config import Facts, load, resolve
from ds_core.errors import EngineError, ModelError
from ds_core.placeholder import is_placeholder
from ds_core.testing import run_ranks

WIDTH = 16


class Experts(nn.Module):
    """Two linears used one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.two(torch.tanh(self.one(x))))


class Model(nn.Module):
    """Layers, a pair of experts, and a spare one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.experts = Experts()
        self.last = nn.Linear(WIDTH, WIDTH)
        self.spare = nn.Linear(WIDTH, WIDTH)
        self.use_spare, self.turned = True, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = [self.first, self.experts, self.last] + ([self.spare] if self.use_spare else [])
        for layer in layers[::-1] if self.turned else layers:
            x = layer(x)
        return x


def make(stage=3, optimizer="AdamW", bf16=False, **zero):
    import ds_core

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": optimizer, "params": {"lr": 0.1}},
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": WIDTH, **zero},
    }
    return ds_core.initialize(model=Model(), config=config)[0]


def step(engine) -> None:
    x = torch.ones(2, WIDTH, requires_grad=True, dtype=next(engine.module.parameters()).dtype)
    engine.backward(engine(x).float().square().mean())
    engine.step()


def space_of(engine):
    return next(part for part in engine.parts if part.name == "weights")._space


def look(**config):
    """What one settled step of two ranks amounts to."""
    from ds_core import comm

    engine = make(**config)
    for number in range(4):
        if number == 3:
            comm.reset()
        step(engine)
    rows = {}
    for row in comm.report().rows:
        calls, sent = rows.get((row.op, row.scope), (0, 0))
        rows[row.op, row.scope] = (calls + row.calls, sent + row.bytes_sent)
    space = space_of(engine)
    coordinator = getattr(space, "coordinator", None)
    held = [name for name, p in engine.module.named_parameters() if not is_placeholder(p.data)]
    return {
        "wire": rows,
        "peak": coordinator.peak_numel if coordinator else 0,
        "units": [unit.title for unit in getattr(space, "units", [])],
        "whole": held,
    }


def on_two(**config) -> dict:
    return run_ranks(look, 2, **config)[0]


def stage(tmp_path: Path) -> None:
    rows = [set(on_two(stage=number)["wire"]) for number in range(4)]
    assert ("all_reduce", "gradients") in rows[0]
    assert ("all_gather", "parameters") not in rows[0]
    assert {("reduce_scatter", "gradients"), ("all_gather", "parameters")} <= rows[1]
    assert ("all_gather", "gradient order") in rows[2] - rows[1]
    assert ("all_gather", "gather control") in rows[3] - rows[2]


def wire_keys(tmp_path: Path) -> None:
    one = on_two(stage=1)["wire"]
    assert ("all_reduce", "gradients") in on_two(stage=1, reduce_scatter=False)["wire"]
    small = on_two(stage=1, reduce_bucket_size=20)["wire"]
    assert small["reduce_scatter", "gradients"][0] > one["reduce_scatter", "gradients"][0]
    gathers = on_two(stage=1, allgather_bucket_size=20)["wire"]
    assert gathers["all_gather", "parameters"][0] > one["all_gather", "parameters"][0]
    assert ("broadcast", "parameters") in on_two(stage=1, allgather_partitions=False)["wire"]
    sums = on_two(use_all_reduce_for_fetch_params=True)["wire"]
    plain = on_two()["wire"]
    assert sums["all_reduce", "parameters"][1] == 2 * (
        plain["all_gather", "parameters"][1] - sums["all_gather", "parameters"][1]
    )


def whole_keys(tmp_path: Path) -> None:
    assert len(on_two()["whole"]) == 5  # the biases
    assert len(on_two(param_persistence_threshold=WIDTH * WIDTH)["whole"]) == 10
    assert len(on_two(model_persistence_threshold=2 * WIDTH)["whole"]) == 2


def unit_keys(tmp_path: Path) -> None:
    assert on_two()["units"] == ["first", "experts.one", "experts.two", "last", "spare"]
    assert on_two(module_granularity_threshold=10**6)["units"] == ["(root)"]
    fused = ["first", "experts", "last", "spare"]
    assert on_two(leaf_module={"classes": ["Experts"]})["units"] == fused
    assert on_two(leaf_module={"names": ["experts"]})["units"] == fused
    assert on_two(leaf_module={"name_suffixes": ["experts"]})["units"] == fused


def live_keys(tmp_path: Path) -> None:
    one = WIDTH * WIDTH
    assert on_two()["peak"] == 2 * one  # the one in use, and one ahead
    assert on_two(prefetch_bucket_size=0)["peak"] == one
    assert on_two(prefetch_bucket_size=10**6)["peak"] == 5 * one
    assert on_two(prefetch_bucket_size=10**6, max_live_parameters=2 * one)["peak"] == 2 * one
    gathers = on_two()["wire"]["all_gather", "parameters"][0]
    assert on_two(max_reuse_distance=1)["wire"]["all_gather", "parameters"][0] == gathers - 1
    assert on_two(max_reuse_distance=10**9)["wire"]["all_gather", "parameters"][0] == gathers - 5


def under_way(**config) -> tuple[int, int]:
    """Most gathers under way at once, and most reductions."""
    engine = make(**config)
    space = space_of(engine)
    gathers, reductions = [0], [0]
    issue, launch = space.coordinator._issue, space.exchange._launch

    def count(unit) -> None:
        issue(unit)
        gathers.append(sum(one.state.value == "gathering" for one in space.units))

    def count_too(entry) -> None:
        launch(entry)
        reductions.append(len(space.exchange._under_way))

    space.coordinator._issue, space.exchange._launch = count, count_too
    for _ in range(3):
        step(engine)
    return max(gathers), max(reductions)


def overlap_keys(tmp_path: Path) -> None:
    plain = run_ranks(under_way, 2, prefetch_bucket_size=10**6)[0]
    assert plain[0] > 1
    assert plain[1] > 0
    assert run_ranks(under_way, 2, prefetch_bucket_size=10**6, allgather_sequential=True)[0][0] == 0
    assert run_ranks(under_way, 2, overlap_comm=False)[0][1] == 0


def trained_on_some(ignore):
    engine = make(stage=0, ignore_unused_parameters=ignore)
    engine.module.use_spare = False
    step(engine)


def unused(tmp_path: Path) -> None:
    trained_on_some(True)
    with pytest.raises(EngineError, match=r"first 'spare\."):
        trained_on_some(False)


def consolidated(folder, **zero) -> bool:
    return make(**zero).save_16bit_model(folder)


def gather_on_save(tmp_path: Path) -> None:
    assert run_ranks(consolidated, 2, str(tmp_path / "a")) == [True, True]
    assert (tmp_path / "a" / "model.safetensors").exists()
    assert run_ranks(consolidated, 2, str(tmp_path / "b"), gather_16bit_weights_on_model_save=False) == [False, False]
    assert not (tmp_path / "b").exists()


def applied(**zero):
    engine = make(**zero)

    def fill(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                module.weight.fill_(0.5)

    try:
        engine.module.apply(fill)
        return float(engine.module_state_dict()["first.weight"].mean())
    except ModelError:
        return None


def apply_key(tmp_path: Path) -> None:
    assert run_ranks(applied, 2) == [0.5, 0.5]
    assert run_ranks(applied, 2, override_module_apply=False) == [None, None]


def masters_after_load(folder, **zero) -> bool:
    engine = make(bf16=True, stage=1, **zero)
    step(engine)
    engine.save_checkpoint(folder, tag=f"t{len(zero)}")
    engine.load_checkpoint(folder, tag=f"t{len(zero)}")
    masters = [p for group in engine.optimizer.optimizer.param_groups for p in group["params"]]
    return all(bool((m == m.bfloat16().float()).all()) for m in masters)


def masters_key(tmp_path: Path) -> None:
    assert run_ranks(masters_after_load, 2, str(tmp_path)) == [False, False]
    assert run_ranks(masters_after_load, 2, str(tmp_path), load_from_fp32_weights=False) == [True, True]


def turned_around(**zero) -> list[str]:
    engine = make(**zero)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("ds_zero")
    logger.addHandler(handler)
    for _ in range(2):
        step(engine)
    engine.module.turned = True
    step(engine)
    logger.removeHandler(handler)
    return [record for record in records if "another order" in record]


def trace_key(tmp_path: Path) -> None:
    assert run_ranks(turned_around, 2) == [[], []]
    assert all(len(lines) >= 1 for lines in run_ranks(turned_around, 2, log_trace_cache_warnings=True))


def tampered(**zero) -> str:
    import torch.distributed as dist

    engine = make(stage=1, **zero)
    step(engine)
    shadow = engine.module.last.weight
    publish = space_of(engine).publish

    def spoil() -> None:
        publish()
        if dist.get_rank() == 1:
            shadow.data[0, 0] += 1.0

    space_of(engine).publish = spoil
    try:
        step(engine)
    except EngineError as error:
        return str(error)
    return ""


def sanity_key(tmp_path: Path) -> None:
    assert run_ranks(tampered, 2) == ["", ""]
    assert all("'last.weight'" in text and "[1]" in text for text in run_ranks(tampered, 2, enable_sanity_checks=True))


OBSERVED: dict[str, Callable[[Path], None]] = {
    "stage": stage,
    "reduce_scatter": wire_keys,
    "reduce_bucket_size": wire_keys,
    "allgather_bucket_size": wire_keys,
    "allgather_partitions": wire_keys,
    "use_all_reduce_for_fetch_params": wire_keys,
    "param_persistence_threshold": whole_keys,
    "model_persistence_threshold": whole_keys,
    "module_granularity_threshold": unit_keys,
    "leaf_module.classes": unit_keys,
    "leaf_module.names": unit_keys,
    "leaf_module.name_suffixes": unit_keys,
    "prefetch_bucket_size": live_keys,
    "max_live_parameters": live_keys,
    "max_reuse_distance": live_keys,
    "overlap_comm": overlap_keys,
    "allgather_sequential": overlap_keys,
    "ignore_unused_parameters": unused,
    "gather_16bit_weights_on_model_save": gather_on_save,
    "override_module_apply": apply_key,
    "load_from_fp32_weights": masters_key,
    "log_trace_cache_warnings": trace_key,
    "enable_sanity_checks": sanity_key,
}

ELSEWHERE = ("offload_optimizer.", "offload_param.", "sub_group_size")
"""Keys that test_offload.py observes."""


def served_keys() -> set[str]:
    rows = resolve(load({"train_batch_size": 4}), Facts(1, 1)).rows()
    prefix = "zero_optimization."
    return {row.key.removeprefix(prefix) for row in rows if row.key.startswith(prefix)}


def test_every_served_key_has_an_observation():
    assert {key for key in served_keys() if not key.startswith(ELSEWHERE)} == set(OBSERVED)


_DISTINCT = {id(observe): (key, observe) for key, observe in reversed(OBSERVED.items())}


@pytest.mark.parametrize("key", [key for key, _ in reversed(_DISTINCT.values())])
def test_setting_the_key_changes_what_is_observed(key, tmp_path):
    OBSERVED[key](tmp_path)


def test_the_keys_users_know_with_a_prefix_are_the_same_keys():
    from ds_zero.config import STAGE_3_PREFIXED

    values = {"gather_16bit_weights_on_model_save": False, "allgather_sequential": True}
    values |= {"use_all_reduce_for_fetch_params": True}
    for key in STAGE_3_PREFIXED:
        value = values.get(key, 7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            section = resolve(load({"train_batch_size": 1, "zero_optimization": {f"stage3_{key}": value}}), Facts(1, 1))
        assert section.get(f"zero_optimization.{key}") == value
