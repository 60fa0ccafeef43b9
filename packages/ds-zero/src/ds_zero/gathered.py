"""`GatheredParameters`: full values of parameters inside a context, to read or to change.

Note [Who changed what]
    With `modifier_rank` that rank's values are broadcast on the way out. Without it a change is accepted when every
    rank made the same one, which is checked; it never goes lost in silence. Finer copies (fp32 masters) follow where
    values changed and keep their precision where they did not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ds_core import comm
from ds_core.errors import ModelError
from ds_core.layout import Range, intersect
from ds_zero.construct import Recording
from ds_zero.partitioned import agree_on_changes, gathered_pieces

if TYPE_CHECKING:
    from ds_core.flat import FlatGroup
    from ds_core.space import UpdateSpace

__all__ = ["GatheredParameters", "full_values", "own", "owner_of", "register_external_parameter"]
__all__ += ["unregister_external_parameter", "unwrap_model_for_generation"]

_OWNERS: Any = WeakIdKeyDictionary()
"""The space that keeps each parameter's values, while its engine lives."""


def own(space: UpdateSpace) -> None:
    """Notes that `space` keeps its parameters."""
    for flat in space.groups:
        for parameter in flat.parameters:
            _OWNERS[parameter] = space


def disown(space: UpdateSpace) -> None:
    """Forgets `space`."""
    for flat in space.groups:
        for parameter in flat.parameters:
            if _OWNERS.get(parameter) is space:
                del _OWNERS[parameter]


def owner_of(parameter: torch.nn.Parameter) -> UpdateSpace | None:
    """The space that keeps `parameter`, or None."""
    space: UpdateSpace | None = _OWNERS.get(parameter)
    return space


def _listed(params: Any) -> list[torch.nn.Parameter]:
    if isinstance(params, torch.Tensor):
        return [params]  # type: ignore[list-item]
    if isinstance(params, torch.nn.Module):
        return list(params.parameters())
    return list(dict.fromkeys(params))


@contextmanager
def GatheredParameters(
    params: Any,
    modifier_rank: int | None = None,
    fwd_module: torch.nn.Module | None = None,
    enabled: bool = True,
) -> Iterator[None]:
    """Full values of `params` inside the context, at any stage. Enter and leave it on all ranks.

    Args:
        params: a parameter, an iterable of them, or a module.
        modifier_rank: data-parallel rank whose changes count; None: every rank makes the same ones, or none.
        fwd_module: also gather `params` for every forward of this module from now on.
        enabled: False does nothing.

    Raises:
        ModelError: ranks changed a parameter differently and no `modifier_rank` says whose change counts.
    """
    if not enabled:
        yield
        return
    members = _listed(params)
    if Recording.active() is not None:  # under Init: what is done to parameters is recorded with their construction
        yield
        return
    if fwd_module is not None:
        for parameter in members:
            register_external_parameter(fwd_module, parameter)
    with ExitStack() as stack:
        stack.enter_context(gathered_pieces(members, modifier_rank))
        for space in {id(s): s for s in map(owner_of, members) if s is not None}.values():
            mine = [p for p in members if owner_of(p) is space]
            stack.enter_context(_editing(space, mine, modifier_rank))
        yield


@contextmanager
def _editing(space: UpdateSpace, members: Sequence[torch.nn.Parameter], modifier_rank: int | None) -> Iterator[None]:
    before = [_owned_values(space, parameter) for parameter in members]
    versions: list[int] = []
    with full_values(space, members, keep=lambda: _agree(space, members, versions, modifier_rank)):
        versions.extend(parameter._version for parameter in members)
        yield
    for flat, span, values in (row for rows in before for row in rows):
        if not torch.equal(flat.working(span), values):
            space.replaced(flat, span, values)


def _owned_values(space: UpdateSpace, parameter: torch.nn.Parameter) -> list[tuple[FlatGroup, Range, torch.Tensor]]:
    """Copies of what this rank updates of `parameter`."""
    flat, place = space.places[id(parameter)]
    if flat.is_frozen:
        return []
    slot = flat.layout.slots[place]
    parts = (intersect(span, slot.start, slot.stop) for span in space.owned(flat))
    return [(flat, part, flat.working(part).clone()) for part in parts if part is not None]


def full_values(space: UpdateSpace, members: Iterable[torch.nn.Parameter], *, keep: Any = lambda: False) -> Any:
    """A context in which `members` are whole; `keep` is asked on the way out whether changes stay."""
    from ds_zero.sharded.space import PartitionedSpace

    if not isinstance(space, PartitionedSpace):
        return _whole_already(keep)
    found = {space.unit_of[id(p)].index: space.unit_of[id(p)] for p in members if id(p) in space.unit_of}
    return space.gathered([found[index] for index in sorted(found)], keep=keep)


@contextmanager
def _whole_already(keep: Any) -> Iterator[None]:
    yield
    keep()


def _agree(
    space: UpdateSpace, members: Sequence[torch.nn.Parameter], versions: list[int], modifier_rank: int | None
) -> bool:
    """Makes the change the same on all ranks; whether there is one."""
    by_holders: dict[tuple[int, ...], list[int]] = {}
    for index, parameter in enumerate(members):
        by_holders.setdefault(space.places[id(parameter)][0].replicas.members, []).append(index)
    changed = False
    for places in by_holders.values():
        some = [members[index] for index in places]
        changed |= _agree_among(space, some, [versions[index] for index in places], modifier_rank)
    return changed


def _agree_among(
    space: UpdateSpace, members: Sequence[torch.nn.Parameter], versions: list[int], modifier_rank: int | None
) -> bool:
    """As `_agree`, for parameters of the same replicas; `modifier_rank` counts round where these are fewer."""
    holders = space.places[id(members[0])][0].replicas
    if holders.ranks == 1:
        return True
    if modifier_rank is not None:
        with comm.scope("modified parameters"), torch.no_grad():
            for parameter in members:
                comm.broadcast(parameter.data, src=holders.members[modifier_rank % holders.ranks], group=holders.group)
        return True

    def name(index: int) -> str:
        flat, place = space.places[id(members[index])]
        return repr(flat.layout.slots[place].name)

    return agree_on_changes(members, versions, holders.group, name)


@contextmanager
def unwrap_model_for_generation(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The module of an engine (or a module) with all its parameters whole, so that ``generate`` gathers nothing.

    Without it generation works too, and gathers every unit for every token. Enter and leave it on all ranks.
    """
    module = getattr(model, "module", model)
    with GatheredParameters(list(module.parameters())):
        yield module


def register_external_parameter(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    """Gathers `parameter` for every forward of `module`, which uses it without owning it.

    Only needed where `module` does not read it off the module that owns it, which is noticed by itself.

    Raises:
        ModelError: `parameter` belongs to no engine.
    """
    _external(module, parameter, add=True)


def unregister_external_parameter(module: torch.nn.Module, parameter: torch.nn.Parameter) -> None:
    """Undoes `register_external_parameter`."""
    _external(module, parameter, add=False)


def _external(module: torch.nn.Module, parameter: torch.nn.Parameter, *, add: bool) -> None:
    from ds_zero.sharded.space import PartitionedSpace

    if not isinstance(parameter, torch.nn.Parameter):
        raise ModelError(f"an external parameter must be a torch.nn.Parameter, got {type(parameter).__name__}")
    space = owner_of(parameter)
    if space is None:
        raise ModelError(
            f"the parameter of shape {tuple(parameter.shape)} belongs to no engine; call ds_core.initialize first"
        )
    if isinstance(space, PartitionedSpace) and id(parameter) in space.unit_of:
        change = space.hooks.add_external if add else space.hooks.remove_external
        change(module, space.unit_of[id(parameter)])
