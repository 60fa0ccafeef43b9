"""A loader without an end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ds_core.data import DistributedLoader, RepeatingLoader
from ds_core.errors import DataError


def loader() -> DistributedLoader:
    return DistributedLoader(list(range(10)), 4, seed=1)


def take(source: RepeatingLoader, count: int) -> list[list[int]]:
    return [batch.tolist() for batch in itertools.islice(source, count)]


def test_it_goes_through_the_epochs() -> None:
    expected = [batch.tolist() for source in [loader()] for _ in range(3) for batch in source]
    repeating = RepeatingLoader(loader())
    assert len(repeating) == 3
    assert take(repeating, 9) == expected
    assert expected[:3] != expected[3:6]


@pytest.mark.parametrize("stop", range(8))
def test_it_continues_exactly_after_a_restart(stop: int) -> None:
    expected = take(RepeatingLoader(loader()), 12)
    first = RepeatingLoader(loader())
    assert take(first, stop) == expected[:stop]
    second = RepeatingLoader(loader())
    second.load_state_dict(first.state_dict())
    assert take(second, 12 - stop) == expected[stop:]


def test_a_state_loaded_while_it_runs_takes_effect_at_once() -> None:
    expected = take(RepeatingLoader(loader()), 8)
    inner = loader()
    repeating = RepeatingLoader(inner)
    take(repeating, 2)
    state = inner.state_dict()
    take(repeating, 3)
    inner.load_state_dict(state)
    assert take(repeating, 6) == expected[2:8]
    repeating.load_state_dict(state)
    assert take(repeating, 6) == expected[2:8]


def test_torchs_loader_gets_its_sampler_s_epoch_advanced() -> None:
    data = TensorDataset(torch.arange(12))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=0, seed=3)
    repeating = RepeatingLoader(DataLoader(data, batch_size=6, sampler=sampler))
    first, second = next(repeating)[0].tolist(), next(repeating)[0].tolist()
    assert first != second
    with pytest.raises(DataError, match="DataLoader has no state_dict"):
        repeating.state_dict()


def test_a_list_repeats_and_nothing_cannot() -> None:
    assert list(itertools.islice(RepeatingLoader([1, 2]), 5)) == [1, 2, 1, 2, 1]
    with pytest.raises(DataError, match="list gave no batch in a whole pass"):
        next(RepeatingLoader([]))
