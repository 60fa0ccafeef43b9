"""Full and local values of what is sharded: fp32 weights, gradients and optimizer states of one parameter, any stage.

``full`` functions are called on all data-parallel ranks with the same arguments; each is one all-gather, or none where
every rank has everything. ``local`` functions communicate nothing: they see the part of the parameter this rank
updates, 1-D, which is all of it where nothing is sharded and may be empty. Values returned are copies, in float32 (or
float64 for a float64 model). Call them between steps, not inside of a forward or backward.

Note [Reading gradients changes nothing]
    Stages reduce at different times: some in each backward, some in the step. A reader gets the averaged, unscaled
    gradient before clipping in any case; where gradients have not met yet, a copy is reduced for the reader, in the
    order the step will use, and what the step reduces stays as it is. So reading is allowed after every micro-batch and
    never changes a number of the training.

Note [Setting gradients reduces them]
    A full gradient can be set after the last backward of a step: gradients are reduced first, as by
    ``engine.allreduce_gradients()``, and the step uses what was set. A further backward before the step is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ds_core.assembly import assemble, full_gradients
from ds_core.errors import EngineError, ModelError
from ds_core.parts.inspection import Inspection, Spot, StatePart, inspection_of

__all__ = [
    "safe_get_full_fp32_param",
    "safe_get_full_grad",
    "safe_get_full_optimizer_state",
    "safe_get_local_fp32_param",
    "safe_get_local_grad",
    "safe_get_local_optimizer_state",
    "safe_set_full_fp32_param",
    "safe_set_full_grad",
    "safe_set_full_optimizer_state",
    "safe_set_local_fp32_param",
    "safe_set_local_grad",
    "safe_set_local_optimizer_state",
    "safe_update_full_grad_vectorized",
]

Parameter = torch.nn.Parameter

WEIGHTS = ("hp_params", "lp_params")
GRADIENTS = ("lp_grads", "contiguous_grad_buffer")
STATES = ("optim_states",)
"""Kinds of state that must not be offloaded; see `ds_core.parts.residence`."""

MISSING, UNMADE = 1, 2
"""What a rank says of an optimizer state: there is none of this name, or there is none yet."""


# --- weights ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def safe_get_full_fp32_param(param: Parameter) -> torch.Tensor:
    """The master weight, full; the working weight where nothing finer is kept, as for frozen parameters."""
    home, spot = _find(param, WEIGHTS, "safe_get_full_fp32_param")
    if spot is None:
        return _copy(param.data, param.device)
    return assemble(home, [spot], [home.master(spot)]).values[0].view(param.shape)


@torch.no_grad()
def safe_set_full_fp32_param(param: Parameter, value: torch.Tensor) -> None:
    """Sets the master weight, and the working weight to it rounded, on all ranks; no communication.

    Args:
        param: of an engine's module.
        value: in the parameter's shape, any dtype and device; equal on all ranks.

    Raises:
        ModelError: another shape, or a parameter of no engine.
    """
    home, spot = _find(param, WEIGHTS, "safe_set_full_fp32_param")
    values = _checked(value, tuple(param.shape), param, "safe_set_full_fp32_param")
    if spot is None:
        param.data.copy_(values.view(param.shape))
        return
    home.set_master(spot, home.cut(spot, values))
    home.set_whole(spot, values)


@torch.no_grad()
def safe_get_local_fp32_param(param: Parameter) -> torch.Tensor:
    """This rank's part of the master weight, 1-D."""
    home, spot = _find(param, WEIGHTS, "safe_get_local_fp32_param")
    return _copy(param.data.reshape(-1) if spot is None else home.master(spot), param.device)


@torch.no_grad()
def safe_set_local_fp32_param(param: Parameter, value: torch.Tensor) -> None:
    """Sets this rank's part of the master weight and rounds it into this rank's part of the working weight.

    Where working weights are whole on every rank (stages 1 and 2, small parameters at stage 3) the other ranks see the
    new part after the next step; `safe_set_full_fp32_param` has no such delay.
    """
    home, spot = _find(param, WEIGHTS, "safe_set_local_fp32_param")
    part = home.own(spot) if spot is not None else None
    numel = param.numel() if spot is None else 0 if part is None else part.numel
    values = _checked(value, (numel,), param, "safe_set_local_fp32_param")
    if spot is None:
        param.data.copy_(values.view(param.shape))
    else:
        home.set_master(spot, values)


# --- optimizer states -----------------------------------------------------------------------------------------------


@torch.no_grad()
def safe_get_full_optimizer_state(param: Parameter, optim_state_key: str) -> torch.Tensor | None:
    """A state such as ``exp_avg``, full, in the parameter's shape; before the first step what that would start from.

    Returns:
        None for parameters that no optimizer updates, and before the first step of an optimizer that makes its states
        of gradients (SGD's momentum) or is not known to make them ahead.

    Raises:
        ModelError: there is no such state; the message lists those there are.
    """
    home, spot = _find(param, STATES, "safe_get_full_optimizer_state")
    if spot is None or not home.has_states(spot):
        return None
    state, flag, error = _state(home, spot, optim_state_key)
    if home.is_whole(spot):
        if not _is_made([flag], error, optim_state_key, spot) or state is None:
            return None
        return _copy(state.values.view(param.shape) if state.is_elementwise else state.values, param.device)
    values, flags = assemble(home, [spot], [_nothing(spot) if state is None else state.values], [flag])
    return values[0].view(param.shape) if _is_made(flags[0], error, optim_state_key, spot) else None


@torch.no_grad()
def safe_set_full_optimizer_state(param: Parameter, value: torch.Tensor, optim_state_key: str) -> None:
    """Sets a state; before the first step the others are made as that would start from.

    Raises:
        ModelError: no such state, another shape, or a parameter that no optimizer updates.
        EngineError: the optimizer makes its states in its first step.
    """
    doing = "safe_set_full_optimizer_state"
    home, spot = _find_trained(param, STATES, doing)
    state, flag, error = _state(home, spot, optim_state_key)
    flags = [flag] if home.is_whole(spot) else assemble(home, [spot], [None], [flag]).flags[0]
    if not _is_made(flags, error, optim_state_key, spot) or state is None:
        raise _unmade(spot, doing)
    shape = param.shape if state.is_elementwise else state.values.shape
    values = _checked(value, tuple(shape), param, doing)
    home.set_state(spot, optim_state_key, home.cut(spot, values) if state.is_elementwise else values.view(shape))


@torch.no_grad()
def safe_get_local_optimizer_state(param: Parameter, optim_state_key: str) -> torch.Tensor | None:
    """This rank's part of a state, 1-D; None and errors as in `safe_get_full_optimizer_state`."""
    home, spot = _find(param, STATES, "safe_get_local_optimizer_state")
    state = home.state(spot, optim_state_key) if spot is not None and home.has_states(spot) else None
    return None if state is None else _copy(state.values, param.device)


@torch.no_grad()
def safe_set_local_optimizer_state(param: Parameter, value: torch.Tensor, optim_state_key: str) -> None:
    """Sets this rank's part of a state; errors as in `safe_set_full_optimizer_state`."""
    doing = "safe_set_local_optimizer_state"
    home, spot = _find_trained(param, STATES, doing)
    state = home.state(spot, optim_state_key)
    if state is None:
        raise _unmade(spot, doing)
    values = _checked(value, tuple(state.values.shape), param, doing)
    home.set_state(spot, optim_state_key, values.view(state.values.shape))


def _state(home: Inspection, spot: Spot, key: str) -> tuple[StatePart | None, int, ModelError | None]:
    """This rank's part, what to say to the other ranks, and the error to raise when they have been told."""
    try:
        state = home.state(spot, key)
    except ModelError as error:
        return None, MISSING, error
    return state, UNMADE if state is None else 0, None


def _is_made(flags: list[int], error: ModelError | None, key: str, spot: Spot) -> bool:
    """Whether all ranks have their states.

    Raises:
        ModelError: a rank found no such state.
    """
    if error is not None:
        raise error
    if MISSING in flags:
        rank = flags.index(MISSING)
        raise ModelError(f"rank {rank} has no optimizer state {key!r} for {spot.slot.name!r} and lists what there is")
    return UNMADE not in flags


def _unmade(spot: Spot, doing: str) -> EngineError:
    return EngineError(
        f"{doing}: the optimizer makes the states of {spot.slot.name!r} in its first step; call engine.step() first"
    )


def _nothing(spot: Spot) -> torch.Tensor:
    return torch.empty(0, dtype=torch.float32, device=spot.flat.device)


# --- gradients ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def safe_get_full_grad(param: Parameter) -> torch.Tensor | None:
    """The gradient of the step so far, averaged over ranks, unscaled, before clipping.

    See Note [Reading gradients changes nothing].

    Returns:
        None before the first backward of a step, for parameters that received no gradient on any rank, and for those
        no optimizer updates.
    """
    home, spot = _find(param, GRADIENTS, "safe_get_full_grad")
    return None if spot is None else full_gradients(home, [spot])[0]


@torch.no_grad()
def safe_set_full_grad(param: Parameter, value: torch.Tensor) -> None:
    """Makes `value` the averaged, unscaled gradient that the step uses; clipping still applies.

    See Note [Setting gradients reduces them]. It is kept in the dtype gradients accumulate in.

    Raises:
        EngineError: before the last backward of the step.
        ModelError: another shape, a value gradients cannot hold, or a parameter that no optimizer updates.
    """
    doing = "safe_set_full_grad"
    home, spot = _find_trained(param, GRADIENTS, doing)
    values = _checked(value, tuple(param.shape), param, doing)
    _check_backward(home, spot, doing)
    home.reduce(doing=doing)
    home.set_reduced(spot, home.cut(spot, home.stored(spot, values, doing=doing)))


@torch.no_grad()
def safe_get_local_grad(param: Parameter) -> torch.Tensor | None:
    """This rank's part of the averaged, unscaled gradient, 1-D; None before the first backward of a step.

    Raises:
        EngineError: gradients have not met those of other ranks yet.
    """
    home, spot = _find(param, GRADIENTS, "safe_get_local_grad")
    if spot is None or spot.flat.is_frozen or not home.has_gradients(spot):
        return None
    if spot.flat.replicas.ranks == 1:
        full = full_gradients(home, [spot])[0]
        return None if full is None else full.view(-1)
    _check_met(home, spot, "safe_get_local_grad")
    return _copy(home.reduced(spot), param.device).mul_(home.grad_factor)


@torch.no_grad()
def safe_set_local_grad(param: Parameter, value: torch.Tensor) -> None:
    """Makes `value` this rank's part of the averaged, unscaled gradient that the step uses.

    Raises:
        EngineError: gradients have not met those of other ranks yet.
    """
    doing = "safe_set_local_grad"
    home, spot = _find_trained(param, GRADIENTS, doing)
    part = home.own(spot)
    values = _checked(value, (0 if part is None else part.numel,), param, doing)
    _check_backward(home, spot, doing)
    if spot.flat.replicas.ranks == 1:
        home.reduce(doing=doing)
    else:
        _check_met(home, spot, doing)
    home.set_reduced(spot, home.stored(spot, values, doing=doing))


@torch.no_grad()
def safe_update_full_grad_vectorized(param_list: Sequence[Parameter], update_func: Callable[..., Any]) -> None:
    """Replaces the gradients of many parameters, gathered together: ``g = update_func(g, param)`` for each.

    Args:
        param_list: parameters of one or more engines; those without a gradient are passed over.
        update_func: takes the full gradient as `safe_get_full_grad` gives it and, if it must be given two arguments,
            the parameter; returns the new one, or None for the one it was given, changed in place. Must do the same
            on all ranks.

    Raises:
        EngineError, ModelError: as `safe_set_full_grad`.
    """
    doing = "safe_update_full_grad_vectorized"
    takes_parameter = _arguments(update_func) > 1
    found: dict[int, tuple[Inspection, list[Spot]]] = {}
    for param in param_list:
        home, spot = _find(param, GRADIENTS, doing)
        if spot is not None and not spot.flat.is_frozen and home.has_gradients(spot):
            found.setdefault(id(home), (home, []))[1].append(spot)
    for home, spots in found.values():
        home.reduce(doing=doing)
        for spot, gradient in zip(spots, full_gradients(home, spots), strict=True):
            if gradient is not None:
                param = spot.flat.parameters[spot.place]
                answer = update_func(gradient, param) if takes_parameter else update_func(gradient)
                values = _checked(gradient if answer is None else answer, tuple(param.shape), param, doing)
                home.set_reduced(spot, home.cut(spot, home.stored(spot, values, doing=doing)))


def _arguments(function: Callable[..., Any]) -> int:
    """How many arguments it must be given, or can be where it takes any number."""
    try:
        listed = list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin, which does not say
        return 1
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in listed):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in listed)


def _check_backward(home: Inspection, spot: Spot, doing: str) -> None:
    if not home.has_gradients(spot):
        raise EngineError(f"{doing}: there was no backward since the last step; call it between backward and step")


def _check_met(home: Inspection, spot: Spot, doing: str) -> None:
    gradients = spot.flat.gradients
    if spot.slot.numel and (not gradients.is_reduced(spot.bucket) or gradients.has_incoming(spot.bucket)):
        raise EngineError(
            f"{doing}: the gradients of {spot.slot.name!r} have not met those of the other ranks, which happens in "
            "step() below zero_optimization.stage 2; call engine.allreduce_gradients() first, or use safe_get_full_grad"
        )


# --- common -------------------------------------------------------------------------------------------------------


def _find(param: Parameter, kinds: Sequence[str], doing: str) -> tuple[Inspection, Spot | None]:
    home = inspection_of(param)
    home.residence.require(kinds, doing=doing)
    return home, home.spot(param)


def _find_trained(param: Parameter, kinds: Sequence[str], doing: str) -> tuple[Inspection, Spot]:
    """Raises ModelError where no optimizer updates the parameter."""
    home, spot = _find(param, kinds, doing)
    if spot is None or not home.has_states(spot):
        name = f" {spot.slot.name!r}" if spot is not None else f" of shape {tuple(param.shape)}"
        raise ModelError(f"{doing}: no optimizer updates the parameter{name}; it has neither gradients nor states")
    return home, spot


def _checked(value: Any, shape: tuple[int, ...], param: Parameter, doing: str) -> torch.Tensor:
    """The values, 1-D, wide, where the parameter is.

    Raises:
        ModelError: not a tensor of `shape`.
    """
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ModelError(f"{doing}: the value must be a tensor of shape {shape}, got {got}")
    dtype = torch.promote_types(param.dtype, torch.float32)
    return value.detach().to(device=param.device, dtype=dtype).reshape(-1)


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.detach().to(device=device, dtype=torch.promote_types(tensor.dtype, torch.float32), copy=True)
