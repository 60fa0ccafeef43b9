"""``module.state_dict()`` and ``load_state_dict()`` where ranks divide parameters along an axis of the batch.

Note [Whole or not at all]
    Who calls ``state_dict`` wants to write it: ``save_pretrained``, trainers, scripts. A rank's slices under the names
    and in the place of whole tensors would be lost weights that nobody is told of. So these are put together where
    they are read, by one collective for each tensor, on all ranks that divide it; as parameters that are sharded over
    ranks are. With ``keep_vars=True`` parameters themselves are given, as they are here.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.checkpoint.storage.safetensors_file import DTYPES, NAMES
from ds_core.checkpoint.weights.divided import cut, joined
from ds_core.part import Part

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from ds_core.build import Build
    from ds_core.holdings import Holding, Replicas

__all__ = ["WholeStates"]

State = MutableMapping[str, Any]


class WholeStates(Part):
    """Puts slices together, and adds what siblings hold, around ``state_dict`` of modules that have a part."""

    name = "whole_states"
    after = ("weights",)

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def prepare(self, build: Build) -> None:
        """Hooks on modules with slices, and on those whose children siblings divide."""
        divided = {p: held for p, held in build.holdings.items() if held.siblings and held.siblings.ranks > 1}
        if not divided:
            return
        for module in build.module.modules():
            slices = {name: divided[p] for name, p in module._parameters.items() if p is not None and p in divided}
            sliced = {name: holding for name, holding in slices.items() if holding.shape is not None}
            if sliced:
                self._join(module, sliced)
        named = build.module.named_parameters(remove_duplicate=False)
        spread = {name: divided[p].siblings for name, p in named if p in divided and divided[p].shape is None}
        for siblings in {held.members: held for held in spread.values() if held}.values():
            mine = [name for name, of in spread.items() if of is not None and of.members == siblings.members]
            everyone = comm.gather_json(mine, group=siblings.group)
            for path, missing in _by_container(build.module, mine, everyone).items():
                self._complete(build.module.get_submodule(path), missing, siblings, build.device)

    def _join(self, module: nn.Module, sliced: dict[str, Holding]) -> None:
        def saved(module: nn.Module, state: State, prefix: str, metadata: Any) -> None:
            for name, holding in sliced.items():
                value = state.get(prefix + name)
                if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                    state[prefix + name] = joined(value, holding)

        def loaded(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
            for name, holding in sliced.items():
                value = state.get(prefix + name)
                if isinstance(value, torch.Tensor) and holding.shape is not None and holding.siblings is not None:
                    rows = holding.shape[0] // holding.siblings.ranks
                    state[prefix + name] = cut(value, holding, (rows, *holding.shape[1:]))

        self._handles += [
            module.register_state_dict_post_hook(saved),
            module.register_load_state_dict_pre_hook(loaded),
        ]

    def _complete(self, container: nn.Module, missing: set[str], siblings: Replicas, device: torch.device) -> None:
        """Adds what is under the names that other ranks' modules in `container` have; forgets those in loads."""

        def saved(module: nn.Module, state: State, prefix: str, metadata: Any) -> None:
            held = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            if any(isinstance(value, torch.nn.Parameter) for value in held.values()):
                return
            for name, value in _of_siblings(held, siblings, device):
                state[prefix + name] = value

        def loaded(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
            for name in [name for name in state if name.startswith(prefix)]:
                if name[len(prefix) :].partition(".")[0] in missing:
                    del state[name]

        self._handles += [
            container.register_state_dict_post_hook(saved),
            container.register_load_state_dict_pre_hook(loaded),
        ]

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _by_container(module: nn.Module, mine: Iterable[str], everyone: list[list[str]]) -> dict[str, set[str]]:
    """Names of children that only siblings have, by the path of the module they would be in.

    It is the deepest module that is here; since siblings divide children among them, it is there on all of them.
    """
    paths = {path for path, _ in module.named_modules()}
    here = set(mine)
    found: dict[str, set[str]] = {}
    for name in (name for names in everyone for name in names if name not in here):
        parts = name.split(".")
        depth = max(at for at in range(len(parts)) if ".".join(parts[:at]) in paths)
        found.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
    return dict(sorted(found.items()))


def _of_siblings(held: dict[str, Any], siblings: Replicas, device: torch.device) -> Iterable[tuple[str, torch.Tensor]]:
    """Tensors that other ranks hold and this one does not. Called on all siblings."""
    tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
    rows = [[name, NAMES[value.dtype], list(value.shape)] for name, value in tensors.items()]
    with comm.scope("whole weights"):
        everyone = comm.gather_json(rows, group=siblings.group)
        shared = {name for name, _, _ in everyone[0]}.intersection(*({row[0] for row in each} for each in everyone))
        seen: set[str] = set(shared)
        for owner, each in enumerate(everyone):
            for name, kind, shape in each:
                if name in seen:
                    continue
                seen.add(name)
                whole = torch.empty(shape, dtype=DTYPES[kind], device=device)
                if owner == siblings.rank:
                    whole.copy_(tensors[name])
                comm.broadcast(whole, group=siblings.group, group_src=owner)
                if name not in tensors:
                    yield name, whole
