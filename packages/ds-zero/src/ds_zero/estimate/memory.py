"""Bytes a rank holds, by kind and place, with the padding in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ds_core.exchange import IN_FLIGHT
from ds_core.layout import Range
from ds_zero.estimate.setup import Group, Setup
from ds_zero.estimate.states import States

__all__ = ["Held", "gradients_in_flight", "held"]


@dataclass(frozen=True, slots=True)
class Held:
    """Memory of one kind.

    Attributes:
        kind: what it is.
        place: ``device``, ``host`` or ``nvme``.
        bytes: on one rank, padding included.
        padding_bytes: how many of them belong to no parameter.
    """

    kind: str
    place: str
    bytes: int
    padding_bytes: int = 0


def held(setup: Setup, states: States | None) -> tuple[Held, ...]:
    """What stays between passes on the rank, in one order of kinds; kinds without bytes are left out."""
    rows = [*_weights(setup), *_gradients(setup), *_optimizer(setup, states)]
    merged: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        sums = merged.setdefault((row.kind, row.place), [0, 0])
        sums[0] += row.bytes
        sums[1] += row.padding_bytes
    return tuple(Held(*key, *sums) for key, sums in merged.items() if sums[0])


def _padding(group: Group, ranges: Iterable[Range]) -> int:
    """Elements of `ranges` that belong to no parameter."""
    ranges = tuple(ranges)
    return sum(part.numel for part in ranges) - sum(part.numel for _, part in group.layout.fragments(ranges))


def _row(kind: str, place: str, group: Group, ranges: Iterable[Range], itemsize: int) -> Held:
    ranges = tuple(ranges)
    return Held(kind, place, sum(part.numel for part in ranges) * itemsize, _padding(group, ranges) * itemsize)


def _weights(setup: Setup) -> Iterator[Held]:
    """Working weights as the space lays them out, stand-ins, what the space leaves alone, buffers."""
    for group in setup.groups:
        frozen = "frozen " if group.is_frozen else ""
        whole = [bucket for bucket in group.layout.buckets if bucket.unit in setup.whole_units]
        kind = "small weights" if setup.is_partitioned else "weights"
        yield _row(frozen + kind, "device", group, [bucket.whole for bucket in whole], group.dtype.itemsize)
        if setup.is_partitioned:
            sharded = [bucket for bucket in group.layout.buckets if bucket.unit not in setup.whole_units]
            shards = [bucket.shard(group.rank, group.ranks) for bucket in sharded]
            yield _row(f"{frozen}weights", setup.places.weights, group, shards, group.dtype.itemsize)
            slots = [slot for bucket in sharded for slot in group.layout.slots[bucket.first : bucket.last]]
            yield Held("stand-ins", "device", sum(bool(slot.numel) for slot in slots) * group.dtype.itemsize)
    for member in setup.loose:
        yield Held("frozen weights", "device", member.parameter.numel() * member.parameter.dtype.itemsize)
    yield Held("buffers", "device", sum(buffer.numel() * buffer.dtype.itemsize for buffer in setup.outline.buffers()))


def _gradients(setup: Setup) -> Iterator[Held]:
    """Gradients at their most between passes: whole buckets unless every backward reduces them to the owner's part."""
    for group in setup.trainable:
        is_at_once = is_reduced_at_once(setup) and not group.is_late
        parts = setup.owned(group) if is_at_once else group.layout.whole()
        place = setup.places.gradients if is_at_once else "device"
        yield _row("gradients", place, group, parts, group.grad_dtype.itemsize)
    trained = {id(member.parameter) for group in setup.trainable for member in group.members}
    strays = [p for p in setup.outline.parameters() if p.requires_grad and id(p) not in trained]
    yield Held("gradients of untrained", "device", sum(p.numel() * p.dtype.itemsize for p in strays))


def is_reduced_at_once(setup: Setup) -> bool:
    """Whether gradients meet those of other ranks in each backward."""
    if not setup.is_sharded:
        return False
    return setup.policy.every_backward or (setup.policy.overlap and setup.accumulation == 1)


def _optimizer(setup: Setup, states: States | None) -> Iterator[Held]:
    """Master weights and optimizer states, per piece as `ds_core.masters` cuts them."""
    if states is None:
        return
    place = setup.places.optimizer
    for group in setup.trainable:
        dtype = setup.master_dtype or group.dtype
        owned = setup.owned(group)
        copied = [part for part in owned if dtype != group.dtype or not _is_near(setup, group, part)]
        ranges = copied if states.is_flat else [part for _, part in group.layout.fragments(copied)]
        yield _row("master weights", place, group, ranges, dtype.itemsize)
        for shape, use_muon, padding in _pieces(group, owned, states):
            kept = states.of(group.index, shape, dtype, use_muon)
            share = kept.states // max(torch.Size(shape).numel(), 1)
            yield Held("optimizer states", place, kept.states, padding * share)
            yield Held("optimizer counters", "device", kept.counters)


def _is_near(setup: Setup, group: Group, part: Range) -> bool:
    """Whether working weights are where the optimizer updates, which for states in files is host memory."""
    bucket = group.layout.buckets[group.layout.bucket_at(part.start)]
    weights = "device" if bucket.unit in setup.whole_units else setup.places.weights
    return weights == setup.places.gradients


def _pieces(group: Group, owned: Iterable[Range], states: States) -> Iterator[tuple[tuple[int, ...], object, int]]:
    """Shape, Muon's mark and padding elements of every tensor the optimizer updates."""
    if states.is_flat:
        for part in owned:
            padding = _padding(group, [part])
            if padding < part.numel:  # a run of nothing but padding is never updated
                yield (part.numel,), None, padding
        return
    for index, part in group.layout.fragments(owned):
        slot = group.layout.slots[index]
        is_whole = part.numel == slot.numel
        use_muon = getattr(group.members[index].parameter, "use_muon", None)
        yield (slot.shape, use_muon, 0) if is_whole else ((part.numel,), None, 0)


def gradients_in_flight(setup: Setup) -> int:
    """Bytes of gradients on their way at most, beside those `held` counts, when backward goes the order of units back.

    Where gradients meet in every backward: the buckets of one unit fill while those before are reduced, and the
    bucket of small parameters fills all along. Else one bucket at a time is reduced to the owner's part.
    """
    if setup.ranks == 1:
        return 0
    buckets = [(bucket, group) for group in setup.trainable for bucket in group.layout.buckets]
    wire = {
        id(bucket): bucket.numel * group.wire_dtype.itemsize * (group.wire_dtype != group.grad_dtype)
        for bucket, group in buckets
    }
    if not is_reduced_at_once(setup):
        out = setup.is_sharded
        own = [bucket.numel // group.ranks * group.wire_dtype.itemsize * out for bucket, group in buckets]
        return max((wire[id(bucket)] + part for (bucket, _), part in zip(buckets, own, strict=True)), default=0)
    size = {id(bucket): bucket.numel * group.grad_dtype.itemsize for bucket, group in buckets}
    small = {unit.index for unit in setup.units if unit.is_small}
    always = sum(size[id(bucket)] for bucket, _ in buckets if bucket.unit in small)
    ordered = sorted((bucket for bucket, _ in buckets if bucket.unit not in small), key=lambda b: (-b.unit, -b.start))
    most = 0
    for unit in dict.fromkeys(bucket.unit for bucket in ordered):
        filling = [place for place, bucket in enumerate(ordered) if bucket.unit == unit]
        before = ordered[max(filling[0] - IN_FLIGHT, 0) : filling[0]] if setup.policy.overlap else []
        run = [*before, *(ordered[place] for place in filling)]
        most = max(most, sum(size[id(bucket)] + wire[id(bucket)] for bucket in run))
    return always + max(most, max((wire[id(bucket)] for bucket, _ in buckets), default=0))
