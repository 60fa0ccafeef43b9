"""The three batch sizes: any two, or one, imply the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ds_core.config.facts import Origin
from ds_core.errors import BatchSizeError

__all__ = ["Batch", "Solution", "solve"]

TRAIN = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
STEPS = "gradient_accumulation_steps"
_SEARCH_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples per optimizer step over all ranks, samples per rank and forward pass, micro-batches per step."""

    train_batch_size: int
    micro_batch_size: int
    accumulation_steps: int


@dataclass(frozen=True, slots=True)
class Solution:
    """A solved batch, and how each size that was not given was found, by key."""

    batch: Batch
    how: dict[str, str]


def solve(
    *, train: int | None, micro: int | None, steps: int | None, ranks: int, origin: Callable[[str], Origin]
) -> Solution:
    """The batch that satisfies ``train_batch_size = micro x accumulation x ranks``.

    Args:
        train: train_batch_size, or None when it is not given; likewise `micro` and `steps`.
        ranks: data-parallel ranks.
        origin: where a given size came from, by key.

    Raises:
        BatchSizeError: the sizes contradict each other, do not divide, or none is given.
    """
    if train is None and micro is None:
        given = f"only {STEPS} {steps} ({origin(STEPS)}) is set" if steps is not None else "no batch size is set"
        raise BatchSizeError(f"{given}; set {MICRO}, the samples per rank and forward pass, or {TRAIN}")
    if train is None and micro is not None:
        count = 1 if steps is None else steps
        how = {TRAIN: f"micro {micro} x accumulation {count} x {_ranks(ranks)}"}
        return Solution(Batch(micro * count * ranks, micro, count), how)
    assert train is not None, (train, micro)
    if micro is not None and steps is not None:
        return _verified(train, micro, steps, ranks, origin)
    if micro is not None:
        return _steps_from(train, micro, ranks, origin)
    return _micro_from(train, steps, ranks, origin)


def _verified(train: int, micro: int, steps: int, ranks: int, origin: Callable[[str], Origin]) -> Solution:
    product = micro * steps * ranks
    if product == train:
        return Solution(Batch(train, micro, steps), {})
    fixes = [f"{TRAIN} to {product}"]
    if train % (micro * ranks) == 0:
        fixes.append(f"{STEPS} to {train // (micro * ranks)}")
    if train % (steps * ranks) == 0:
        fixes.append(f"{MICRO} to {train // (steps * ranks)}")
    raise BatchSizeError(
        f"{TRAIN} {train} ({origin(TRAIN)}) is not micro {micro} ({origin(MICRO)}) x accumulation {steps}"
        f" ({origin(STEPS)}) x {_ranks(ranks)} = {product}; set {', or '.join(fixes)}"
    )


def _steps_from(train: int, micro: int, ranks: int, origin: Callable[[str], Origin]) -> Solution:
    unit = micro * ranks
    if train % unit == 0:
        how = {STEPS: f"{TRAIN} {train} / (micro {micro} x {_ranks(ranks)})"}
        return Solution(Batch(train, micro, train // unit), how)
    fixes = [f"{TRAIN} to {_multiples(train, unit)}"]
    if train % ranks == 0:
        fixes.append(f"{MICRO} to {_divisors(train // ranks, micro)}")
    raise BatchSizeError(
        f"{TRAIN} {train} ({origin(TRAIN)}) is not a multiple of micro {micro} ({origin(MICRO)}) x {_ranks(ranks)}"
        f" = {unit}; set {', or '.join(fixes)}"
    )


def _micro_from(train: int, steps: int | None, ranks: int, origin: Callable[[str], Origin]) -> Solution:
    count = 1 if steps is None else steps
    unit = count * ranks
    if train % unit == 0:
        return Solution(
            Batch(train, train // unit, count), {MICRO: f"{TRAIN} {train} / (accumulation {count} x {_ranks(ranks)})"}
        )
    fixes = [f"{TRAIN} to {_multiples(train, unit)}"]
    if steps is not None and train % ranks == 0:
        fixes.append(f"{STEPS} to {_divisors(train // ranks, steps)}")
    of_what = f"accumulation {count} ({origin(STEPS)}) x {_ranks(ranks)} = {unit}" if steps else _ranks(ranks)
    raise BatchSizeError(f"{TRAIN} {train} ({origin(TRAIN)}) is not a multiple of {of_what}; set {', or '.join(fixes)}")


def _ranks(count: int) -> str:
    return f"{count} data-parallel ranks"


def _multiples(value: int, unit: int) -> str:
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def _divisors(value: int, near: int) -> str:
    """The divisors of `value` on both sides of `near`."""
    start = min(near, value)
    below = next((d for d in range(start, max(0, start - _SEARCH_LIMIT), -1) if value % d == 0), 1)
    above = next((d for d in range(near + 1, min(value, near + _SEARCH_LIMIT) + 1) if value % d == 0), None)
    return str(below) if above is None else f"{below} or {above}"
