"""A small state that saves and loads as an engine does, for tests of what happens to files meanwhile.

`save` goes through `ds_core.checkpoint.saving.saver.Saver`, whole: agreement of the ranks, copy, thread, commit,
retention. The state is known by one number, so that a test sees at once which one came back.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from ds_core.checkpoint.saving.liveness import PATIENCE_S
from ds_core.checkpoint.saving.retention import Retention
from ds_core.checkpoint.saving.saver import SaveOptions, Saver
from ds_core.checkpoint.sources import open_source, recognize
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import LATEST
from ds_core.part import Part
from ds_core.state import Fragment, StatePlan

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["load", "save", "saver", "small_state", "stand_in"]


def small_state(number: int) -> dict[str, torch.Tensor]:
    """Logical tensors of several dtypes and shapes, by key; about 20 KB, other in every element for every number."""
    shapes = {
        "model/weight": (torch.float32, (64, 33)),
        "optimizer/exp_avg/weight": (torch.float64, (33, 40)),
        "model/half": (torch.bfloat16, (7,)),
        "model/count": (torch.int64, ()),
    }
    return {
        key: (torch.arange(math.prod(shape)) % 97 + number).to(dtype).view(shape)
        for key, (dtype, shape) in shapes.items()
    }


class _Holder(Part):
    name = "small-state"

    def __init__(self, number: int, rank: int, ranks: int) -> None:
        self._number: int = number
        self._rank: int = rank
        self._ranks: int = ranks

    def state_plan(self) -> StatePlan:
        plan = StatePlan(values={"number": self._number})
        for key, tensor in small_state(self._number).items():
            numel = tensor.numel()
            start, stop = numel * self._rank // self._ranks, numel * (self._rank + 1) // self._ranks
            if stop > start:
                plan.fragments.append(
                    Fragment(key, tuple(tensor.shape), start, stop, tensor.reshape(-1)[start:stop].clone())
                )
        return plan


def stand_in(number: int, rank: int = 0, ranks: int = 1) -> EngineApi:
    """What a `Saver` asks of an engine, with this rank's part of the state."""
    made = SimpleNamespace(
        parts=[_Holder(number, rank, ranks)],
        module=torch.nn.Module(),
        mesh=SimpleNamespace(plan=SimpleNamespace(axes=())),
        config={},
        global_steps=number,
        counters=lambda: {"global_steps": number},
        zero_optimization_stage=lambda: 0,
    )
    return cast("EngineApi", made)


def saver(
    disk: Disk = DISK, *, keep_last: int | None = None, patience_s: float = PATIENCE_S, asynchronous: bool = True
) -> Saver:
    """A writer of checkpoints on `disk`."""
    options = SaveOptions(asynchronous=asynchronous, retention=Retention(keep_last), snapshot_limit_bytes=64 << 20)
    return Saver(options, disk=disk, patience_s=patience_s)


def save(
    root: Path,
    tag: str,
    number: int,
    *,
    disk: Disk = DISK,
    rank: int = 0,
    ranks: int = 1,
    keep_last: int | None = None,
    patience_s: float = PATIENCE_S,
) -> None:
    """Writes the state of `number` and returns when it is on disk. Called on all ranks."""
    writer = saver(disk, keep_last=keep_last, patience_s=patience_s)
    writer.save(stand_in(number, rank, ranks), root, tag, {"number": number})
    writer.wait()


def load(root: Path, tag: str | None = None) -> tuple[str, int] | None:
    """Which checkpoint a load finds, and the number of its state; None when there is nothing to load.

    Raises:
        CheckpointError: it cannot be trusted.
        AssertionError: it is not to the bit a state that was saved.
    """
    if tag is None and recognize(root) is None and not (root / LATEST).exists():
        return None
    source: Any = open_source(root, tag)
    try:
        source.verify()
        number = int(source.client_state["number"])
        expected = small_state(number)
        assert set(source.keys()) == set(expected), source.keys()
        for key, tensor in expected.items():
            found = source.full(key)
            assert found.dtype == tensor.dtype, key
            assert torch.equal(found, tensor), f"{key} is not that of {number}"
        assert source.value("number") == number
        assert source.counters["global_steps"] == number
    finally:
        source.close()
    return source.path.name, number
