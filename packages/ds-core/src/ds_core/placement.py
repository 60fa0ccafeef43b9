"""`Placement`: where masters and optimizer states live, and when those of a piece are in memory.

The optimizer part hands its work to `visit`, which runs it on pieces while they are in memory; by default all are,
always, beside the working values. Wheels bring others through ``Build.placement``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ds_core import buffers
from ds_core.layout import Range

if TYPE_CHECKING:
    from ds_core.flat import FlatGroup
    from ds_core.masters import MasterPiece
    from ds_core.space import UpdateSpace
    from ds_core.state import Deferred

__all__ = ["Home", "Placement", "Work"]

Work = Callable[[Sequence["MasterPiece"]], None]
"""What is done with pieces while they are in memory."""


class Home(NamedTuple):
    """Where one piece of an owned range lives.

    Attributes:
        span: range in flat coordinates, within one owned range.
        device: of the master, the states and the update; None: the flat group's.
        is_stored: they are in memory only inside of `Placement.visit`.
    """

    span: Range
    device: torch.device | None = None
    is_stored: bool = False


class Placement:
    """Everything is in memory, on the device of the model, a piece per owned range."""

    device_type: str | None = None
    """Device type the optimizer is chosen for; None: the accelerator's."""

    def check(self, optimizer: torch.optim.Optimizer, *, is_flat: bool, is_elementwise: bool) -> None:
        """Refuses an optimizer that cannot be updated this way.

        Raises:
            ConfigError: it cannot.
        """

    def homes(self, space: UpdateSpace, flat: FlatGroup) -> list[Home]:
        """The owned ranges of `flat`, cut and placed, in order."""
        return [Home(part) for part in space.owned(flat)]

    def empty(self, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for a master, or for values on their way between devices."""
        return buffers.empty(numel, dtype, device)

    def staging(self, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory that is used until `staging` is called again."""
        return self.empty(numel, dtype, device)

    def adopt(self, optimizer: torch.optim.Optimizer, pieces: Sequence[MasterPiece], space: UpdateSpace) -> None:
        """The optimizer drives these pieces from now on; those stored elsewhere take their first values here."""

    def visit(self, pieces: Sequence[MasterPiece], work: Work, *, fetch: bool = True, store: bool = True) -> None:
        """Runs `work` on all of `pieces`, in order, in groups that are in memory together.

        Args:
            pieces: some or all of those adopted.
            work: may read and replace masters and states of the pieces it is given.
            fetch: `work` needs masters and states as they are; else it replaces all of them.
            store: `work` changes them.
        """
        work(pieces)

    def deferred(self, piece: MasterPiece) -> dict[str, Deferred] | None:
        """Master (``""``) and element-shaped states of a piece that is not in memory, by name; None where it is."""
        return None

    def close(self) -> None:
        """Gives memory and files back."""
