"""Muon for the matrices of a model and AdamW for everything else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ds_core.errors import ConfigError, ModelError
from ds_core.optim.groups import normalize
from ds_core.optim.newton_schulz import COEFFICIENTS, Method, batches, orthogonalize

__all__ = ["Muon", "MuonWithAuxAdam", "wants_muon"]


def wants_muon(tensor: torch.Tensor) -> bool:
    """Whether Muon updates the tensor: its attribute ``use_muon`` where set, else whether it is a matrix.

    Muon is meant for the hidden matrices; set ``use_muon = False`` on embeddings and the output layer.
    Source: K. Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024).
    """
    marked = getattr(tensor, "use_muon", None)
    return tensor.ndim == 2 if marked is None else bool(marked)


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` with matrices of equal shape orthogonalized together, in the best matrix product there is.

    States and hyperparameters are torch's; on one matrix, where bfloat16 is native, so are the results to the bit.

    Args:
        params: matrices, named matrices or group dicts.
        lr: learning rate; the rule `adjust_lr_fn` multiplies it by a factor of the shape.
        weight_decay: decoupled.
        momentum: decay rate of the averaged gradient.
        nesterov: look ahead along the momentum.
        ns_coefficients: of the iteration, see `ds_core.optim.newton_schulz`.
        eps: smallest norm that is divided by.
        ns_steps: iterations.
        ns_method: ``"standard"`` or ``"gram"``, see `orthogonalize`.
        adjust_lr_fn: None or ``"original"``: ``sqrt(max(1, rows / columns))``; ``"match_rms_adamw"``:
            ``0.2 sqrt(max(rows, columns))``.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        ns_method: Method = "standard",
        adjust_lr_fn: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": tuple(ns_coefficients),
            "eps": eps,
            "ns_steps": ns_steps,
            "ns_method": ns_method,
            "adjust_lr_fn": adjust_lr_fn,
        }
        for key, allowed, fits in (
            ("lr", "0 or more", float(lr) >= 0),
            ("momentum", "0 or more", momentum >= 0),
            ("weight_decay", "0 or more", weight_decay >= 0),
            ("ns_steps", "from 1 to 99", 1 <= ns_steps < 100),
            ("ns_method", "'standard' or 'gram'", ns_method in ("standard", "gram")),
            ("adjust_lr_fn", "null, 'original' or 'match_rms_adamw'", adjust_lr_fn in _RATES),
        ):
            if not fits:
                raise ConfigError(f"optimizer.params.{key} of Muon must be {allowed}, got {defaults[key]!r}.")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every matrix that has a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for chosen in batches(params):  # one after the other, for each has a copy of its gradients
                self._step_batch(group, [params[index] for index in chosen])
        return loss

    def _step_batch(self, group: Mapping[str, Any], params: list[torch.Tensor]) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        moves = []
        for param in params:
            grad, state = param.grad, self.state[param]
            assert grad is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
            buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
            moves.append(grad.lerp(buffer, momentum) if group["nesterov"] else buffer)
        updates = orthogonalize(
            moves,
            steps=group["ns_steps"],
            method=group["ns_method"],
            coefficients=group["ns_coefficients"],
            eps=group["eps"],
        )
        rate = _RATES[group["adjust_lr_fn"]]
        for param, update in zip(params, updates, strict=True):
            param.mul_(1 - lr * group["weight_decay"])
            param.add_(update, alpha=-lr * rate(*param.shape))


_RATES: Mapping[str | None, Callable[[int, int], float]] = {
    None: lambda rows, columns: math.sqrt(max(1, rows / columns)),
    "original": lambda rows, columns: math.sqrt(max(1, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
"""Factors of the learning rate by shape, by the names torch gives them."""


class MuonWithAuxAdam(torch.optim.Optimizer):
    """`Muon` on matrices and ``torch.optim.AdamW`` on the rest, over shared groups and state.

    A group dict may carry ``use_muon`` for all its tensors; otherwise each tensor decides by `wants_muon`, and a mixed
    group becomes two. Each group has the learning rate of its half, so schedules move both.

    Args:
        param_groups: tensors, named tensors or group dicts.
        lr: learning rate of both halves, unless one of the next two is given.
        muon_lr: learning rate of the Muon half.
        adam_lr: learning rate of the AdamW half.
        momentum: Muon's momentum.
        weight_decay: decoupled decay of both halves.
        betas: AdamW's.
        eps: AdamW's.
        ns_method: how the update is orthogonalized: ``"standard"`` or ``"gram"``, see `Muon`.
        nesterov: Muon's Nesterov momentum.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: rule for the learning rate by matrix shape, ``"original"`` or ``"match_rms_adamw"``.

    Raises:
        ConfigError: a hyperparameter is out of range.
        ModelError: a tensor marked for Muon is not a matrix.
    """

    def __init__(
        self,
        param_groups: Iterable[Any],
        lr: float = 1e-3,
        muon_lr: float | None = None,
        adam_lr: float | None = None,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        ns_method: Method = "standard",
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        muon_groups, adam_groups = _split(normalize(param_groups))
        muon_options = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "ns_method": ns_method,
            "adjust_lr_fn": adjust_lr_fn,
        }
        self._muon = _half(
            Muon,
            muon_groups,
            {"lr": lr if muon_lr is None else muon_lr, "weight_decay": weight_decay, **muon_options},
        )
        self._adam = _half(
            torch.optim.AdamW,
            adam_groups,
            {"lr": lr if adam_lr is None else adam_lr, "weight_decay": weight_decay, "betas": betas, "eps": eps},
        )
        halves = [half for half in (self._muon, self._adam) if half is not None]
        super().__init__([group for half in halves for group in half.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of both halves. Returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for half, is_muon in ((self._muon, True), (self._adam, False)):
            if half is not None:
                # load_state_dict replaces groups and state, so the halves are pointed at the current ones each time.
                half.param_groups = [group for group in self.param_groups if group["use_muon"] is is_muon]
                half.state = self.state
                half.step()
        return loss


def _half(
    cls: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]], options: Mapping[str, Any]
) -> torch.optim.Optimizer | None:
    """One half, or None when no tensor falls to it."""
    if not groups:
        return None
    try:
        return cls(groups, **options)
    except ValueError as error:
        raise ConfigError(f"optimizer.params of Muon: {error}") from error


def _split(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups for Muon and groups for AdamW; a mixed group gives one to each, order kept."""
    halves: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        rest = {key: value for key, value in group.items() if key not in ("params", "use_muon")}
        parts: tuple[list[Any], list[Any]] = ([], [])
        for item in group["params"]:
            tensor = item[1] if isinstance(item, tuple) else item
            chosen = bool(group["use_muon"]) if "use_muon" in group else wants_muon(tensor)
            if chosen and tensor.ndim != 2:
                raise ModelError(
                    f"Muon updates matrices, but a tensor of shape {tuple(tensor.shape)} has use_muon set."
                )
            parts[0 if chosen else 1].append(item)
        for half, part, is_muon in zip(halves, parts, (True, False), strict=True):
            if part:
                half.append({**rest, "params": part, "use_muon": is_muon})
    return halves
