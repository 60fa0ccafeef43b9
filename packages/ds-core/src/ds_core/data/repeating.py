"""A loader without an end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from ds_core.errors import DataError

__all__ = ["RepeatingLoader"]


@runtime_checkable
class _HasState(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...


@runtime_checkable
class _HasEpoch(Protocol):
    def set_epoch(self, epoch: int, /) -> Any: ...


@runtime_checkable
class _HasSampler(Protocol):
    sampler: Any


class RepeatingLoader:
    """Batches of a loader, starting it again whenever it ends.

    A `ds_core.data.DistributedLoader` moves to the next epoch by itself. For other loaders ``set_epoch`` is called on
    the loader or, as torch's DataLoader needs, on its ``sampler``, where there is one.

    Args:
        loader: anything that can be iterated again and again.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._iterator: Iterator[Any] | None = None
        self._passes = 0

    def __iter__(self) -> RepeatingLoader:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            DataError: the loader has nothing to give.
        """
        # Three rounds: the rest of the running pass, then one that may be empty because a restored position was at
        # the very end of its epoch, then one that begins at a beginning.
        for _ in range(3):
            if self._iterator is None:
                self._iterator = iter(self.loader)
            try:
                return next(self._iterator)
            except StopIteration:
                self._iterator = None
                self._passes += 1
                self._next_epoch()
        raise DataError(f"{type(self.loader).__name__} gave no batch in a whole pass, so repeating it has no end.")

    def __len__(self) -> int:
        """Batches per pass of the loader."""
        return len(self.loader)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """The loader's own state.

        Raises:
            DataError: the loader keeps none.
        """
        return self._stateful().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the loader; the next batch comes from there.

        Raises:
            DataError: the loader keeps no state, or does not take this one.
        """
        self._stateful().load_state_dict(state_dict)
        self._iterator = None

    def _stateful(self) -> _HasState:
        if not isinstance(self.loader, _HasState):
            raise DataError(
                f"{type(self.loader).__name__} has no state_dict and load_state_dict, so its position cannot be saved. "
                "Use ds_core.data.DistributedLoader."
            )
        return self.loader

    def _next_epoch(self) -> None:
        from ds_core.data.loader import DistributedLoader

        if isinstance(self.loader, DistributedLoader):
            return
        sampler = self.loader.sampler if isinstance(self.loader, _HasSampler) else None
        for target in (self.loader, sampler):
            if isinstance(target, _HasEpoch):
                target.set_epoch(self._passes)
                return
