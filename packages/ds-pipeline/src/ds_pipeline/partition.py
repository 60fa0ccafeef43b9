"""Divides a row of layers into stages: exactly, by dynamic programming, so that the heaviest stage is lightest.

Pure: weights in, boundaries out. Where several divisions have equally heavy heaviest stages, the most even one of them
is taken (least sum of squares), and of those the one that fills the first stages.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ds_pipeline.errors import PartitionError

__all__ = ["LayerCost", "PartitionPlan", "balance", "partition_balanced", "partition_uniform", "plan_partition"]

METHODS = "'best', 'parameters', 'uniform', 'profile', 'type:REGEX', or a list of boundaries such as [0, 3, 6]"


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What is known of one layer.

    Attributes:
        title: its class, or a function's name; `type:` compares it.
        numel: elements of its parameters, shared ones included.
        ms: measured forward and backward of one micro-batch.
        bytes_: measured memory that its forward keeps for backward, for one micro-batch.
    """

    title: str
    numel: int
    ms: float | None = None
    bytes_: int | None = None


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """Which layers each stage has, and why. Prints as a table.

    Attributes:
        method: how it was found.
        boundaries: stage s has layers ``boundaries[s] <= i < boundaries[s + 1]``.
        layers: all of them.
    """

    method: str
    boundaries: tuple[int, ...]
    layers: tuple[LayerCost, ...]

    @property
    def stages(self) -> int:
        """How many."""
        return len(self.boundaries) - 1

    def span(self, stage: int) -> tuple[int, int]:
        """First layer of a stage, and one past its last."""
        return self.boundaries[stage], self.boundaries[stage + 1]

    def stage_of(self, layer: int) -> int:
        """The stage that has a layer."""
        return next(stage for stage in range(self.stages) if layer < self.boundaries[stage + 1])

    def numel(self, stage: int) -> int:
        """Elements of a stage's parameters."""
        start, stop = self.span(stage)
        return sum(layer.numel for layer in self.layers[start:stop])

    def __str__(self) -> str:
        rows = [("stage", "layers", "parameters", "ms", "MB", "what")]
        for stage in range(self.stages):
            start, stop = self.span(stage)
            mine = self.layers[start:stop]
            ms, kept = [layer.ms for layer in mine], [layer.bytes_ for layer in mine]
            rows.append(
                (
                    str(stage),
                    f"{start}-{stop - 1}" if stop - start > 1 else str(start),
                    f"{self.numel(stage):,}",
                    "-" if None in ms else f"{sum(each or 0 for each in ms):.2f}",
                    "-" if None in kept else f"{sum(each or 0 for each in kept) / 2**20:.2f}",
                    _titles(mine),
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (0, 1, 5) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([f"{self.stages} stages by {self.method}", *lines])


def _titles(layers: Sequence[LayerCost]) -> str:
    runs = [(title, len(list(run))) for title, run in itertools.groupby(layer.title for layer in layers)]
    return ", ".join(f"{count} x {title}" if count > 1 else title for title, count in runs)


def plan_partition(layers: Sequence[LayerCost], stages: int, method: str | Sequence[int]) -> PartitionPlan:
    """Divides `layers` into `stages` runs, each with at least one parameter.

    Args:
        layers: in the order of the model.
        stages: how many.
        method: 'parameters' balances their numbers, 'uniform' the numbers of layers, 'type:REGEX' those of layers whose
            class matches (anywhere, in any case), 'profile' measured times; 'best' is 'profile' where there are times,
            else 'parameters'; a list is taken as the boundaries.

    Raises:
        PartitionError: an unknown method, or no such division.
    """
    layers = tuple(layers)
    if not isinstance(method, str):
        boundaries = _given(method, len(layers), stages)
        _check_parameters(PartitionPlan("given boundaries", boundaries, layers))
        return PartitionPlan("given boundaries", boundaries, layers)
    is_measured = bool(layers) and all(layer.ms is not None for layer in layers)
    name = method.lower()
    if name == "best":
        name = "profile" if is_measured else "parameters"
    weights = _weights(layers, name, method, is_measured)
    holders = [layer.numel > 0 for layer in layers]
    if stages < 1 or len(layers) < stages:
        raise PartitionError(
            f"{len(layers)} layers cannot be divided into {stages} stages, each needs one: lower the number of stages "
            "(pipeline.stages x pipeline.stages_per_rank) or give more layers"
        )
    found = balance(weights, stages, holders)
    if found is None:
        without = balance(weights, stages)
        _check_parameters(PartitionPlan(name, without or (0,), layers))
        raise AssertionError("a division with parameters everywhere was not found, though there is one")
    return PartitionPlan(name, found, layers)


def _weights(layers: Sequence[LayerCost], name: str, method: str, is_measured: bool) -> list[float]:
    if name == "uniform":
        return [1.0] * len(layers)
    if name == "parameters":
        return [float(layer.numel) for layer in layers]
    if name == "profile":
        if not is_measured:
            raise PartitionError(
                "partition 'profile' needs a sample to measure layers with: pass sample= (the input of the first layer "
                "for one micro-batch) to PipelineModule, or choose 'parameters'"
            )
        return [float(layer.ms or 0.0) for layer in layers]
    if name.startswith("type:"):
        pattern = method[len("type:") :]
        try:
            matched = [1.0 if re.search(pattern, layer.title, re.IGNORECASE) else 0.0 for layer in layers]
        except re.error as error:
            raise PartitionError(f"partition {method!r} is no regular expression: {error}") from None
        if not any(matched):
            raise PartitionError(
                f"partition {method!r} matches no layer; layers are {', '.join(dict.fromkeys(x.title for x in layers))}"
            )
        return matched
    raise PartitionError(f"partition must be {METHODS}; got {method!r}")


def _given(boundaries: Sequence[int], layers: int, stages: int) -> tuple[int, ...]:
    found = tuple(boundaries)
    ends_fit = len(found) == stages + 1 and found[0] == 0 and found[-1] == layers
    if not ends_fit or any(second <= first for first, second in itertools.pairwise(found)):
        raise PartitionError(
            f"partition {list(found)} does not divide {layers} layers into {stages} stages: give {stages + 1} rising "
            f"boundaries, the first 0 and the last {layers}"
        )
    return found


def _check_parameters(plan: PartitionPlan) -> None:
    for stage in range(plan.stages):
        if plan.numel(stage) == 0:
            raise PartitionError(
                f"stage {stage} would have no parameters, and every rank needs some to train. Give boundaries that "
                f"leave it a layer with parameters, another partition method, or fewer stages:\n{plan}"
            )


def balance(weights: Sequence[float], parts: int, holders: Sequence[bool] | None = None) -> tuple[int, ...] | None:
    """Boundaries of `parts` runs whose heaviest is as light as can be; None where there are none.

    Args:
        weights: not negative.
        parts: at least 1.
        holders: every run must have one that is True.

    Two passes over the same recurrence, O(parts x n x length of a run): the least heaviest run, then the least sum of
    squares among divisions that stay below it.
    """
    sums = [0.0, *itertools.accumulate(weights)]
    counts = [0, *itertools.accumulate(int(flag) for flag in holders or [True] * len(weights))]
    heaviest = _least(sums, counts, parts, math.inf, squares=False)
    if heaviest is None:
        return None
    # Sums of floats differ in their last bits by where they begin; the cap must not exclude what reached it.
    cap = heaviest[0] + 1e-9 * max(sums[-1], 1.0)
    chosen = _least(sums, counts, parts, cap, squares=True)
    return (chosen or heaviest)[1]


def _least(
    sums: Sequence[float], counts: Sequence[int], parts: int, cap: float, *, squares: bool
) -> tuple[float, tuple[int, ...]] | None:
    count = len(sums) - 1
    costs = [0.0] + [math.inf] * count
    origins: list[list[int]] = []
    for _ in range(parts):
        following = [math.inf] * (count + 1)
        origin = [-1] * (count + 1)
        for stop in range(1, count + 1):
            for start in range(stop - 1, -1, -1):
                weight = sums[stop] - sums[start]
                if weight > cap or (not squares and weight > following[stop]):
                    break
                if counts[stop] == counts[start]:
                    continue
                cost = costs[start] + weight * weight if squares else max(costs[start], weight)
                # Of equal divisions the one with the shortest last run is found first, and stays.
                if cost < following[stop]:
                    following[stop], origin[stop] = cost, start
        costs = following
        origins.append(origin)
    if math.isinf(costs[count]):
        return None
    boundaries = [count]
    for origin in reversed(origins):
        boundaries.append(origin[boundaries[-1]])
    return costs[count], tuple(reversed(boundaries))


def partition_balanced(weights: Sequence[float], num_parts: int) -> list[int]:
    """Boundaries of runs of `weights` whose heaviest is lightest; run p has ``found[p] <= i < found[p + 1]``.

    Raises:
        PartitionError: fewer weights than parts.
    """
    found = balance(list(weights), num_parts)
    if found is None:
        raise PartitionError(f"{len(weights)} items cannot be divided into {num_parts} parts that have one each")
    return list(found)


def partition_uniform(num_items: int, num_parts: int) -> list[int]:
    """As `partition_balanced`, of items that weigh the same."""
    return partition_balanced([1.0] * num_items, num_parts)
