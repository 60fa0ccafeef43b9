"""Applies the model-to-model transforms of installed wheels, in their declared order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ds_core.errors import PluginError
from ds_core.ordering import declared_order

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.hooks import TransformEntry
    from ds_core.plugins import Provided

__all__ = ["apply_transforms"]


def apply_transforms(build: Build) -> torch.nn.Module:
    """The module after every transform.

    Raises:
        PluginError: two transforms share a name, conflict, or declare a circle; or one does not return a module.
    """
    provided: dict[str, Provided[TransformEntry]] = {}
    for given in build.manager.call("ds_transforms", build=build):
        other = provided.setdefault(given.item.name, given)
        if other is not given:
            raise PluginError(
                f"two wheels bring a transform {given.item.name!r}: {other.record.id} and {given.record.id}; "
                "disable one with DS_PLUGINS_DISABLE"
            )
    module = build.module
    for name in declared_order({name: given.item for name, given in provided.items()}, "transform"):
        result: Any = provided[name].item.apply(module, build)
        if not isinstance(result, torch.nn.Module):
            raise PluginError(f"transform {name!r} of {provided[name].record.id} returned {type(result).__name__}")
        module = result
    return module
