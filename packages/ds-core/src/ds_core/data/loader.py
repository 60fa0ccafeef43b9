"""The distributed data loader: torch's DataLoader with a plan of who reads what, and an exact position."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as collate_by_default

from ds_core.accelerator import Capability, current
from ds_core.data.order import GlobalBatches, epoch_order, epoch_seed, rank_indices
from ds_core.data.state import Position, check_state
from ds_core.data.stream import RankStream
from ds_core.data.styles import is_iterable_style_dataset, is_map_style_dataset
from ds_core.errors import DataError
from ds_core.signals import ignore_watched_signals

__all__ = ["DistributedLoader", "Style"]


class Style(enum.Enum):
    """How the loader comes by its samples."""

    MAP = "map"
    STREAM = "stream"
    SAMPLER = "sampler"


@runtime_checkable
class _HasEpoch(Protocol):
    def set_epoch(self, epoch: int, /) -> Any: ...


class DistributedLoader:
    """Micro-batches of this rank, epoch after epoch, with a position that can be saved and restored.

    Each ``for`` loop over the loader is one epoch: it starts at the beginning of the current epoch, or at the restored
    position the first time after `load_state_dict`, and moves on to the next epoch when it runs to its end. Shuffling
    depends on (seed, epoch) only. See Note [Exactly once] in `ds_core.data.order` for who reads what and for the tail.

    Three sources of samples:

    - a map-style data set (``__len__`` and ``__getitem__``): shuffled here;
    - an iterable-style data set: every rank reads the whole stream and keeps its share, in the stream's own order; at
      most one worker, because torch's workers would each read a copy of the whole. ``set_epoch`` is called on it where
      it has one. A restart reads up to the position and drops what it reads;
    - a ``data_sampler`` with a map-style data set: its indices are this rank's own and are taken as they come, with
      ``set_epoch`` called on it where it has one. A restart then needs the same number of ranks.

    Random augmentation in worker processes is seeded by (seed, epoch, rank) and never draws from torch's default
    generator, so loading does not disturb the model's random numbers.

    Args:
        dataset: the data.
        batch_size: samples per rank and micro-batch.
        rank: this rank among the data-parallel ones. Ranks that work on the same samples (tensor or
            pipeline parallel) pass the same one.
        ranks: number of data-parallel ranks.
        seed: of the shuffle; the same on all ranks.
        shuffle: whether a map-style data set is shuffled.
        data_sampler: indices of this rank, instead of the plan made here.
        collate_fn: makes a batch of a list of samples; torch's default when None.
        num_local_io_workers: worker processes; 0 or None loads in this one.
        pin_memory: page-lock the batches, where the accelerator can.
        drop_last: leave out a short last batch instead of padding it.

    Attributes:
        post_process_func: called with every batch and the state of the sampler (the caller's, where it has one; else
            `state_dict`), in the training process; what it gives is handed out instead. None: nothing is.

    Raises:
        DataError: no samples, too few for one batch with `drop_last`, or sizes that make no sense.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        data_sampler: Iterable[int] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_local_io_workers: int | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.rank = rank
        self.ranks = ranks
        self.seed = seed
        self.shuffle = shuffle
        self.sampler = data_sampler
        self.collate_fn = collate_fn
        self.workers = num_local_io_workers or 0
        self.pin_memory = pin_memory
        self.drop_last = drop_last
        self.post_process_func: Callable[[Any, dict[str, Any]], Any] | None = None
        _check_sizes(batch_size, self.rank, self.ranks, self.workers)
        self.style = _style_of(dataset, data_sampler, self.workers)
        self.epoch = 0
        self._consumed = 0
        self._resume = False
        self._iterations = 0
        self._moves = 0
        if self.style is not Style.STREAM:
            self._check_length()

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together consume per batch."""
        return self.batch_size * self.ranks

    @property
    def samples_consumed(self) -> int:
        """Samples of the current epoch that all ranks together have consumed, padding not counted."""
        return self._consumed

    def __len__(self) -> int:
        """Batches per epoch, on every rank alike."""
        return self._batches().count()

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of `epoch` and ends a running loop; in that epoch already, nothing happens.

        So a loop over epochs that calls this for each keeps a restored position.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self._consumed = 0
            self._resume = False
            self._moves += 1

    def __iter__(self) -> Iterator[Any]:
        if not self._resume:
            self._consumed = 0
        self._resume = False
        self._iterations += 1
        return self._run(self._iterations, self._moves, self.epoch, self._consumed)

    def state_dict(self) -> dict[str, Any]:
        """The exact position: batches that were handed out count, batches that workers have prefetched do not."""
        position = Position(self.epoch, self._consumed)
        if self.style is not Style.STREAM and self._batches().count(self._consumed) == 0:
            position = Position(self.epoch + 1, 0)
        return {
            "epoch": position.epoch,
            "samples_consumed": position.consumed,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "style": self.style.value,
            "length": None if self.style is Style.STREAM else self._length(),
            "data_parallel_size": self.ranks,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a position on the next ``for`` loop, with any number of data-parallel ranks.

        A loop that is running ends, so a `RepeatingLoader` continues from the position at once.

        Raises:
            DataError: the state is not a loader's, or belongs to other data or another order.
        """
        position = check_state(state_dict, self.state_dict())
        self.epoch = position.epoch
        self._consumed = position.consumed
        self._resume = True
        self._moves += 1

    def _run(self, iteration: int, moves: int, epoch: int, consumed: int) -> Iterator[Any]:
        """Hands out batches, counting each before it is handed out; only the newest iterator moves the position."""
        start = consumed
        for batch, count in zip(self._torch_loader(epoch, consumed), self._counts(consumed), strict=False):
            if moves != self._moves:
                return
            consumed += count
            if iteration == self._iterations:
                self._consumed = consumed
            yield batch if self.post_process_func is None else self.post_process_func(batch, self._sampler_state())
        if start == consumed == 0:
            raise DataError(
                f"{type(self.dataset).__name__} gave no batch in epoch {epoch}: it is empty, or drop_last is set and "
                f"it has fewer samples than one global batch of {self.global_batch}."
            )
        if iteration == self._iterations and moves == self._moves:
            self.epoch = epoch + 1
            self._consumed = 0

    def _sampler_state(self) -> dict[str, Any]:
        state = getattr(self.sampler, "state_dict", None)
        return dict(state()) if callable(state) else self.state_dict()

    def _counts(self, consumed: int) -> Iterator[int]:
        """Samples that all ranks consume with each batch."""
        if self.style is Style.STREAM:
            while True:
                yield self.global_batch
        for step in self._batches().steps(consumed):
            yield step.count

    def _torch_loader(self, epoch: int, consumed: int) -> DataLoader[Any]:
        for source in (self.dataset, self.sampler):
            if isinstance(source, _HasEpoch):
                source.set_epoch(epoch)
        generator = torch.Generator().manual_seed(epoch_seed(epoch_seed(self.seed, epoch), self.rank))
        options: dict[str, Any] = {
            "num_workers": self.workers,
            "pin_memory": self.pin_memory and current().has(Capability.PINNED_MEMORY),
            "generator": generator,
            "worker_init_fn": ignore_watched_signals,
        }
        if self.style is Style.STREAM:
            stream = RankStream(
                self.dataset,
                self.batch_size,
                rank=self.rank,
                ranks=self.ranks,
                skip=consumed,
                drop_last=self.drop_last,
            )
            return DataLoader(stream, batch_size=None, collate_fn=self.collate_fn or collate_by_default, **options)
        batches = self._sampled(consumed) if self.style is Style.SAMPLER else self._planned(epoch, consumed)
        return DataLoader(self.dataset, batch_sampler=batches, collate_fn=self.collate_fn, **options)

    def _planned(self, epoch: int, consumed: int) -> Iterator[list[int]]:
        order = epoch_order(self._length(), self.seed, epoch, shuffle=self.shuffle)
        for step in self._batches().steps(consumed):
            yield rank_indices(order, step.positions(self.rank, self.ranks))

    def _sampled(self, consumed: int) -> Iterator[list[int]]:
        """Batches of the caller's sampler, after dropping what was consumed; a short last one is not padded."""
        batch: list[int] = []
        for position, index in enumerate(self.sampler or ()):
            if position < consumed // self.ranks:
                continue
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def _length(self) -> int:
        """Samples per epoch of all ranks together."""
        if self.style is Style.SAMPLER:
            return len(self.sampler) * self.ranks  # type: ignore[arg-type]
        return len(self.dataset)

    def _batches(self) -> GlobalBatches:
        return GlobalBatches(self._length(), self.global_batch, self.drop_last)

    def _check_length(self) -> None:
        length = self._length()
        if length == 0:
            raise DataError("the data set is empty: it has no samples to train on.")
        if self.drop_last and length < self.global_batch:
            raise DataError(
                f"the data set has {length} samples, fewer than one global batch of {self.global_batch} "
                f"({self.batch_size} on each of {self.ranks} data-parallel ranks), and drop_last leaves out a short "
                "one: nothing would be trained. Set dataloader_drop_last to false or lower the micro-batch size."
            )


def _check_sizes(batch_size: int, rank: int, ranks: int, workers: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}.")
    if ranks < 1 or not 0 <= rank < ranks:
        raise DataError(f"rank must be from 0 to ranks - 1 among the data-parallel ranks, got rank {rank} of {ranks}.")
    if workers < 0:
        raise DataError(f"num_local_io_workers must be 0 or more, got {workers}.")


def _style_of(dataset: Any, sampler: Iterable[int] | None, workers: int) -> Style:
    """What kind of source this is.

    Raises:
        DataError: it is neither kind, or an option does not go with its kind.
    """
    if is_map_style_dataset(dataset):
        if sampler is None:
            return Style.MAP
        if not isinstance(sampler, _Sized):
            raise DataError(f"data_sampler must have a length; {type(sampler).__name__} has none.")
        return Style.SAMPLER
    if not is_iterable_style_dataset(dataset):
        raise DataError(
            f"training data must have __len__ and __getitem__, or __iter__; {type(dataset).__name__} has neither."
        )
    if sampler is not None:
        raise DataError(f"data_sampler needs a data set with indices; {type(dataset).__name__} can only be iterated.")
    if isinstance(dataset, Iterator):
        raise DataError(
            f"{type(dataset).__name__} can be read only once; pass something whose __iter__ starts again, such as a "
            "torch.utils.data.IterableDataset."
        )
    if workers > 1:
        raise DataError(
            f"num_local_io_workers must be 0 or 1 for an iterable-style data set, got {workers}: each worker would "
            "read a copy of the whole stream. Use a map-style data set to load with several."
        )
    return Style.STREAM


@runtime_checkable
class _Sized(Protocol):
    def __len__(self) -> int: ...
