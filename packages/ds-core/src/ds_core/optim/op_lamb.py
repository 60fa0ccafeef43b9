"""`OpLamb`: LAMB made of the ops ``lamb_moments_`` and ``lamb_apply_``, over parameters or segments of flat runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch

from ds_core import ops
from ds_core.errors import ConfigError
from ds_core.optim.flat import FlatUpdate, Segment
from ds_core.optim.op_base import Allowed, FlatStep, OpOptimizer, not_negative, seed_of

__all__ = ["OpLamb", "make_lamb"]


class _Segments(NamedTuple):
    """A call of the ops whose trust ratios are to come: its keys say which."""

    call: FlatStep
    bounds: list[int]
    keys: list[int]


class OpLamb(OpOptimizer):
    """LAMB: Adam's direction, of a length in proportion to the parameter's own norm.

    Each parameter moves by ``lr * ratio * direction``, where the trust ratio is the norm of the parameter over that of
    the direction, kept between `min_coeff` and `max_coeff`, and 1 where either norm is 0.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate; a 0-dim tensor is read at each step.
        bias_correction: divide the moments by ``1 - beta ** step``.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        eps_inside_sqrt: add it under the root.
        weight_decay: times the parameter, added to the direction; 0 or more.
        max_grad_norm: clip the global norm of the gradients to this in `step`; 0 does not. With an engine,
            ``gradient_clipping`` does it.
        max_coeff: largest trust ratio.
        min_coeff: smallest trust ratio.
        amsgrad: not offered; only False.
        fp32_states: states in float32 whatever the parameter is; False keeps them in the parameter's dtype.

    Raises:
        ConfigError: a hyperparameter is out of range.

    Source: see `ds_core.ops.lamb_moments_`.
    """

    config_name: ClassVar[str] = "Lamb"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps_inside_sqrt: bool = False,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
        amsgrad: bool = False,
        *,
        fp32_states: bool = True,
    ) -> None:
        if amsgrad:
            raise ConfigError("optimizer.params.amsgrad of Lamb must be false: LAMB has no such variant.")
        if max_grad_norm < 0:
            raise ConfigError(f"max_grad_norm of Lamb must be 0 (off) or more, got {max_grad_norm!r}.")
        self._max_grad_norm: float = max_grad_norm
        self._coeffs: torch.Tensor = torch.zeros(0)
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
            "betas": tuple(betas),
            "eps": eps,
            "eps_inside_sqrt": eps_inside_sqrt,
            "weight_decay": weight_decay,
            "max_coeff": max_coeff,
            "min_coeff": min_coeff,
        }
        super().__init__(params, defaults, fp32_states=fp32_states)

    def get_lamb_coeffs(self) -> list[float]:
        """Trust ratios of the last step: of the parameters it updated in order, with flat runs of all of the model."""
        return [float(coeff) for coeff in self._coeffs]

    def state_names(self) -> tuple[str, ...]:
        """The two moments."""
        return ("exp_avg", "exp_avg_sq")

    def allowed(self, group: Mapping[str, Any]) -> list[Allowed]:
        """Ranges; see `OpOptimizer.allowed`."""
        betas, low, high = group["betas"], group["min_coeff"], group["max_coeff"]
        return [
            *not_negative(group, "lr", "eps", "weight_decay", "min_coeff"),
            Allowed("betas", "two numbers in [0, 1)", len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
            Allowed("max_coeff", f"at least min_coeff ({low!r})", low <= high),
        ]

    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the ops are given of a group, and the limits of its trust ratios."""
        beta1, beta2 = group["betas"]
        keys = ("eps", "weight_decay", "bias_correction", "eps_inside_sqrt", "max_coeff", "min_coeff")
        numbers = {"lr": float(group["lr"]), "beta1": float(beta1), "beta2": float(beta2)}
        return {**numbers, **{key: group[key] for key in keys}}

    # --- parameters ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns what `closure` returned.

        Raises:
            EngineError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._coeffs = torch.zeros(0)
        super().step()
        return loss

    def run(self, call: FlatStep) -> None:
        """Both passes over one whole parameter."""
        call = call._replace(grad_factor=self._clip_factor(call.param))
        segments = _Segments(call, [0, call.param.numel()], [0])
        ratios = _ratios(self._measure(segments), [call.hyper])
        self._apply(segments, ratios)
        self._coeffs = torch.cat([self._coeffs, ratios.cpu()])

    def _clip_factor(self, like: torch.Tensor) -> torch.Tensor | None:
        if self._max_grad_norm == 0:
            return None
        grads = [param.grad for group in self.param_groups for param in group["params"] if param.grad is not None]
        norm = sum(float(ops.sum_of_squares(grad.contiguous().view(-1))) for grad in grads) ** 0.5
        return torch.tensor(min(1.0, self._max_grad_norm / (norm + 1e-6)), dtype=torch.float32, device=like.device)

    # --- flat runs ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step_segments(
        self,
        updates: Sequence[FlatUpdate],
        segments: Sequence[Sequence[Segment]],
        *,
        parameters: int,
        total: Callable[[torch.Tensor], torch.Tensor],
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
    ) -> None:
        """Updates the segments of each run; see `ds_core.optim.flat.SegmentOptimizer`."""
        self.mark_stepped()
        hypers = [self.hyperparameters(group) for group in self.param_groups]
        calls = [
            self._segments(update, cuts, hypers[update.group], grad_factor, rounding_seed)
            for update, cuts in zip(updates, segments, strict=True)
        ]
        sums = torch.zeros((parameters, 2), dtype=torch.float64)
        limits = [hypers[0]] * parameters
        for call in calls:
            sums.index_add_(0, torch.tensor(call.keys, dtype=torch.long), self._measure(call).cpu())
            for key in call.keys:
                limits[key] = call.call.hyper
        self._coeffs = _ratios(total(sums), limits)
        for call in calls:
            self._apply(call, self._coeffs[call.keys].to(call.call.param.device))

    def _segments(
        self,
        update: FlatUpdate,
        cuts: Sequence[Segment],
        hyper: dict[str, Any],
        grad_factor: torch.Tensor | None,
        rounding_seed: int,
    ) -> _Segments:
        state, start, stop = self.run_of(update)
        call = FlatStep(
            update.param,
            update.grad,
            {key: state[key].view(-1)[start:stop] for key in self.state_names()},
            update.copy_out,
            update.step,
            hyper,
            grad_factor,
            seed_of(rounding_seed, update),
            start if update.position < 0 else update.position,
        )
        return _Segments(call, [bound for cut in cuts for bound in (cut.start, cut.stop)], [cut.key for cut in cuts])

    # --- the two passes -----------------------------------------------------------------------------------------

    def _measure(self, segments: _Segments) -> torch.Tensor:
        call = segments.call
        return ops.lamb_moments_(
            call.param,
            call.grad,
            call.states["exp_avg"],
            call.states["exp_avg_sq"],
            segments.bounds,
            step=call.step,
            grad_factor=call.grad_factor,
            rounding_seed=call.rounding_seed,
            rounding_offset=call.rounding_offset,
            **_without(call.hyper, "lr", "max_coeff", "min_coeff"),
        )

    def _apply(self, segments: _Segments, ratios: torch.Tensor) -> None:
        call = segments.call
        ops.lamb_apply_(
            call.param,
            call.states["exp_avg"],
            call.states["exp_avg_sq"],
            ratios,
            segments.bounds,
            call.copy_out,
            step=call.step,
            rounding_seed=call.rounding_seed,
            rounding_offset=call.rounding_offset,
            **_without(call.hyper, "max_coeff", "min_coeff"),
        )


def _ratios(sums: torch.Tensor, limits: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Trust ratios, float32, from sums of squares of parameters and directions."""
    low = torch.tensor([row["min_coeff"] for row in limits], dtype=torch.float64, device=sums.device)
    high = torch.tensor([row["max_coeff"] for row in limits], dtype=torch.float64, device=sums.device)
    param, direction = sums.to(torch.float64).sqrt().unbind(1)
    measured = (param > 0) & (direction > 0)
    return torch.where(measured, (param / direction).clamp(low, high), 1.0).to(torch.float32)


def _without(hyper: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in hyper.items() if key not in keys}


def make_lamb(
    param_groups: Iterable[Any],
    *,
    lr: float = 1e-3,
    bias_correction: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_inside_sqrt: bool = False,
    weight_decay: float = 0.0,
    max_coeff: float = 10.0,
    min_coeff: float = 0.01,
    fp32_optimizer_states: bool = True,
) -> OpLamb:
    """What ``optimizer.type: Lamb`` of a config means on a device without a class of its own."""
    return OpLamb(
        param_groups,
        lr,
        bias_correction,
        betas,
        eps,
        eps_inside_sqrt,
        weight_decay,
        max_coeff=max_coeff,
        min_coeff=min_coeff,
        fp32_states=fp32_optimizer_states,
    )
