"""The saved position of a loader, and whether it belongs to the loader that is to continue from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ds_core.errors import DataError

__all__ = ["Position", "check_state"]

_ORDER_KEYS = ("style", "length", "seed", "shuffle")


class Position(NamedTuple):
    """Where in the data: the epoch, and the samples of it that all ranks together have consumed."""

    epoch: int
    consumed: int


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> Position:
    """The position in `state`.

    Args:
        state: a saved state.
        own: the present state of the loader that takes it.

    Raises:
        DataError: a key is missing or not a count, or the order of samples was another one.
    """
    missing = [key for key in own if key not in state]
    if missing:
        raise DataError(f"the loader's state lacks {', '.join(missing)}. Was it saved by another loader?")
    for key in _ORDER_KEYS:
        if state[key] != own[key]:
            raise DataError(
                f"the loader's state was saved with {key} {state[key]!r}, but this loader has {own[key]!r}: samples "
                "would be repeated or left out. Continue with the same data and settings, or do not load the state."
            )
    if state["style"] == "sampler" and state["data_parallel_size"] != own["data_parallel_size"]:
        raise DataError(
            f"the loader's state was saved on {state['data_parallel_size']} data-parallel ranks and there are "
            f"{own['data_parallel_size']} now; with a data_sampler of your own only you know how its indices move. "
            "Continue with the same number of ranks, or without data_sampler."
        )
    for key in ("epoch", "samples_consumed"):
        if not isinstance(state[key], int) or isinstance(state[key], bool) or state[key] < 0:
            raise DataError(f"the loader's state must have a whole number of at least 0 as {key}, got {state[key]!r}.")
    return Position(state["epoch"], state["samples_consumed"])
