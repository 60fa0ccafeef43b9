"""A rank's share of a model that ranks divide: an outline with what it keeps, and who holds the same.

What is whose the wheels that divide say, by the hook ``ds_shares``; where several say something of one parameter, the
rank keeps what all of them leave it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ds_core.errors import ConfigError, ModelError
from ds_core.holdings import Holding, Replicas

if TYPE_CHECKING:
    from ds_core.config import Config
    from ds_core.hooks import Share
    from ds_core.mesh import MeshPlan
    from ds_core.plugins import PluginManager
    from ds_zero.estimate.shapes import Outline

__all__ = ["Kept", "batch_of", "keep_shares"]


class Kept(NamedTuple):
    """The module whose tree a run on this rank would go through, and holdings of parameters not held by all."""

    module: nn.Module
    holdings: dict[nn.Parameter, Holding]


def batch_of(mesh: MeshPlan, rank: int) -> tuple[tuple[int, ...], int]:
    """World ranks that share the batch with `rank`, and its place among them."""
    members = next(group for group in mesh.groups(*mesh.batch_axes) if rank in group)
    return members, members.index(rank)


def keep_shares(
    sketch: Outline, model: nn.Module, config: Config, mesh: MeshPlan, rank: int, manager: PluginManager
) -> Kept:
    """Leaves `sketch` with what `rank` keeps of `model`.

    Raises:
        ConfigError: nobody says what a rank keeps.
        ModelError: a plugin names a parameter that there is not, or slices that are not even.
    """
    shares: dict[str, list[Share]] = {}
    for given in manager.call("ds_shares", config=config, model=model, mesh=mesh, rank=rank):
        shares.setdefault(given.item.name, []).append(given.item)
    if not shares:
        dividing = ", ".join(f"{axis.name} {axis.size}" for axis in mesh.axes if axis.size > 1)
        raise ConfigError(
            f"the mesh is {dividing}, and no wheel says what a rank keeps of the model (hook ds_shares); update the "
            "wheel that divides it, or estimate a rank's share as a model of its own on the ranks that hold the same"
        )
    originals = dict(model.named_parameters())
    holdings: dict[nn.Parameter, Holding] = {}
    replaced: dict[int, nn.Parameter | None] = {}
    for name, all_of in shares.items():
        if name not in originals:
            raise ModelError(f"a plugin divides parameter {name!r}, which the model does not have")
        twin = sketch.twins[id(originals[name])]
        made = _shared(twin, name, all_of)
        replaced[id(twin)] = made
        if made is None:
            del sketch.twins[id(originals[name])]
            continue
        sketch.twins[id(originals[name])] = made
        members = _holders(mesh, rank, all_of)
        if members != batch_of(mesh, rank)[0]:
            holdings[made] = Holding(Replicas(members, members.index(rank), None, "plan"))
    _replace(sketch.module, replaced)
    return Kept(sketch.module, holdings)


def _shared(twin: nn.Parameter, name: str, shares: list[Share]) -> nn.Parameter | None:
    if not all(share.is_kept for share in shares):
        return None
    rows = twin.shape[0] if twin.dim() else 1
    for share in shares:
        if rows % share.slices:
            raise ModelError(f"{name!r} of shape {tuple(twin.shape)} cannot be cut into {share.slices} equal slices")
        rows //= share.slices
    if not twin.dim() or rows == twin.shape[0]:
        return twin
    values = torch.empty((rows, *twin.shape[1:]), dtype=twin.dtype, device="meta")
    made = nn.Parameter(values, requires_grad=twin.requires_grad)
    made.__dict__.update(vars(twin))
    return made


def _holders(mesh: MeshPlan, rank: int, shares: list[Share]) -> tuple[int, ...]:
    """World ranks with the same values: those of the batch, less those apart along an axis, more those that share."""
    own = mesh.coords(rank)
    apart = {share.axis for share in shares}
    shared = {axis: set(places) for share in shares for axis, places in share.shared.items()}

    def holds(coords: dict[str, int]) -> bool:
        for name, at in coords.items():
            if name in shared and at in shared[name]:
                continue
            if at != own[name] and (name in apart or name not in mesh.batch_axes):
                return False
        return True

    return tuple(other for other in range(mesh.world_size) if holds(mesh.coords(other)))


def _replace(module: nn.Module, replaced: dict[int, nn.Parameter | None]) -> None:
    """Puts what is kept in the place of what was; children of which nothing is left go, with their buffers."""
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and id(parameter) in replaced:
            module._parameters[name] = replaced[id(parameter)]
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        had = next(iter(child.parameters()), None) is not None
        _replace(child, replaced)
        if had and next(iter(child.parameters()), None) is None:
            del module._modules[name]
