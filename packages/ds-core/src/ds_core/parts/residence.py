"""Residence: moves training state off the device between phases of a program, and back.

``engine.offload_states()`` gives the memory of the chosen kinds of state back to the device and keeps the values in
copies; ``engine.reload_states()`` makes new memory of them. Every tensor stays the object it was. Meanwhile it has its
shape and reads as NaN (`ds_core.placeholder`), and what needs it is refused by an `EngineError`: forwards without the
working weights, backwards without weights or gradients, steps and checkpoints without any of it. So a program may well
generate with the weights while optimizer states are away. Nothing is communicated. Where the model itself is in host
memory its states are copied and given up all the same, so a program behaves alike on every device. What a placement
(`ds_core.placement`) or a sharded space keeps off the device stays there.

Note [By storage]
    Weights, gradients and masters are views of few large buffers. A buffer is copied as a whole, every view of it is
    made a stand-in, which frees the buffer, and later every view is made anew at its old place.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ds_core.accelerator import Capability
from ds_core.errors import EngineError, did_you_mean
from ds_core.part import Part, overrides
from ds_core.placeholder import is_placeholder, placeholder, show
from ds_core.placement import Placement

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from ds_core.build import Build
    from ds_core.engine_api import EngineApi
    from ds_core.parts.optimizer import OptimizerStep
    from ds_core.state import StateReader

__all__ = ["OffloadStateTypeEnum", "Residence", "get_state_devices", "parse_device", "parse_kinds"]


class OffloadStateTypeEnum(str, enum.Enum):
    """Kinds of state that `offload_states` moves."""

    optim_states = "optim_states"
    """What the optimizer keeps of each element, such as moments."""
    hp_params = "hp_params"
    """Master weights in another dtype than the working ones."""
    lp_params = "lp_params"
    """Working weights, or this rank's shards of them; frozen parameters too."""
    lp_grads = "lp_grads"
    """Gradients that have met those of other ranks."""
    contiguous_grad_buffer = "contiguous_grad_buffer"
    """Gradients that have not."""


KINDS = tuple(kind.value for kind in OffloadStateTypeEnum)
WEIGHTS = ("lp_params",)
GRADIENTS = ("lp_grads", "contiguous_grad_buffer")


def parse_kinds(include: Any) -> frozenset[str]:
    """Kinds by value or member, one or several; None is all.

    Raises:
        EngineError: an unknown kind.
    """
    given = KINDS if include is None else [include] if isinstance(include, str) else list(include)
    names = [kind.value if isinstance(kind, enum.Enum) else kind for kind in given]
    for name in names:
        if name not in KINDS:
            raise EngineError(
                f"offload_states: include has {name!r}; allowed are {', '.join(KINDS)}.{did_you_mean(str(name), KINDS)}"
            )
    return frozenset(names)


def parse_device(device: Any) -> torch.device:
    """A device by name, torch.device, or an enum of names.

    Raises:
        EngineError: not a device that holds tensors.
    """
    name = device.value if isinstance(device, enum.Enum) else device
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type == "meta":
        raise EngineError(f"offload_states: device must be 'cpu' or another torch device, got {name!r}")
    return found


def get_state_devices(model: EngineApi, state: OffloadStateTypeEnum | str) -> set[torch.device]:
    """Where the states of one kind are on this rank; empty when there are none."""
    (kind,) = parse_kinds(state)
    return {device for ask in overrides(model.parts, "state_devices") for device in ask(kind)}


@dataclass(slots=True)
class _Away:
    """A buffer that was given up: its kind, its values, where it was, and every view of it."""

    kind: str
    copy: torch.Tensor
    device: torch.device
    views: list[tuple[torch.Tensor, torch.dtype, tuple[int, ...], tuple[int, ...], Any]]


class Residence(Part):
    """First of all parts, so that it refuses before another has begun."""

    name = "residence"
    before = ("clock", "precision")
    state_kind = "always"

    def __init__(self, optimizer: OptimizerStep) -> None:
        self._optimizer = optimizer
        self._build: Build | None = None
        self._away: list[_Away] = []
        self._refusal: RemovableHandle | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the build; what there is to move is only known later."""
        self._build = build

    # --- moving -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def offload_states(
        self, kinds: frozenset[str], device: torch.device, *, pin_memory: bool, non_blocking: bool
    ) -> None:
        """See the module's docstring; kinds that are away already stay where they are."""
        assert self._build is not None
        if not self._build.accelerator.has(Capability.STORAGE_ALIASING):
            raise EngineError(
                f"offload_states: accelerator {self._build.accelerator.name!r} does not tell which tensors share "
                f"memory (capability {Capability.STORAGE_ALIASING.value!r}), so nothing can be moved as a whole; keep "
                "optimizer states on the host all the time with zero_optimization.offload_optimizer"
            )
        for kind in [kind for kind in KINDS if kind in kinds and not self._is_away(kind)]:
            here = [tensor for tensor in self._tensors(kind) if tensor.device == self._build.device]
            for views in _by_storage(here):
                self._away.append(self._put_away(kind, views, device, pin_memory, non_blocking))
        if self._is_away(*WEIGHTS) and self._refusal is None:
            self._refusal = self._build.module.register_forward_pre_hook(self._refuse_forward, prepend=True)

    def _put_away(
        self, kind: str, tensors: Sequence[torch.Tensor], device: torch.device, pin_memory: bool, non_blocking: bool
    ) -> _Away:
        assert self._build is not None
        whole = _whole(tensors[0])
        copy = torch.empty(whole.shape, dtype=whole.dtype, device=device)
        if pin_memory and device.type == "cpu":
            copy = self._build.accelerator.pin(copy)
        copy.copy_(whole, non_blocking=non_blocking)
        away = _Away(kind, copy, whole.device, [])
        for tensor in tensors:
            away.views.append((tensor, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()))
            show(tensor, placeholder(tensor.shape, tensor.dtype, tensor.device))
        return away

    @torch.no_grad()
    def reload_states(self, *, non_blocking: bool) -> None:
        """Makes memory on the devices they came from, and every tensor a view of it as it was."""
        while self._away:
            away = self._away.pop()
            whole = away.copy.to(away.device, non_blocking=non_blocking)
            for tensor, dtype, shape, stride, offset in away.views:
                show(tensor, whole.view(dtype).as_strided(shape, stride, offset))
        if self._refusal is not None:
            self._refusal.remove()
            self._refusal = None

    def state_devices(self, kind: str) -> set[torch.device]:
        """Where copies are, or the tensors."""
        if self._is_away(kind):
            return {away.copy.device for away in self._away if away.kind == kind}
        assert self._build is not None
        if not self._build.accelerator.has(Capability.STORAGE_ALIASING):
            return {tensor.device for tensor in self._tensors(kind) if not is_placeholder(tensor)}
        return {tensor.device for tensor in self._tensors(kind) if _has_memory(tensor)}

    # --- what there is --------------------------------------------------------------------------------------------

    def _tensors(self, kind: str) -> list[torch.Tensor]:
        """Every tensor of the kind that somebody holds on to."""
        assert self._build is not None
        optimizer, pieces, space = self._optimizer.optimizer, self._optimizer.pieces, self._build.space
        if kind in ("optim_states", "hp_params") and type(self._build.placement) is not Placement:
            return []
        if kind == "optim_states":
            states = optimizer.state.values() if optimizer is not None else ()
            return [
                value for state in states for value in state.values() if isinstance(value, torch.Tensor) and value.dim()
            ]
        if kind == "hp_params":
            return [piece.master for piece in pieces if piece.separate]
        flats = space.flats if space is not None else []
        if kind == "lp_grads":
            return [tensor for flat in flats for tensor in flat.gradients.reduced_tensors()]
        if kind == "contiguous_grad_buffer":
            return [tensor for flat in flats for tensor in flat.gradients.local_tensors()]
        found = [tensor for flat in (space.groups if space is not None else []) for tensor in flat.values.tensors()]
        found += self._build.module.parameters()
        return found + [piece.master for piece in pieces if not piece.separate]

    def _is_away(self, *kinds: str) -> bool:
        return any(away.kind in kinds for away in self._away)

    # --- refusals -------------------------------------------------------------------------------------------------

    def require(self, kinds: Iterable[str], *, doing: str) -> None:
        """Raises EngineError when one of `kinds` is away."""
        if not self._away or not self._is_away(*kinds):
            return
        listed = ", ".join(kind for kind in KINDS if self._is_away(kind))
        raise EngineError(
            f"{doing} was called while {listed} {'is' if ',' not in listed else 'are'} offloaded to "
            f"{self._away[0].copy.device}; call engine.reload_states() first"
        )

    def _refuse_forward(self, module: torch.nn.Module, args: Any) -> None:
        self.require(WEIGHTS, doing="forward")

    def before_backward(self) -> None:
        """Refuses without weights or gradients."""
        self.require((*WEIGHTS, *GRADIENTS), doing="backward")

    def before_step(self) -> None:
        """Refuses without any of it."""
        self.require(KINDS, doing="engine.step")

    def reduce_gradients(self) -> None:
        """Refuses without gradients."""
        self.require(GRADIENTS, doing="engine.allreduce_gradients")

    def zero_grad(self) -> None:
        """Gradients that are away are forgotten too."""
        if self._away:
            self._away = [away for away in self._away if away.kind not in GRADIENTS]

    def gathered(self, parameters: Sequence[torch.nn.Parameter]) -> Any:
        """Refuses without weights."""
        self.require(WEIGHTS, doing="gathering parameters")
        return super().gathered(parameters)

    def before_save(self) -> None:
        """Refuses without any of it."""
        self.require(KINDS, doing="engine.save_checkpoint")

    def check_state(self, reader: StateReader) -> None:
        """Refuses without any of it, whatever is to be loaded."""
        self.require(KINDS, doing="engine.load_checkpoint")


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether it is more than a stand-in or a single element."""
    return not is_placeholder(tensor) and tensor.untyped_storage().nbytes() > tensor.element_size()


def _by_storage(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Each tensor once, those over the same memory together."""
    found: dict[int, dict[int, torch.Tensor]] = {}
    for tensor in tensors:
        if _has_memory(tensor):
            found.setdefault(tensor.untyped_storage()._cdata, {})[id(tensor)] = tensor
    return [list(views.values()) for views in found.values()]


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of the memory a tensor is a view of, 1-D."""
    numel = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((numel,), (1,), 0)
