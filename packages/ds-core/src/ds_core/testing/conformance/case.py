"""What a conformance case is: a function on an accelerator, what it needs of the device, and the promise it checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ds_core.accelerator.contract import Capability

if TYPE_CHECKING:
    from ds_core.testing.conformance.kit import Kit

__all__ = ["NOTHING", "Case", "Group", "Needs"]

Check = Callable[["Kit"], None]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a device must have for a case to say something of it; a device without it has the case filtered.

    Args:
        capabilities: abilities the accelerator must claim. One that is claimed and does not work fails.
        dtypes: names of torch dtypes that `Accelerator.dtypes` must list.
        devices: how many devices the process must see.
        wheels: distributions that must be installed.
        device: False for cases of the wheel itself, which run where its hardware is not.
        kernels: a library of kernels will do in place of a device; see `LibraryBench`.
    """

    capabilities: tuple[Capability, ...] = ()
    dtypes: tuple[str, ...] = ()
    devices: int = 1
    wheels: tuple[str, ...] = ()
    device: bool = True
    kernels: bool = False


NOTHING = Needs()
"""What every usable device has."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Args:
        group: what it is about; with `name` its identity, ``group/name``.
        level: see `ds_core.testing.conformance.levels`.
        contract: the promise it checks, as a line of the contract.
        check: runs it; raises where the promise is broken.
        slowness: how many times the limit of an ordinary case it may take.
    """

    group: str
    name: str
    level: int
    contract: str
    check: Check
    needs: Needs = NOTHING
    slowness: int = 1

    @property
    def id(self) -> str:
        """``group/name``, as `--only` and expected-failure files take it."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True, slots=True)
class Group:
    """The cases of one module, collected by decorating their functions."""

    name: str
    level: int
    cases: list[Case] = field(default_factory=list)

    def case(
        self, contract: str, needs: Needs = NOTHING, *, name: str = "", slowness: int = 1
    ) -> Callable[[Check], Check]:
        """Adds the decorated function, named as the function is unless `name` says another."""

        def add(check: Check) -> Check:
            self.cases.append(
                Case(self.name, name or check.__name__.strip("_"), self.level, contract, check, needs, slowness)
            )
            return check

        return add

    def each(
        self, contract: str, names: Sequence[str], check: Callable[[Kit, str], None], needs: Callable[[str], Needs]
    ) -> None:
        """Adds ``check(kit, name)`` as a case for every name."""
        for name in names:
            self.cases.append(Case(self.name, name, self.level, contract, _bound(check, name), needs(name)))


def _bound(check: Callable[[Kit, str], None], name: str) -> Check:
    return lambda kit: check(kit, name)
