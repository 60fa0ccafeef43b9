"""`HostPlacement`: masters, optimizer states and gradients between backwards in host memory; updates made there.

Source: Ren et al., ZeRO-Offload: Democratizing Billion-Scale Model Training (2021), section 4; the share that stays on
the device as in Twin-Flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ds_core.errors import ConfigError
from ds_core.placement import Home, Placement
from ds_zero.offload.cut import split, tiles

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator
    from ds_core.flat import FlatGroup
    from ds_core.gradients import Keep
    from ds_core.masters import MasterPiece
    from ds_core.space import UpdateSpace

__all__ = ["HOST", "HostPlacement", "host_empty"]

HOST = torch.device("cpu")


def host_empty(numel: int, dtype: torch.dtype, accelerator: Accelerator | None) -> torch.Tensor:
    """Host memory, page-locked by `accelerator` where one is given and has a use for that."""
    memory = torch.empty(numel, dtype=dtype)
    return memory if accelerator is None else accelerator.pin(memory)


class HostPlacement(Placement):
    """The first `ratio` of every flat group's owned elements on the host, in tiles; the rest where it was.

    Args:
        ratio: share of the elements that live on the host.
        tile_numel: elements whose rounded values are on their way to the device at a time.
        accelerator: page-locks host memory; None: nothing is.
    """

    device_type = "cpu"
    stores = False

    def __init__(self, *, ratio: float, tile_numel: int, accelerator: Accelerator | None) -> None:
        self._ratio = ratio
        self._tile_numel = tile_numel
        self._accelerator = accelerator
        self._staging: dict[torch.dtype, torch.Tensor] = {}

    def check(self, optimizer: torch.optim.Optimizer, *, is_flat: bool, is_elementwise: bool) -> None:
        """Refuses an optimizer that is not elementwise, for its parameters are cut."""
        if not is_elementwise:
            raise ConfigError(
                f"zero_optimization.offload_optimizer cuts parameters into tiles, and {type(optimizer).__name__} is "
                "not known to update each element by itself; set device to none, or use an elementwise optimizer, for "
                "example AdamW"
            )

    def homes(self, space: UpdateSpace, flat: FlatGroup) -> list[Home]:
        """Tiles on the host, then what stays."""
        away, stays = split(space.owned(flat), self._ratio)
        hosted = [Home(tile, HOST, self.stores) for part in away for tile in tiles(part, self._tile_numel)]
        return hosted + [Home(part) for part in stays]

    def empty(self, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Page-locked where it is host memory."""
        if device != HOST:
            return torch.empty(numel, dtype=dtype, device=device)
        return host_empty(numel, dtype, self._accelerator)

    def staging(self, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """One buffer per dtype, of the largest size asked for."""
        if device != HOST:
            return torch.empty(numel, dtype=dtype, device=device)
        held = self._staging.get(dtype)
        if held is None or held.numel() < numel:
            held = self._staging[dtype] = self.empty(numel, dtype, device)
        return held[:numel]

    def adopt(self, optimizer: torch.optim.Optimizer, pieces: Sequence[MasterPiece], space: UpdateSpace) -> None:
        """Reduced gradients of buckets that are updated on the host alone are kept there."""
        for flat in space.flats:
            updated: dict[int, set[torch.device]] = {}
            for piece in pieces:
                if piece.flat is flat:
                    updated.setdefault(flat.layout.bucket_at(piece.span.start), set()).add(piece.master.device)
            hosted = {index for index, devices in updated.items() if devices == {HOST}}
            if flat.device != HOST and hosted:
                flat.gradients.keep = self._keep(hosted)
                space.exchange.takes_alone = True

    def _keep(self, hosted: set[int]) -> Keep:
        def keep(index: int, reduced: torch.Tensor) -> torch.Tensor:
            if index not in hosted:
                return reduced
            return self.empty(reduced.numel(), reduced.dtype, HOST).copy_(reduced)

        return keep

    def close(self) -> None:
        """Forgets the staging memory."""
        self._staging.clear()
