"""Hooks on modules: what tells the coordinator that a unit is needed, or not any more.

Note [Three ways to notice a need]
    1. The unit's module is called: its parameters are gathered before its forward and released after it.
    2. A parameter is read off a module it is registered on (``other.weight``) while a pass is on: gathered at once.
    3. Autograd unpacks a tensor it saved, see `saved`: backward cannot read a parameter that is not there.
    The second and third need no list of modules from the user; the first is what makes them rare.

Note [Hooks and the compiler]
    A compiled module runs its hooks under the compiler's eye; the attribute below keeps them out of compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ds_zero.sharded.coordinator import Coordinator, Phase
from ds_zero.sharded.saved import SavedTensors
from ds_zero.sharded.unit import GatherUnit, UnitState

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["ModuleHooks"]


class _WatchedParameters(dict[str, Any]):
    """A module's parameters; reading one of a unit that is not gathered gathers it, while a pass is on."""

    def __init__(self, parameters: dict[str, Any], units: dict[str, GatherUnit], touch: Callable[..., None]) -> None:
        super().__init__(parameters)
        self._units = units
        self._touch = touch

    def __getitem__(self, name: str) -> Any:
        unit = self._units.get(name)
        if unit is not None and unit.state is not UnitState.GATHERED:
            self._touch(unit)
        return super().__getitem__(name)


class ModuleHooks:
    """Attaches a coordinator to a module tree.

    Args:
        root: the model.
        coordinator: is told.
        unit_of: the unit of each parameter, by id; parameters that stay whole are absent.
    """

    def __init__(self, root: nn.Module, coordinator: Coordinator, unit_of: dict[int, GatherUnit]) -> None:
        self._root = root
        self._coordinator = coordinator
        self._unit_of = unit_of
        self._tensors = SavedTensors(coordinator, unit_of)
        self._handles: list[RemovableHandle] = []
        self._watched: list[tuple[nn.Module, dict[str, Any]]] = []
        self._external: dict[tuple[int, int], list[RemovableHandle]] = {}
        self._saving: list[torch.autograd.graph.saved_tensors_hooks | None] = []
        self._guests: list[list[GatherUnit]] = []
        self._attach()

    def _attach(self) -> None:
        for module in self._root.modules():
            self._watch(module)
        for unit in self._coordinator.units:
            self._on_module(self._root.get_submodule(unit.plan.path), unit)
        for path, module in self._root.named_modules():
            for parameter in module.parameters(recurse=False):
                other = self._unit_of.get(id(parameter))
                if other is not None and not _is_inside(path, other.plan.path):
                    self._on_module(module, other)
        # Prepended, so that a pass begins before the root's own unit is needed; and ends after it is done with.
        self._handles.append(self._root.register_forward_pre_hook(_plain(self._enter), prepend=True))
        self._handles.append(self._root.register_forward_hook(_plain(self._leave), always_call=True))

    def _watch(self, module: nn.Module) -> None:
        units = {
            name: self._unit_of[id(parameter)]
            for name, parameter in module.named_parameters(recurse=False)
            if id(parameter) in self._unit_of
        }
        if units:
            before = module._parameters
            module._parameters = _WatchedParameters(before, units, self._touch)
            self._watched.append((module, before))

    def _on_module(self, module: nn.Module, unit: GatherUnit) -> list[RemovableHandle]:
        coordinator = self._coordinator

        def before(module: nn.Module, args: Any) -> None:
            coordinator.need(unit)
            unit.depth += 1
            self._guests.append([])

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not unit.depth:
                return  # an aborted pass has forgotten it
            unit.depth -= 1
            guests = self._guests.pop() if self._guests else []
            for one in (unit, *guests):
                coordinator.done(one)

        handles = [
            module.register_forward_pre_hook(_plain(before)),
            module.register_forward_hook(_plain(after), always_call=True),
        ]
        self._handles += handles
        return handles

    def _touch(self, unit: GatherUnit) -> None:
        """A parameter was read off its module. Outside of a pass that may happen on one rank only, and is harmless."""
        if self._coordinator.phase is Phase.OUTSIDE:
            return
        self._coordinator.need(unit)
        if self._guests:
            self._guests[-1].append(unit)

    def add_external(self, module: nn.Module, unit: GatherUnit) -> None:
        """Gathers `unit` for every forward of `module`."""
        self._external.setdefault((id(module), unit.index), []).extend(self._on_module(module, unit))

    def remove_external(self, module: nn.Module, unit: GatherUnit) -> None:
        """Undoes `add_external`."""
        for handle in self._external.pop((id(module), unit.index), []):
            handle.remove()

    # --- passes -------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._coordinator.phase is not Phase.OUTSIDE:
            self._saving.append(None)  # recomputed inside a backward, or called by itself
            return
        with_graph = torch.is_grad_enabled()
        self._coordinator.begin(Phase.FORWARD if with_graph else Phase.READING)
        saving = self._tensors.hooks() if with_graph else None
        if saving is not None:
            saving.__enter__()
        self._saving.append(saving)
        self._guests = []

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._saving:
            return
        saving = self._saving.pop()
        if saving is not None:
            saving.__exit__()
        if self._saving or self._coordinator.phase not in (Phase.FORWARD, Phase.READING):
            return
        if output is None and _is_raising():
            self._coordinator.abort()
        else:
            self._coordinator.end()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Reading a parameter off its module gathers nothing inside."""
        phase, self._coordinator.phase = self._coordinator.phase, Phase.OUTSIDE
        try:
            yield
        finally:
            self._coordinator.phase = phase

    def close(self) -> None:
        """Removes every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module, before in self._watched:
            before.update(dict.items(module._parameters))
            module._parameters = before
        self._watched.clear()


def _plain(hook: Callable[..., Any]) -> Callable[..., Any]:
    """See Note [Hooks and the compiler]."""

    def call(*args: Any) -> Any:
        return hook(*args)

    call.__dict__["_torchdynamo_disable"] = True
    return call


def _is_inside(path: str, owner: str) -> bool:
    return not owner or path == owner or path.startswith(f"{owner}.")


def _is_raising() -> bool:
    import sys

    return sys.exc_info()[0] is not None
