"""What a configuration may ask to be checked, or done once more: equality across ranks, unused parameters, masters."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch

from ds_core import comm
from ds_core.errors import EngineError
from ds_core.part import Part, Update
from ds_zero.partitioned import checksum

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.space import UpdateSpace
    from ds_core.state import StateReader

__all__ = ["MastersFromWeights", "SanityChecks", "UnusedCheck"]


class SanityChecks(Part):
    """``enable_sanity_checks``: compares plans once, and parameters that all ranks hold whole after every step."""

    name = "zero_checks"
    after = ("weights", "optimizer")

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None

    def prepare(self, build: Build) -> None:
        """Compares the plan of buckets.

        Raises:
            EngineError: ranks laid parameters out differently.
        """
        self._space = build.space
        if self._space is not None:
            alike = [flat for flat in self._space.groups if flat.replicas.members == self._space.replicas.members]
            slots = [(slot.name, list(slot.shape), slot.start) for flat in alike for slot in flat.layout.slots]
            _compare({"parameters": zlib.crc32(repr(slots).encode())}, self._space, "have different")

    def after_update(self, update: Update) -> None:
        """Compares whole parameters.

        Raises:
            EngineError: they differ between ranks, with the name of the first.
        """
        if self._space is None:
            return
        sums = {}
        for flat in self._space.groups:
            if flat.replicas.members != self._space.replicas.members:
                continue  # other ranks have others of its kind
            for slot, parameter in zip(flat.layout.slots, flat.parameters, strict=True):
                if parameter.is_contiguous() and parameter.numel():
                    sums[slot.name] = checksum(parameter)
        _compare(sums, self._space, f"after step {update.step} hold different values of")


def _compare(sums: dict[str, int], space: UpdateSpace, what: str) -> None:
    rows = comm.gather_json(sums, group=space.group)
    for name in rows[0]:
        odd = [rank for rank, row in enumerate(rows) if row.get(name) != rows[0][name]]
        if odd:
            raise EngineError(
                f"zero_optimization.enable_sanity_checks: rank 0 and ranks {odd} {what} {name!r}; look for parameters "
                "changed on some ranks only, or for models built differently"
            )


class UnusedCheck(Part):
    """Makes a step in which a parameter has no gradient on any rank an error; ``ignore_unused_parameters`` false."""

    name = "zero_unused"
    after = ("gradient_norm",)
    before = ("optimizer",)

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the space."""
        self._space = build.space

    def before_update(self, update: Update) -> None:
        """Looks at which parameters the ranks used.

        Raises:
            EngineError: on all ranks, with the names of the unused parameters.
        """
        if self._space is None or update.used is None:
            return
        unused = [
            slot.name
            for flat, used in zip(self._space.flats, update.used, strict=True)
            for slot, is_used in zip(flat.layout.slots, used, strict=True)
            if not is_used
        ]
        if unused:
            raise EngineError(
                f"step {update.step}: {len(unused)} parameters received no gradient on any rank, first {unused[0]!r}; "
                "freeze them with requires_grad_(False), or set zero_optimization.ignore_unused_parameters to true"
            )


class MastersFromWeights(Part):
    """``load_from_fp32_weights`` false: after a load, masters are the working weights, rounded as those are."""

    name = "zero_masters"
    after = ("optimizer",)
    state_kind = "optimizer"

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the space."""
        self._space = build.space

    def load_state(self, reader: StateReader) -> None:
        """Takes masters from the weights that were loaded before."""
        if self._space is None:
            return
        for flat in self._space.flats:
            for span in self._space.owned(flat):
                values = flat.working(span)
                self._space.replaced(flat, span, torch.full_like(values, float("nan")))
