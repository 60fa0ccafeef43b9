"""`OpAdam8bit`: Adam and AdamW with moments of a byte an element, made of the op ``adam8bit_``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from ds_core import ops
from ds_core.errors import ConfigError
from ds_core.ops._adam8bit import BLOCK_SIZES, decode, encode
from ds_core.optim.op_adam import OpAdam
from ds_core.optim.op_base import FlatStep

__all__ = ["OpAdam8bit"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def _scale_of(name: str) -> str:
    return f"{name}_scale"


class OpAdam8bit(OpAdam):
    """Adam whose states take 2 bytes an element and 8 a block, rather than 8 bytes an element.

    Each moment is kept as codes (uint8, shaped like the parameter) and the largest magnitude of each block of
    consecutive elements (``exp_avg_scale``, ``exp_avg_sq_scale``, float32). Blocks are counted from the first element
    of the parameter, or of the piece of the model an engine hands out: so unlike with float32 states, results depend
    a little on how a model is cut into shards.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        lr: learning rate; a 0-dim tensor is read at each step.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: 0 or more.
        adamw: decoupled weight decay; False adds it to the gradient.
        bias_correction: divide the moments by ``1 - beta ** step``.
        block_size: elements that share a scale: 256, 512, 1024, 2048 or 4096.

    Raises:
        ConfigError: a hyperparameter is out of range.

    Source: see `ds_core.ops.adam8bit_`.
    """

    config_name: ClassVar[str] = "Adam"

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
        block_size: int = 2048,
    ) -> None:
        if block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise ConfigError(f"optimizer.params.state_block of Adam must be one of {sizes}, got {block_size!r}.")
        self.block_size: int = block_size
        super().__init__(params, lr, betas, eps, weight_decay, adamw=adamw, bias_correction=bias_correction)

    def state_names(self) -> tuple[str, ...]:
        """Codes and scales of the two moments."""
        return (*_MOMENTS, *map(_scale_of, _MOMENTS))

    def state_of(self, param: torch.Tensor) -> dict[str, Any]:
        """The states of `param`, made where it was never updated."""
        state: dict[str, Any] = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        for name in _MOMENTS:
            if name not in state:
                blocks = -(-param.numel() // self.block_size)
                state[name] = torch.zeros(param.shape, dtype=torch.uint8, device=param.device)
                state[_scale_of(name)] = torch.zeros(blocks, dtype=torch.float32, device=param.device)
        return state

    def run(self, call: FlatStep) -> None:
        """Calls the op; the one of float32 states for a run that does not consist of whole blocks."""
        states = call.states
        if _scale_of("exp_avg") not in states:
            super().run(call)
            return
        ops.adam8bit_(
            call.param,
            call.grad,
            states["exp_avg"],
            states["exp_avg_sq"],
            states["exp_avg_scale"],
            states["exp_avg_sq_scale"],
            call.copy_out,
            step=call.step,
            block_size=self.block_size,
            grad_factor=call.grad_factor,
            rounding_seed=call.rounding_seed,
            rounding_offset=call.rounding_offset,
            **call.hyper,
        )

    def take(self, state: dict[str, Any], start: int, stop: int) -> dict[str, torch.Tensor]:
        """Views of the codes and scales of whole blocks; decoded moments where a run begins or ends within one."""
        numel = state["exp_avg"].numel()
        if start % self.block_size == 0 and (stop % self.block_size == 0 or stop == numel):
            blocks = slice(start // self.block_size, -(-stop // self.block_size))
            codes = {name: state[name].view(-1)[start:stop] for name in _MOMENTS}
            return codes | {_scale_of(name): state[_scale_of(name)][blocks] for name in _MOMENTS}
        return {name: self._decode(state, name, start, stop) for name in _MOMENTS}

    def give(self, state: dict[str, Any], start: int, stop: int, states: dict[str, torch.Tensor]) -> None:
        """Encodes decoded moments, with the blocks they lie in."""
        if _scale_of("exp_avg") not in states:
            for name in _MOMENTS:
                self._encode(state, name, start, states[name])

    # --- the view of others: see `ds_core.optim.lazy.PacksStates` -------------------------------------------------

    def packed(self, param: torch.Tensor) -> tuple[str, ...]:
        """The moments."""
        return _MOMENTS if "exp_avg" in self.state.get(param, {}) else ()

    def unpack(self, param: torch.Tensor, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements of a moment, float32."""
        return self._decode(self.state[param], name, start, stop)

    def pack(self, param: torch.Tensor, name: str, start: int, values: torch.Tensor) -> None:
        """Replaces elements of a moment."""
        self._encode(self.state_of(param), name, start, values)

    def others(self, param: torch.Tensor) -> dict[str, Any]:
        """The step."""
        return {key: value for key, value in self.state.get(param, {}).items() if key == "step"}

    def _covering(self, state: dict[str, Any], name: str, start: int, stop: int) -> tuple[int, int]:
        """The elements of the blocks that `start` to `stop` lie in."""
        size = self.block_size
        return start // size * size, min(-(-stop // size) * size, state[name].numel())

    def _decode(self, state: dict[str, Any], name: str, start: int, stop: int) -> torch.Tensor:
        first, last = self._covering(state, name, start, stop)
        scales = state[_scale_of(name)][first // self.block_size : -(-last // self.block_size)]
        codes = state[name].view(-1)[first:last]
        return decode(codes, scales, self.block_size, signed=name == "exp_avg")[start - first : stop - first]

    def _encode(self, state: dict[str, Any], name: str, start: int, values: torch.Tensor) -> None:
        first, last = self._covering(state, name, start, start + values.numel())
        whole = self._decode(state, name, first, last)
        whole[start - first : start - first + values.numel()] = values
        codes, scales = encode(whole, self.block_size, signed=name == "exp_avg")
        state[name].view(-1)[first:last] = codes
        state[_scale_of(name)][first // self.block_size : -(-last // self.block_size)] = scales

    def _take(self, param: torch.Tensor, saved: Mapping[str, Any]) -> None:
        """States from a state dict: ours, or one with moments in floating point, as torch's and `OpAdam`'s are."""
        self.state.pop(param, None)
        state = self.state_of(param)
        for name in _MOMENTS:
            scale = _scale_of(name)
            if name not in saved:
                continue
            if saved[name].is_floating_point():
                self._encode(state, name, 0, saved[name].detach().to(param.device, torch.float32).reshape(-1))
                continue
            if saved[scale].shape != state[scale].shape:
                raise ConfigError(
                    f"the saved {name} has {saved[scale].numel()} blocks, this optimizer's has {state[scale].numel()}: "
                    f"the block size must be what it was, not {self.block_size}."
                )
            for key in (name, scale):
                state[key].copy_(saved[key])
        state["step"] = torch.tensor(float(saved.get("step", 1)), dtype=torch.float32)
