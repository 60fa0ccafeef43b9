"""Which experts a rank would keep, for plans that start none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from ds_core.hooks import Share
from ds_moe.axis import EXPERT_AXIS
from ds_moe.experts import Experts
from ds_moe.hugging_face.find import find_blocks
from ds_moe.parallel import layers_of

if TYPE_CHECKING:
    from ds_core.config import Config
    from ds_core.mesh import MeshPlan

__all__ = ["shares_of"]


def shares_of(config: Config, model: nn.Module, mesh: MeshPlan, rank: int) -> Iterable[Share]:
    """Shares of `rank` in the experts of layers and of Hugging Face models; none where each rank keeps them all.

    Raises:
        ConversionError: the configuration asks for experts that there are not.
    """
    ranks = mesh.size(EXPERT_AXIS)
    if ranks == 1:
        return
    place = mesh.coords(rank)[EXPERT_AXIS]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for layer in layers_of(model).values():
        if layer.ep_size > 1 and isinstance(layer.experts, Experts):
            yield from _of_modules(list(layer.experts), names, ranks, place)
        elif layer.ep_size > 1:
            yield from (_sliced(names[id(parameter)], ranks) for parameter in layer.experts.parameters())
    section = config["expert_parallel"]
    for block in find_blocks(model, section) if section.enabled and section.autoep_size > 1 else ():
        if block.form is None:
            yield from _of_modules(list(block.experts.children()), names, ranks, place)
        else:
            yield from (_sliced(names[id(getattr(block.experts, name))], ranks) for name in block.form.names)


def _sliced(name: str, ranks: int) -> Share:
    return Share(name, axis=EXPERT_AXIS, slices=ranks)


def _of_modules(experts: Sequence[nn.Module], names: dict[int, str], ranks: int, place: int) -> Iterable[Share]:
    each = len(experts) // ranks
    for number, expert in enumerate(experts):
        for parameter in expert.parameters():
            yield Share(names[id(parameter)], is_kept=number // each == place, axis=EXPERT_AXIS)
