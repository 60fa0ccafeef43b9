"""What an optimizer keeps for each tensor it updates, found by one step of it on tensors of a few elements.

Trying it out is exact for every optimizer, those of other wheels too, and needs no table that could be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ds_core.errors import ConfigError, ModelError
from ds_core.optim import create, is_elementwise
from ds_core.optim.flat import SegmentOptimizer, takes_flat
from ds_core.optim.lazy import PacksStates
from ds_core.optim.precision import implied
from ds_zero.estimate.setup import Setup

__all__ = ["Kept", "States", "find_states"]

PROBE_SIZES = (2, 3, 5, 7, 11, 13, 17, 19)
"""Sizes of the dimensions of a tensor that is tried; all different, so that a state's size says which it follows."""


class Kept(NamedTuple):
    """Bytes kept for one tensor: states that grow with it, and counters that do not."""

    states: int
    counters: int


class _State(NamedTuple):
    """One state tensor: for each dimension, the tensor's dimension it follows or a fixed size; and bytes an element.

    `block` is how many elements of the tensor one of the state stands for; 1 where it follows the shape.
    """

    sizes: tuple[tuple[bool, int], ...]
    itemsize: int
    block: int = 1


Key = tuple[int, int, torch.dtype, Any]
"""Optimizer group, number of dimensions, dtype, and what the tensor's attribute ``use_muon`` says."""


@dataclass(frozen=True, slots=True)
class States:
    """What an optimizer keeps.

    Attributes:
        name: class of the optimizer.
        is_flat: whether it updates flat runs, so that padding has states too.
        by_segment: whether it needs the norms of whole parameters.
    """

    name: str
    is_flat: bool
    by_segment: bool
    _found: dict[Key, tuple[_State, ...]]

    def of(self, group: int, shape: Sequence[int], dtype: torch.dtype, use_muon: Any = None) -> Kept:
        """Bytes kept for a tensor of `shape` in `group`."""
        states = counters = 0
        for state in self._found.get((group, len(shape), dtype, use_muon), ()):
            if state.block > 1:
                states += -(-math.prod(shape) // state.block) * state.itemsize
                continue
            numel = math.prod(shape[size] if follows else size for follows, size in state.sizes)
            if any(follows for follows, _ in state.sizes):
                states += numel * state.itemsize
            else:
                counters += numel * state.itemsize
        return Kept(states, counters)


def find_states(setup: Setup, optimizer: Callable[..., torch.optim.Optimizer] | None = None) -> States | None:
    """What the optimizer of the config, or the one `optimizer` makes, keeps; None when there is none.

    Raises:
        ConfigError: there is no such optimizer, or it cannot be sharded.
        ModelError: it cannot be tried on small tensors.
    """
    section = setup.config["optimizer"]
    if not setup.trainable or (optimizer is None and section.type is None):
        return None
    device = setup.device if setup.places.optimizer == "device" else torch.device("cpu")
    probes = _probes(setup, device)
    groups = [{**group, "params": list(probes[i].values())} for i, group in enumerate(setup.optimizer_groups)]
    groups = [group for group in groups if group["params"]]
    if optimizer is None:
        params, defaults = implied(setup.config, setup.master_dtype)
        made, entry = create(section.type, groups, params, device.type, defaults=defaults)
        by_segment = isinstance(made, SegmentOptimizer)
        elementwise = entry.elementwise or by_segment
    else:
        made = optimizer(groups)
        by_segment = False
        elementwise = bool(is_elementwise(made))
    name = type(made).__name__
    if setup.is_sharded and not elementwise and not setup.config.training.zero_allow_untested_optimizer:
        raise ConfigError(
            f"optimizer {name} is not known to update each element by itself, which sharding relies on; set "
            "zero_allow_untested_optimizer to true if it does, or use zero_optimization.stage 0"
        )
    try:
        made.step()
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise ModelError(
            f"optimizer {name} cannot be tried on small tensors, so its states are not known: {error}"
        ) from error
    found = {key: _states(made, probe) for kinds in probes for key, probe in kinds.items()}
    return States(name, takes_flat(made) and optimizer is None, by_segment, found)


def _probes(setup: Setup, device: torch.device) -> list[dict[Key, torch.nn.Parameter]]:
    """By optimizer group, a small tensor for each kind that is updated: whole parameters, and 1-D runs of them."""
    probes: list[dict[Key, torch.nn.Parameter]] = [{} for _ in setup.optimizer_groups]
    for group in setup.trainable:
        dtype = setup.master_dtype or group.dtype
        for member in group.members:
            use_muon = getattr(member.parameter, "use_muon", None)
            for ndim in {member.parameter.dim(), 1}:
                key = (group.index, ndim, dtype, None if ndim == 1 and member.parameter.dim() != 1 else use_muon)
                if key not in probes[group.index]:
                    probes[group.index][key] = _probe(key, device)
    return probes


def _probe(key: Key, device: torch.device) -> torch.nn.Parameter:
    _, ndim, dtype, use_muon = key
    probe = torch.nn.Parameter(torch.ones(PROBE_SIZES[:ndim], dtype=dtype, device=device))
    probe.grad = torch.ones_like(probe)
    if use_muon is not None:
        probe.use_muon = use_muon  # type: ignore[attr-defined]
    return probe


def _states(optimizer: torch.optim.Optimizer, probe: torch.nn.Parameter) -> tuple[_State, ...]:
    found = []
    block = optimizer.block_size if isinstance(optimizer, PacksStates) else 1
    for value in optimizer.state.get(probe, {}).values():
        if isinstance(value, torch.Tensor):
            sizes = tuple(_size(probe, place, size, value.dim()) for place, size in enumerate(value.shape))
            is_of_blocks = block > 1 and value.dim() > 0 and value.shape != probe.shape
            found.append(_State(sizes, value.element_size(), block if is_of_blocks else 1))
    return tuple(found)


def _size(probe: torch.Tensor, place: int, size: int, ndim: int) -> tuple[bool, int]:
    follows = ndim == probe.dim() and size == probe.shape[place]
    return (follows, place if follows else size)
