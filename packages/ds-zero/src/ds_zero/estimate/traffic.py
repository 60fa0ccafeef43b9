"""Collectives of one training step and the bytes they send, as the comm facade counts them on each rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ds_core.comm.counter import sent_ring
from ds_zero.estimate.gathers import Gathers
from ds_zero.estimate.memory import is_reduced_at_once
from ds_zero.estimate.setup import Setup
from ds_zero.sharded.control import Message

__all__ = ["Sent", "traffic"]

NORM_BYTES = 8
"""The share of a rank in the gradient norm; a byte for each parameter follows it."""


TRUST_BYTES = 16
"""The share of a rank in the norms of one parameter and its update, where an optimizer needs them."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Collectives of one kind in one step.

    Attributes:
        kind: what they are for.
        op: the collective.
        scope: the label the facade counts it under.
        calls: how many.
        payload_bytes: of the full tensors.
        sent_bytes: by one rank, as `ds_core.comm.counter` says; rounded down in each call.
    """

    kind: str
    op: str
    scope: str
    calls: int
    payload_bytes: int
    sent_bytes: int


def traffic(setup: Setup, gathers: Gathers, *, by_segment: bool = False) -> tuple[Sent, ...]:
    """What one rank sends in a step, once plans have settled (from the third step on).

    Args:
        by_segment: the optimizer needs norms of parameters (LAMB).
    """
    if setup.ranks == 1 or not setup.trainable:
        return ()
    rows = [*_gradients(setup), *_parameters(setup, gathers), *_messages(setup, gathers)]
    if by_segment and setup.is_sharded:
        payload = setup.ranks * TRUST_BYTES * sum(len(group.members) for group in setup.trainable)
        rows.append(_sum("parameter norms", "all_gather", "parameter norms", [payload], setup.ranks))
    return tuple(row for row in rows if row.calls)


def _sum(kind: str, op: str, scope: str, payloads: list[int], ranks: int, times: int = 1) -> Sent:
    if op == "all_reduce":
        sent = sum(2 * payload * (ranks - 1) // ranks for payload in payloads)
    else:
        sent = sum(sent_ring(payload, ranks) for payload in payloads)
    return Sent(kind, op, scope, len(payloads) * times, sum(payloads) * times, sent * times)


def _gradients(setup: Setup) -> Iterator[Sent]:
    payloads = [b.numel * group.wire_dtype.itemsize for group in setup.trainable for b in group.layout.buckets]
    scatters = setup.is_sharded and setup.zero.reduce_scatter
    op = "reduce_scatter" if scatters else "all_reduce"
    times = setup.accumulation if setup.policy.every_backward else 1
    yield _sum("gradients", op, "gradients", payloads, setup.ranks, times)


def _parameters(setup: Setup, gathers: Gathers) -> Iterator[Sent]:
    """Gathers in passes, and of what stays whole after the update."""
    if not setup.is_sharded:
        return
    pieces: dict[int, list[int]] = {}
    for group in setup.groups:
        for bucket in group.layout.buckets:
            pieces.setdefault(bucket.unit, []).append(bucket.numel * group.dtype.itemsize)
    for kind, counts in (("forward", gathers.forward), ("backward", gathers.backward)):
        payloads = [payload for unit, count in counts.items() for payload in pieces[unit] * count]
        yield _sum(f"parameters, {kind}", "all_gather", "parameters", payloads, setup.ranks, setup.accumulation)
    updated = [
        bucket.numel * group.dtype.itemsize
        for group in setup.trainable
        for bucket in group.layout.buckets
        if bucket.unit in setup.whole_units
    ]
    kind = "small parameters, update" if setup.is_partitioned else "parameters, update"
    yield _sum(kind, "all_gather", "parameters", updated, setup.ranks)


def _messages(setup: Setup, gathers: Gathers) -> Iterator[Sent]:
    """What ranks tell each other: the norm and which parameters were used, late gradients, passes."""
    parameters = sum(len(group.members) for group in setup.trainable)
    buckets = sum(len(group.layout.buckets) for group in setup.trainable)
    ranks = setup.ranks
    yield _sum("gradient norm", "all_gather", "gradient norm", [ranks * (NORM_BYTES + parameters)], ranks)
    if is_reduced_at_once(setup) or setup.policy.every_backward or setup.policy.overlap:
        yield _sum("gradient order", "all_gather", "gradient order", [ranks * buckets], ranks)
    if setup.is_partitioned:
        payload = ranks * 8 * len(Message._fields)
        yield _sum(
            "gather control", "all_gather", "gather control", [payload] * gathers.rounds, ranks, setup.accumulation
        )
