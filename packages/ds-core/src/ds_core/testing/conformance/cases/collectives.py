"""Level 6: collectives of two ranks, over the device's backend and staged through the host."""

from __future__ import annotations

from ds_core.testing.conformance.case import NOTHING, Group, Needs
from ds_core.testing.conformance.kit import Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS", "NAMES"]

COLLECTIVES = Group("collectives", level=6)
STAGED = Group("staged", level=6)
GROUPS = (COLLECTIVES, STAGED)

WORLD = 2
NAMES = (
    "all_reduce",
    "all_reduce_maximum",
    "all_reduce_later",
    "all_reduce_coalesced",
    "broadcast",
    "reduce",
    "all_gather",
    "all_gather_into_tensor",
    "gather",
    "scatter",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_to_all",
    "all_to_all_single",
    "all_to_all_uneven",
    "send_and_receive",
    "barrier",
    "nothing_and_scalars",
    "views",
)
"""Of `ds_core.testing.conformance.exchanges`, which imports torch."""

DTYPES = ("bfloat16", "float16", "float64", "int64", "int32", "uint8")


def _compare(kit: Kit, results: list[tuple[list[torch.Tensor], list[torch.Tensor]]], what: str) -> None:
    for rank, (found, wanted) in enumerate(results):
        kit.expect(len(found) == len(wanted), f"{what}, rank {rank}: {len(wanted)} results", len(found))
        for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            kit.expect_same(ours, theirs, f"{what}, rank {rank}, result {index}")


def _own(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance.exchanges import exchange
    from ds_core.testing.conformance.together import on_ranks

    _compare(kit, on_ranks(kit, exchange, WORLD, None, name), name)


def _staged(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance.exchanges import exchange
    from ds_core.testing.conformance.together import on_ranks

    if kit.accelerator.device_type == "cpu":
        kit.lacks("own", "a device apart from the host", "the device is the host: nothing is staged")
    _compare(kit, on_ranks(kit, exchange, WORLD, "staged", name), f"{name}, staged")


def _dtype(kit: Kit, name: str) -> None:
    from ds_core.testing.conformance.exchanges import exchange_dtype
    from ds_core.testing.conformance.together import on_ranks

    kind = name.rpartition(".")[2]
    _compare(kit, on_ranks(kit, exchange_dtype, WORLD, None, kind), name)


COLLECTIVES.each(
    "the collective gives every rank its result, over comm_backend() or, where the device has none, staged on the host",
    NAMES,
    _own,
    lambda name: NOTHING,
)
COLLECTIVES.each(
    "collectives take every dtype the device lists",
    [f"dtype.{kind}" for kind in DTYPES],
    _dtype,
    lambda name: Needs(dtypes=(name.rpartition(".")[2],)),
)


@COLLECTIVES.case("a group of some ranks works beside the group of all")
def subgroups(kit: Kit) -> None:
    from ds_core.testing.conformance.exchanges import subgroup
    from ds_core.testing.conformance.together import on_ranks

    _compare(kit, on_ranks(kit, subgroup, WORLD, None), "all_reduce after one of a smaller group")


STAGED.each(
    "core's collectives staged through the host take tensors of the device, which needs copies only",
    NAMES,
    _staged,
    lambda name: NOTHING,
)
