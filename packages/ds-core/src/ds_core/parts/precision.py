"""Precision: which dtype the module computes in, and whether the optimizer keeps a finer copy.

Note [Buffers stay]
    A buffer is seldom a weight: rotary frequencies in bfloat16 are other positions. So buffers keep the dtype that the
    model made them in, unless the config names one. Running statistics follow the weights beside them, for torch
    normalizes only with both in one dtype.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from ds_core.errors import ConfigError
from ds_core.part import Part
from ds_core.placeholder import move

if TYPE_CHECKING:
    from ds_core.build import Build

__all__ = ["DTYPES", "Precision", "parse_dtype"]

logger = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}


def parse_dtype(name: str | None, key: str) -> torch.dtype | None:
    """The torch dtype a config names, or None for None.

    Raises:
        ConfigError: the name is not one of `DTYPES`.
    """
    if name is None:
        return None
    if name.lower().removeprefix("torch.") not in DTYPES:
        raise ConfigError(f"{key} must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name.lower().removeprefix("torch.")]


class Precision(Part):
    """Casts the module, wraps its forward in autocast where asked, and says what the master weights are."""

    name = "precision"

    def __init__(self) -> None:
        self._autocast: tuple[str, torch.dtype] | None = None
        self._cast_inputs_to: torch.dtype | None = None
        self._told: _ToldOfBuffers | None = None

    def prepare(self, build: Build) -> None:
        """Decides the working dtype, casts parameters, and buffers where asked, and sets ``build.master_dtype``."""
        config = build.config
        fp16, bf16, types = config["fp16"], config["bf16"], config["data_types"]
        working: torch.dtype | None = None
        if fp16.enabled:
            working = torch.float16
            build.master_dtype = None if fp16.fp16_master_weights_and_grads else torch.float32
            if fp16.auto_cast:
                self._cast_inputs_to = torch.float16
        elif bf16.enabled:
            working = torch.bfloat16
            build.master_dtype = None if bf16.bf16_master_weights_and_grads else torch.float32
            if bf16.immediate_grad_update:
                build.grad_dtype = torch.float32
        working = parse_dtype(types.param_dtype, "data_types.param_dtype") or working
        buffers = parse_dtype(types.buffer_dtype, "data_types.buffer_dtype")
        build.grad_dtype = parse_dtype(types.grad_accum_dtype, "data_types.grad_accum_dtype") or build.grad_dtype
        if working is not None and working not in build.accelerator.dtypes():
            raise ConfigError(
                f"{'fp16' if fp16.enabled else 'bf16'}.enabled: accelerator {build.accelerator.name!r} does not "
                f"compute in {working}; it supports {', '.join(sorted(map(str, build.accelerator.dtypes())))}"
            )
        _cast(build.module, working, buffers)
        if working is not None and buffers is None:
            finer = [name for name, buffer in build.module.named_buffers() if buffer.dtype is torch.float32]
            self._told = _ToldOfBuffers(finer, working) if finer and working is not torch.float32 else None
        autocast = config["torch_autocast"]
        if autocast.enabled:
            dtype = parse_dtype(autocast.dtype, "torch_autocast.dtype") or torch.bfloat16
            able = build.accelerator.autocast_dtypes()
            if dtype not in able:
                names = ", ".join(sorted(str(each).removeprefix("torch.") for each in able))
                raise ConfigError(
                    f"torch_autocast.dtype is {str(dtype).removeprefix('torch.')}, and accelerator "
                    f"{build.accelerator.name!r} autocasts to {names or 'nothing'}; "
                    + (f"set it to one of {names}" if able else "set torch_autocast.enabled to false, or bf16.enabled")
                )
            self._autocast = (build.accelerator.device_type, dtype)
            _reduce_low(build, dtype, set(autocast.lower_precision_safe_modules))
        wire = parse_dtype(config.training.communication_data_type, "communication_data_type")
        if wire is not None:
            build.reduce_dtypes = dict.fromkeys(build.module.parameters(), wire)

    def forward_context(self) -> AbstractContextManager[Any] | None:
        """Autocast, when ``torch_autocast.enabled``."""
        if self._autocast is None:
            return self._told
        device_type, dtype = self._autocast
        return torch.autocast(device_type, dtype=dtype)

    def cast_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Floating-point arguments in half precision, when ``fp16.auto_cast``."""
        if self._cast_inputs_to is None:
            return args, kwargs
        dtype = self._cast_inputs_to

        def cast(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                return value.to(dtype)
            return value

        map_ = torch.utils._pytree.tree_map
        return map_(cast, args), map_(cast, kwargs)


class _ToldOfBuffers:
    """A context that logs which buffers are float32 when a forward fails over dtypes."""

    def __init__(self, names: list[str], working: torch.dtype) -> None:
        self._names = names
        self._working = str(working).removeprefix("torch.")

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError) and any(word in str(error) for word in ("dtype", "scalar type")):
            rest = f" and {len(self._names) - 3} more" if len(self._names) > 3 else ""
            logger.warning(
                "forward failed over dtypes; weights are %s, and buffers keep float32: %s%s. If one of them meets "
                'activations, set data_types.buffer_dtype to "%s", or convert it in forward',
                *(self._working, ", ".join(self._names[:3]), rest, self._working),
            )


def _cast(module: torch.nn.Module, parameters: torch.dtype | None, buffers: torch.dtype | None) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameters is not None and parameter.is_floating_point() and parameter.dtype != parameters:
                move(parameter, dtype=parameters)
        for owner in module.modules():
            # See Note [Buffers stay].
            dtype = parameters if buffers is None and isinstance(owner, _NormBase) else buffers
            for name, buffer in owner.named_buffers(recurse=False):
                if dtype is not None and buffer.is_floating_point() and buffer.dtype != dtype:
                    owner._buffers[name] = buffer.to(dtype)


def _reduce_low(build: Build, dtype: torch.dtype, class_names: set[str]) -> None:
    """Gradients of the named module classes travel in the autocast dtype."""
    for owner in build.module.modules():
        if type(owner).__name__ in class_names or f"torch.nn.{type(owner).__name__}" in class_names:
            for parameter in owner.parameters(recurse=False):
                build.reduce_dtypes[parameter] = dtype
