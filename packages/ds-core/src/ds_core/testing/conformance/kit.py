"""`Kit`: what a case is handed — the accelerator, its device, a folder — and how it says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ds_core.testing.conformance.lazy import torch
from ds_core.testing.conformance.outcome import Filter

if TYPE_CHECKING:
    from ds_core.accelerator.contract import Accelerator
    from ds_core.hooks import AcceleratorEntry
    from ds_core.plugins import PluginRecord
    from ds_core.testing.conformance.bench import Bench

__all__ = ["Broken", "Filtered", "Kit"]


class Broken(AssertionError):
    """A promise the device does not keep: what was expected of it, and what it did."""

    def __init__(self, expected: str, got: str) -> None:
        self.expected: str = expected
        self.got: str = got
        super().__init__(f"expected {expected}; got {got}")


class Filtered(Exception):
    """Raised by a case that finds out only while it runs that the device lacks what it is about."""

    def __init__(self, reason: Filter) -> None:
        self.reason: Filter = reason
        super().__init__(reason.text)


class Kit:
    """One case's view of the device.

    Attributes:
        bench: the device of this process and what is known of it.
        folder: an empty folder of the case's own.
        notes: remarks for the report.
        figures: numbers for the report.
    """

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench: Bench = bench
        self.folder: Path = folder
        self.notes: list[str] = []
        self.figures: dict[str, float | str] = {}

    @property
    def accelerator(self) -> Accelerator:
        """The accelerator, made at first use."""
        return self.bench.accelerator()

    @property
    def record(self) -> PluginRecord:
        """What is known of its plugin."""
        return self.bench.target.record

    @property
    def entry(self) -> AcceleratorEntry:
        """What its plugin offers."""
        entry = self.bench.target.entry
        if entry is None:
            raise Broken("a plugin that offers the accelerator", self.record.describe())
        return entry

    @property
    def device(self) -> torch.device:
        """The device in use."""
        return self.accelerator.device()

    def expect(self, kept: bool, expected: str, got: object) -> None:
        """Fails the case unless the promise was kept."""
        if not kept:
            raise Broken(expected, got if isinstance(got, str) else repr(got))

    def expect_same(self, found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
        """Fails the case unless both have the same dtype, shape and bits (NaNs count as equal)."""
        found, wanted = self.to_host(found), self.to_host(wanted)
        kinds = (found.dtype, tuple(found.shape)), (wanted.dtype, tuple(wanted.shape))
        self.expect(kinds[0] == kinds[1], f"{what}: {_kind(wanted)}", _kind(found))
        if not torch.equal(found, wanted):
            differ = (found != wanted) & ~((found != found) & (wanted != wanted))
            if bool(differ.any()):
                raise Broken(f"{what}: the same values", _difference(found, wanted, differ))

    def expect_close(self, found: torch.Tensor, wanted: torch.Tensor, what: str, bound: float) -> None:
        """Fails the case unless every element is within `bound` of the largest finite magnitude of `wanted`."""
        found, wanted = self.to_host(found), self.to_host(wanted)
        self.expect(found.shape == wanted.shape, f"{what}: shape {tuple(wanted.shape)}", tuple(found.shape))
        if not wanted.numel():
            return
        found, wanted = found.double(), wanted.double()
        finite = wanted[wanted.isfinite()].abs()
        allowed = bound * max(float(finite.max()) if finite.numel() else 0.0, 1e-30)
        near = ((found - wanted).abs() <= allowed) | (found == wanted) | (found.isnan() & wanted.isnan())
        if not bool(near.all()):
            told = _difference(found, wanted, ~near)
            raise Broken(f"{what}: within {bound:g} of the largest magnitude ({allowed:g})", told)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A detached host tensor."""
        return tensor.detach().to("cpu")

    def lacks(self, kind: str, missing: str, text: str) -> NoReturn:
        """Ends the case: it says nothing of this device. See `Filter`."""
        raise Filtered(Filter(kind, missing, text))

    def note(self, text: str) -> None:
        """Adds a remark to the report."""
        self.notes.append(text)


def _kind(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _difference(found: torch.Tensor, wanted: torch.Tensor, differ: torch.Tensor) -> str:
    at = int(differ.reshape(-1).nonzero()[0])
    return (
        f"{int(differ.sum())} of {found.numel()} differ, the first at {at}: "
        f"{found.reshape(-1)[at].item()!r} instead of {wanted.reshape(-1)[at].item()!r}"
    )
