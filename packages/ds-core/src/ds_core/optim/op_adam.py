"""`OpAdam`: Adam and AdamW made of the op ``adam_``, on whatever device an installed wheel or the reference serves.

Note [Undecorated]
    ``torch.optim.Optimizer.add_param_group`` is decorated so that torch's compiler leaves it alone, and the decorator
    imports that compiler, which takes more than a second and 85 MB in every process. Calling the method it wraps does
    the same work; where torch no longer wraps it, the method itself is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ds_core import ops
from ds_core.errors import ConfigError, EngineError, OpError
from ds_core.optim.flat import FlatUpdate

__all__ = ["OpAdam"]

_STATES = ("exp_avg", "exp_avg_sq")
_SEED_MASK = 2**63 - 1


class OpAdam(torch.optim.Optimizer):
    """Adam with the states of ``torch.optim.Adam`` (step, exp_avg, exp_avg_sq), so state dicts are interchangeable.

    Parameters may be float32, bfloat16 or float16, gradients of any of these whatever the parameter is. Arithmetic is
    in float32; `ds_core.ops.adam_` says what it is bit-equal to. Besides ``step`` it has ``step_flat``, which updates
    runs of a flat parameter in one pass with unscale, clip and the copy into working weights.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate; a 0-dim tensor is read at each step.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: 0 or more.
        adamw: decoupled weight decay; False adds it to the gradient.
        bias_correction: divide the moments by ``1 - beta ** step``.
        fp32_states: states in float32 whatever the parameter is; False keeps them in the parameter's dtype.
        amsgrad: not offered; only False.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        adamw: bool = True,
        bias_correction: bool = True,
        fp32_states: bool = True,
        amsgrad: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "adamw": adamw,
            "bias_correction": bias_correction,
            "amsgrad": amsgrad,
        }
        _check_group(defaults)
        self._fp32_states = fp32_states
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with the group's own hyperparameters checked.

        Raises:
            ConfigError: a hyperparameter is out of range.
        """
        _check_group({**self.defaults, **param_group})
        # See Note [Undecorated]: torch's method is wrapped to be skipped by its compiler, and the wrapper imports it.
        undecorated = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
        if undecorated is None:
            super().add_param_group(param_group)
        else:
            undecorated(self, param_group)

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
        for group in self.param_groups:
            hyper = _hyperparameters(group)
            for param in group["params"]:
                if param.grad is not None:
                    self._step_param(param, hyper)
        return loss

    def _step_param(self, param: torch.Tensor, hyper: dict[str, Any]) -> None:
        grad = param.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise EngineError(
                f"{type(self).__name__} takes dense gradients, got {grad.layout} for a parameter of shape "
                f"{tuple(param.shape)}. Use sparse=False in the embedding, or torch.optim.SparseAdam for it."
            )
        state = self.state_of(param)
        state["step"] += 1
        values = param.detach()
        dense = values.contiguous().view(-1)
        ops.adam_(
            dense,
            grad.detach().contiguous().view(-1),
            state["exp_avg"].view(-1),
            state["exp_avg_sq"].view(-1),
            step=int(state["step"]),
            **hyper,
        )
        if dense.data_ptr() != values.data_ptr():
            values.copy_(dense.view(values.shape))

    @torch.no_grad()
    def step_flat(
        self, updates: Sequence[FlatUpdate], *, grad_factor: torch.Tensor | None = None, rounding_seed: int = -1
    ) -> None:
        """Updates each run; see `ds_core.optim.flat.FlatOptimizer`.

        The states of a run are the same stretch of its parameter's states, and ``state["step"]`` becomes the highest
        step among its runs. Stochastic rounding draws by the position within the parameter, so it does not depend on
        how a parameter is cut into runs.

        Raises:
            OpError: a run does not lie within its parameter.
        """
        hypers = [_hyperparameters(group) for group in self.param_groups]
        for update in updates:
            param = self.param_groups[update.group]["params"][update.param_index]
            numel = update.param.numel()
            start, stop = update.state_offset, update.state_offset + numel
            if start < 0 or stop > param.numel():
                raise OpError(
                    f"a flat update of elements {start} to {stop} does not lie within parameter {update.param_index} "
                    f"of group {update.group}, which has {param.numel()} elements."
                )
            state = self.state_of(param)
            state["step"].fill_(max(update.step, int(state["step"])))
            ops.adam_(
                update.param,
                update.grad,
                state["exp_avg"].view(-1)[start:stop],
                state["exp_avg_sq"].view(-1)[start:stop],
                update.copy_out,
                step=update.step,
                grad_factor=grad_factor,
                rounding_seed=_seed_of(rounding_seed, update),
                rounding_offset=start if update.position < 0 else update.position,
                **hypers[update.group],
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with states kept in the dtype this optimizer gives them and nothing shared with `state_dict`.

        A state dict of ``torch.optim.Adam`` or ``AdamW`` loads too; what its groups do not say stays as it is here.
        """
        before = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, before, strict=True):
            for key, value in own.items():
                group.setdefault(key, value)
        saved = state_dict["state"]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(indices, params, strict=True):
            for key, value in saved.get(index, {}).items():
                if key in _STATES:
                    dtype = self._state_dtype(param)
                    self.state[param][key] = value.detach().to(device=param.device, dtype=dtype, copy=True).contiguous()
                elif key == "step":
                    self.state[param][key] = torch.tensor(float(value), dtype=torch.float32)

    def state_of(self, param: torch.Tensor) -> dict[str, Any]:
        """The states of `param`; zeros where it was never updated."""
        state: dict[str, Any] = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        for key in _STATES:
            if key not in state:
                state[key] = torch.zeros(param.shape, dtype=self._state_dtype(param), device=param.device)
        return state

    def _state_dtype(self, param: torch.Tensor) -> torch.dtype:
        return torch.float32 if self._fp32_states else param.dtype


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "lr": float(group["lr"]),
        "beta1": float(beta1),
        "beta2": float(beta2),
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "adamw": group["adamw"],
        "bias_correction": group["bias_correction"],
    }


def _seed_of(rounding_seed: int, update: FlatUpdate) -> int:
    """A seed for each parameter that has no position, so that two of them do not draw alike."""
    if rounding_seed < 0 or update.position >= 0:
        return rounding_seed
    place = (update.group << 32) + update.param_index
    return (rounding_seed + place * 0x9E3779B97F4A7C15) & _SEED_MASK


def _check_group(group: dict[str, Any]) -> None:
    for key, allowed, fits in (
        ("lr", "0 or more", float(group["lr"]) >= 0),
        ("eps", "0 or more", group["eps"] >= 0),
        ("weight_decay", "0 or more", group["weight_decay"] >= 0),
        ("betas", "two numbers in [0, 1)", len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"])),
    ):
        if not fits:
            raise ConfigError(f"optimizer.params.{key} of Adam must be {allowed}, got {group[key]!r}.")
    if group["amsgrad"]:
        raise ConfigError(
            "optimizer.params.amsgrad of Adam must be false: the kernel keeps no running maximum of the second moment. "
            "Use torch.optim.AdamW(amsgrad=True), in a config with torch_adam: true."
        )
