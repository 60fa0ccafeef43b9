"""Recording takes no memory to speak of and a replay about the largest parameter, by torch's books and the kernel's."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ds_core.testing import run_ranks
from ds_zero.construct import Recording

WIDTH = 256
LAYERS = 20
LARGEST_BYTES = 4 * WIDTH * WIDTH
MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """The most bytes that were alive at once in storages seen by operators."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self._seen[storage._cdata] = StorageWeakRef(storage)
        storages = {key: torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for key, ref in self._seen.items()}
        self._seen = {key: self._seen[key] for key, storage in storages.items() if storage is not None}
        self.peak = max(self.peak, sum(storage.nbytes() for storage in storages.values() if storage is not None))
        return result


def linears(layers=LAYERS, width=WIDTH):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def initialised_twice():
    model = linears()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    return model


def scaled_at_the_end():
    model = linears()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    return model


def cast_at_the_end():
    return linears().to(torch.bfloat16)


def truncated():
    model = linears(6)
    for module in model:
        nn.init.trunc_normal_(module.weight, std=1.0)
    return model


@pytest.mark.parametrize(
    ("build", "largest"),
    [
        (linears, 1.1),
        (initialised_twice, 1.1),
        (scaled_at_the_end, 1.1),
        (cast_at_the_end, 1.6),  # a parameter and its half-size cast
    ],
)
def test_a_replay_holds_one_parameter_at_a_time(build, largest):
    with Recording() as recording:
        model = build()
    with LiveBytes() as live:
        for parameter, value in recording.replay():
            parameter.data = torch.empty(0)
            del value
    assert LARGEST_BYTES * 0.9 < live.peak < LARGEST_BYTES * largest
    assert len(list(model.parameters())) == 2 * LAYERS


def test_working_out_how_often_to_draw_holds_one_parameter_and_its_scratch():
    with LiveBytes() as live, Recording() as recording:
        model = truncated()
    for parameter, value in recording.replay():
        parameter.data = torch.empty(0)
        del value
    assert 0 < live.peak < LARGEST_BYTES * 6  # of 24 layers' worth of drawing and comparing
    assert all(parameter.numel() == 0 for parameter in model.parameters())


def resident_growth() -> tuple[float, float, float]:
    """MiB: the model's size, and how far resident memory rose at most while recording and while replaying."""
    process = psutil.Process()
    with Recording() as warm:  # torch's own tables
        linears(1, 8)
    list(warm.replay())
    before = process.memory_info().rss
    with Recording() as recording:
        model = linears(40, 1400)
        model_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    recorded = process.memory_info().rss - before
    peak = 0
    kept = []
    for parameter, value in recording.replay():
        kept.append(value.flatten()[:10].clone())
        parameter.data = kept[-1]
        peak = max(peak, process.memory_info().rss - before)
        del value
    return model_bytes / MIB, recorded / MIB, peak / MIB


@pytest.mark.ranks
def test_a_large_model_never_is_in_the_memory_of_a_process():
    ((model, recorded, replayed),) = run_ranks(resident_growth, 1)
    assert model > 290
    assert recorded < 10
    assert replayed < 3 * model / 40 + 10
