"""The loader: batches, epochs, workers, and a position that survives a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler, IterableDataset, SequentialSampler, TensorDataset

from ds_core.data import DistributedLoader, is_iterable_style_dataset, is_map_style_dataset
from ds_core.errors import DataError


class Squares:
    """A map-style data set without a torch class."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, index * index


class Counter(IterableDataset[int]):
    """An iterable-style data set that counts and remembers its epoch."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * 100, self.epoch * 100 + self.length))


def indices(batch: Any) -> list[int]:
    values: list[int] = (batch[0] if isinstance(batch, list) else batch).tolist()
    return values


def epoch_of(loader: DistributedLoader) -> list[list[int]]:
    return [indices(batch) for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_the_styles_are_told_apart() -> None:
    assert is_map_style_dataset(Squares(3))
    assert is_map_style_dataset([1, 2, 3])
    assert is_map_style_dataset(TensorDataset(torch.zeros(3)))
    assert not is_map_style_dataset(Counter(3))
    assert is_iterable_style_dataset(Counter(3))
    assert not is_iterable_style_dataset([1, 2, 3])
    assert not is_iterable_style_dataset(3)


def test_batches_are_collated_and_counted() -> None:
    loader = DistributedLoader(Squares(10), 4, shuffle=False)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert batches[2][0].tolist() == [8, 9]
    assert batches[2][1].tolist() == [64, 81]
    assert list(DistributedLoader(Squares(3), 2, shuffle=False, collate_fn=len)) == [2, 1]


def test_ranks_together_read_an_epoch_once_in_one_order() -> None:
    single = flat(epoch_of(DistributedLoader(Squares(24), 6, seed=5)))
    shares = [epoch_of(DistributedLoader(Squares(24), 2, seed=5, rank=rank, ranks=3)) for rank in range(3)]
    interleaved = [share[step][row] for step in range(4) for row in range(2) for share in shares]
    assert interleaved == single
    assert sorted(single) == list(range(24))


def test_each_epoch_has_its_own_order_and_an_order_of_a_seed_is_repeatable() -> None:
    loader = DistributedLoader(Squares(20), 5, seed=1)
    first, second = flat(epoch_of(loader)), flat(epoch_of(loader))
    assert loader.epoch == 2
    assert first != second
    assert sorted(first) == sorted(second)
    again = DistributedLoader(Squares(20), 5, seed=1)
    again.set_epoch(1)
    assert flat(epoch_of(again)) == second
    assert flat(epoch_of(DistributedLoader(Squares(20), 5, seed=2))) != first


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_is_what_was_handed_out_not_what_was_prefetched(workers: int) -> None:
    loader = DistributedLoader(Squares(40), 4, seed=3, num_local_io_workers=workers)
    expected = epoch_of(DistributedLoader(Squares(40), 4, seed=3))
    running = iter(loader)
    for step in range(3):
        assert indices(next(running)) == expected[step]
        assert loader.samples_consumed == 4 * (step + 1)
    state = json.loads(json.dumps(loader.state_dict()))
    restored = DistributedLoader(Squares(40), 4, seed=3, num_local_io_workers=workers)
    restored.load_state_dict(state)
    assert epoch_of(restored) == expected[3:]
    assert epoch_of(restored) == epoch_of(loader_at(1))


def loader_at(epoch: int) -> DistributedLoader:
    loader = DistributedLoader(Squares(40), 4, seed=3)
    loader.set_epoch(epoch)
    return loader


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 40),
    batch=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    seed=st.integers(0, 3),
    streamed=st.booleans(),
)
def test_exactly_once_over_any_chain_of_restarts(
    length: int, batch: int, sizes: list[int], cuts: list[int], seed: int, streamed: bool
) -> None:
    """Runs of different numbers of ranks, each cut short and resumed by the next, see each sample of an epoch once."""
    seen: list[int] = []
    state: dict[str, Any] | None = None
    for turn, ranks in enumerate(sizes):
        last = turn == len(sizes) - 1
        loaders = [
            DistributedLoader(
                Counter(length) if streamed else Squares(length), batch, seed=seed, rank=rank, ranks=ranks
            )
            for rank in range(ranks)
        ]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
            if loaders[0].epoch == 1:
                break
        iterators = [iter(loader) for loader in loaders]
        steps = 0
        while last or steps < cuts[turn]:
            batches = [next(iterator, None) for iterator in iterators]
            if batches[0] is None:
                assert batches == [None] * ranks
                break
            seen.extend(index for part in batches for index in indices(part))
            steps += 1
        states = [loader.state_dict() for loader in loaders]
        assert all(other == states[0] for other in states)
        state = states[0] if steps or state is None else state
    assert set(seen) == set(range(length))
    assert len(seen) - length < max(sizes)


def test_a_finished_epoch_is_the_beginning_of_the_next() -> None:
    loader = DistributedLoader(Squares(8), 4, seed=3)
    for _ in zip(range(2), loader, strict=False):
        pass
    assert (loader.epoch, loader.samples_consumed) == (0, 8)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples_consumed"]) == (1, 0)
    restored = DistributedLoader(Squares(8), 4, seed=3)
    restored.load_state_dict(loader.state_dict())
    assert len(epoch_of(restored)) == 2


def test_a_loop_left_early_begins_again_and_set_epoch_keeps_a_restored_position() -> None:
    loader = DistributedLoader(Squares(12), 4, seed=3)
    first = indices(next(iter(loader)))
    assert indices(next(iter(loader))) == first
    state = loader.state_dict()
    restored = DistributedLoader(Squares(12), 4, seed=3)
    restored.load_state_dict(state)
    restored.set_epoch(0)
    assert len(epoch_of(restored)) == 2
    restored.load_state_dict(state)
    restored.set_epoch(5)
    assert len(epoch_of(restored)) == 3


def test_loading_a_state_ends_a_running_loop() -> None:
    loader = DistributedLoader(Squares(12), 4, seed=3)
    running = iter(loader)
    first = next(running)
    state = loader.state_dict()
    next(running)
    loader.load_state_dict(state)
    assert list(running) == []
    assert len(flat([indices(first), *epoch_of(loader)])) == 12


def test_tail_is_padded_or_dropped() -> None:
    padded = [DistributedLoader(Squares(11), 2, shuffle=False, rank=rank, ranks=2) for rank in range(2)]
    assert [epoch_of(loader)[-1] for loader in padded] == [[8, 10], [9, 8]]
    dropped = [
        DistributedLoader(Squares(11), 2, shuffle=False, drop_last=True, rank=rank, ranks=2) for rank in range(2)
    ]
    assert [len(loader) for loader in padded] == [3, 3]
    assert [epoch_of(loader) for loader in dropped] == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    assert dropped[0].epoch == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_iterable_data_is_shared_out_and_gets_the_epoch(workers: int) -> None:
    loaders = [DistributedLoader(Counter(10), 2, rank=rank, ranks=2, num_local_io_workers=workers) for rank in range(2)]
    assert [epoch_of(loader) for loader in loaders] == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]
    assert epoch_of(loaders[0]) == [[100, 102], [104, 106], [108]]


def test_a_sampler_of_the_caller_is_taken_as_it_comes() -> None:
    data = Squares(10)
    sampler = DistributedSampler(data, num_replicas=2, rank=1, seed=4)  # type: ignore[arg-type, var-annotated]
    loader = DistributedLoader(data, 2, data_sampler=sampler, rank=1, ranks=2)
    expected = list(sampler)
    assert len(loader) == 3
    assert flat(epoch_of(loader)) == expected
    second = flat(epoch_of(loader))
    assert second != expected, "set_epoch was not called on the sampler"
    restored = DistributedLoader(data, 2, data_sampler=sampler, rank=1, ranks=2)
    running = iter(restored)
    next(running)
    state = restored.state_dict()
    restored.load_state_dict(state)
    assert flat(epoch_of(restored)) == expected[2:]
    other = DistributedLoader(data, 2, data_sampler=SequentialSampler(range(5)), ranks=1)
    other_state = {**state, "length": 5}
    with pytest.raises(DataError, match="saved on 2 data-parallel ranks and there are 1 now"):
        other.load_state_dict(other_state)


def test_loading_leaves_the_models_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    epoch_of(DistributedLoader(Squares(10), 2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 11}, "saved with length 11, but this loader has 10"),
        ({"seed": 9}, "saved with seed 9, but this loader has 0"),
        ({"shuffle": False}, "saved with shuffle False"),
        ({"style": "stream"}, "saved with style 'stream'"),
        ({"epoch": -1}, "at least 0 as epoch, got -1"),
        ({"samples_consumed": 1.5}, "samples_consumed, got 1.5"),
        ({"epoch": None}, "lacks epoch"),
    ],
)
def test_a_state_of_other_data_is_refused(change: dict[str, Any], message: str) -> None:
    loader = DistributedLoader(Squares(10), 2)
    state = {**loader.state_dict(), **change}
    if "lacks" in message:
        del state["epoch"]
    with pytest.raises(DataError, match=message):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": []}, "the data set is empty"),
        (
            {"dataset": Squares(7), "batch_size": 4, "ranks": 2, "drop_last": True},
            "7 samples, fewer than one global batch of 8",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "ranks": 2}, "got rank 2 of 2"),
        ({"num_local_io_workers": -1}, "num_local_io_workers must be 0 or more"),
        ({"dataset": 3}, "int has neither"),
        ({"dataset": iter([1, 2])}, "can be read only once"),
        ({"dataset": Counter(5), "num_local_io_workers": 2}, "must be 0 or 1 for an iterable-style data set, got 2"),
        ({"dataset": Counter(5), "data_sampler": [1]}, "needs a data set with indices"),
        ({"data_sampler": iter([1])}, "must have a length"),
    ],
)
def test_what_cannot_be_loaded_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DistributedLoader(**{"dataset": Squares(8), "batch_size": 2, **arguments})


@pytest.mark.parametrize(("length", "drop_last"), [(0, False), (3, True)])
def test_a_stream_without_a_batch_is_an_error_not_an_endless_loop(length: int, drop_last: bool) -> None:
    with pytest.raises(DataError, match="Counter gave no batch in epoch 0"):
        list(DistributedLoader(Counter(length), 2, ranks=2, drop_last=drop_last))


def test_pinning_without_an_accelerator_does_nothing() -> None:
    assert len(epoch_of(DistributedLoader(Squares(4), 2, pin_memory=True))) == 2
