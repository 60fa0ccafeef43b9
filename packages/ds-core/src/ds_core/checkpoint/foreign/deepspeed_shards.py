"""Which elements of which parameter lie where in a DeepSpeed rank's flat groups: the arithmetic, without tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ds_core.checkpoint.foreign.records import Record
from ds_core.errors import CheckpointError

__all__ = ["Placed", "Shapes", "flat_groups", "parameter_shapes", "sharded", "sliced"]

Shapes = list[dict[str, tuple[int, ...]]]
"""Names and shapes of trained parameters by optimizer group."""


class Placed(NamedTuple):
    """Elements ``start <= i < start + numel`` of parameter `name`, which lie at `at` of flat group `flat` of `rank`."""

    name: str
    rank: int
    flat: int
    at: int
    start: int
    numel: int


def sharded(flats: Sequence[Sequence[int]], shapes: Shapes, groups: list[list[int]]) -> Iterator[Placed]:
    """Every parameter's share on every rank at stage 3, from the lengths of its flat groups.

    Parameters lie in order, and go on in the next flat group of their optimizer group where one is used up.

    Raises:
        CheckpointError: the flat groups are too short.
    """
    ranks = len(flats)
    for rank in range(ranks):
        for group, mine in zip(shapes, groups, strict=True):
            places = iter(mine)
            flat, at = -1, 0
            for name, shape in group.items():
                numel = math.prod(shape)
                share = -(-numel // ranks)
                while flat < 0 or at + share > flats[rank][flat]:
                    flat, at = next(places, -1), 0
                    if flat < 0:
                        raise CheckpointError(f"rank {rank}'s flat groups end before parameter {name!r}")
                count = min(share, numel - rank * share)
                if count > 0:
                    yield Placed(name, rank, flat, at, rank * share, count)
                at += share


def sliced(optimizers: Sequence[Mapping[str, Any]], shapes: Shapes, files: Sequence[Path]) -> Iterator[Placed]:
    """What every rank's partitions hold at stages 1 and 2, by their slice mappings.

    Raises:
        CheckpointError: a rank's file (one of `files`) has no usable mapping.
    """
    done: dict[str, int] = {}
    for rank, saved in enumerate(optimizers):
        mappings = saved.get("param_slice_mappings")
        if not isinstance(mappings, list) or len(mappings) != len(shapes):
            raise CheckpointError(
                f"{files[rank]} does not say which range of its partitions is of which parameter "
                "(param_slice_mappings, written since DeepSpeed 0.7); convert it where it was written"
            )
        for flat, mapping in enumerate(mappings):
            for name, address in mapping.items():
                if name not in shapes[flat] or not isinstance(address, Record):
                    raise CheckpointError(f"{files[rank]} places {name!r}, which is no parameter of its group")
                at, numel = address.get("start"), address.get("numel")
                if type(at) is not int or type(numel) is not int or at < 0 or numel < 0:
                    raise CheckpointError(f"{files[rank]} has no usable place for parameter {name!r}")
                yield Placed(name, rank, flat, at, done.get(name, 0), numel)
                done[name] = done.get(name, 0) + numel


def parameter_shapes(saved: Mapping[str, Any], path: Path) -> Shapes:
    """Names and shapes of trained parameters by optimizer group, in their order, from the dict of a model file.

    Raises:
        CheckpointError: `path` does not list them.
    """
    shapes = saved.get("param_shapes")
    if isinstance(shapes, dict):
        shapes = [shapes]
    good = isinstance(shapes, list) and all(
        type(group) is dict and all(_is_shape(shape) for shape in group.values()) for group in shapes
    )
    if not good:
        raise CheckpointError(f"{path} does not list its parameters (param_shapes)")
    assert isinstance(shapes, list)
    return shapes


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(size) is int and 0 <= size < 1 << 48 for size in value)


def flat_groups(base: Any, groups: int, flats: int) -> list[list[int]]:
    """Which of `flats` flat groups are of which of `groups` optimizer groups, as the optimizer's dict `base` says.

    Raises:
        CheckpointError: it does not say, and their numbers do not tell.
    """
    listed = base.get("param_groups") if isinstance(base, dict) else None
    if isinstance(listed, list) and len(listed) == groups:
        found = [group.get("params") for group in listed if isinstance(group, dict)]
        indices = [index for item in found if isinstance(item, list) for index in item]
        if indices == list(range(flats)):
            return [list(item) for item in found if isinstance(item, list)]
    if flats == groups:
        return [[index] for index in range(groups)]
    if groups == 1:
        return [list(range(flats))]
    raise CheckpointError(f"{flats} flat groups are not told apart by {groups} optimizer groups")
