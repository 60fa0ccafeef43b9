"""`Init`: construct a model larger than one rank's memory, each parameter sharded as soon as it has its values.

Source: Rajbhandari et al., ZeRO-Infinity (2021), section 7.2, automated model partitioning during initialization.

Note [Construction under Init]
    Constructors run without memory and without drawing random numbers; when the context ends, what they did is done
    again in order, with values, and each parameter is cut up after the last thing that was done to it. So the values
    are those of plain construction from the same seed, and at no time more than the largest parameters are whole.
    Parameters that are set from a file while the context is open (``from_pretrained``) are cut up as they are set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.construction import dividing, made_by
from ds_core.errors import ConfigError, ModelError
from ds_zero.construct import Recording
from ds_zero.partitioned import is_partitioned, partition

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Init"]


class Init:
    """A context in which models are constructed in shards; or, with `module`, cuts up one that exists.

    Enter and leave it on all ranks. Give the model to ``ds_core.initialize`` with ``zero_optimization.stage`` 3
    afterwards; other stages work too and make it whole again.

    Args:
        module: an existing module to shard at once; every rank gets the first rank's values.
        data_parallel_group: ranks that share parameters; None: all.
        remote_device: where pieces lie: None or ``"cpu"`` (host memory), or ``"none"`` (where they were made).
        config_dict_or_path, config: a configuration; its ``bf16`` or ``fp16`` sections give `dtype`.
        enabled: False constructs as usual.
        dtype: floating-point parameters are cast to it once they have their values.
        mem_efficient_linear, pin_memory: accepted; autograd never keeps gathered weights, and pieces are copied once.

    Raises:
        ConfigError: an argument asks for what this version does not have.
        ModelError: `module` is sharded already; or other ranks do not make what is made here.
    """

    def __init__(
        self,
        module: torch.nn.Module | None = None,
        data_parallel_group: ProcessGroup | None = None,
        mem_efficient_linear: bool = True,
        remote_device: str | None = None,
        pin_memory: bool = False,
        config_dict_or_path: str | Path | Mapping[str, Any] | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
        enabled: bool = True,
        dtype: torch.dtype | None = None,
        mpu: Any = None,
        zero_param_parallel_group: Any = None,
        zero_quantized_weights: bool = False,
        zero_quantized_nontrainable_weights: bool = False,
        sequence_data_parallel_group: Any = None,
        param_swapper: Any = None,
        tensor_overrides: Any = None,
    ) -> None:
        refused = {
            "mpu": mpu,
            "zero_param_parallel_group": zero_param_parallel_group,
            "zero_quantized_weights": zero_quantized_weights,
            "zero_quantized_nontrainable_weights": zero_quantized_nontrainable_weights,
            "sequence_data_parallel_group": sequence_data_parallel_group,
            "param_swapper": param_swapper,
            "tensor_overrides": tensor_overrides,
        }
        for name, value in refused.items():
            if value:
                raise ConfigError(f"Init({name}=) is not in this version of ds-zero; take it out")
        if remote_device not in (None, "none", "cpu"):
            raise ConfigError(
                f"Init(remote_device=) must be None, 'none' or 'cpu', got {remote_device!r}; parameters go to files "
                "with zero_optimization.offload_param.device nvme, once an engine has them"
            )
        self._enabled = enabled
        self._dtype = dtype or _dtype_of(config if config is not None else config_dict_or_path)
        self._group: ProcessGroup | None = data_parallel_group
        self._recording: Recording | None = None
        self._told: ExitStack = ExitStack()
        if enabled and comm.get_world_size() == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            comm.init_distributed()
        if module is not None and enabled:
            self._refuse_some_makers()
            self._cut_up(module)

    def __enter__(self) -> Init:
        """Starts to record construction."""
        if self._enabled:
            self._refuse_some_makers()
            self._told.enter_context(dividing("ds_zero.Init"))
            self._recording = Recording()
            self._recording.on_real_parameter(self._set_from_elsewhere)
            self._recording.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives every parameter its values, one at a time, and keeps this rank's piece."""
        self._told.close()
        recording, self._recording = self._recording, None
        if recording is None:
            return
        recording.__exit__(kind, error, trace)
        if kind is not None:
            return
        for parameter, value in recording.replay():
            self._take(parameter, value)

    def _refuse_some_makers(self) -> None:
        makers = made_by()
        members = comm.get_all_ranks_from_group(self._group)
        if makers is not None and not set(members) <= set(makers):
            raise ModelError(
                f"ds_zero.Init divides parameters over ranks {members}, but only {list(makers)} make this layer of a "
                "pipeline: take Init out, since a stage's layers are made on its ranks alone and are whole there; or "
                "give Init(data_parallel_group=) a group of these ranks"
            )

    def _take(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        whole = self._cast(value).contiguous()
        if comm.get_world_size(self._group) > 1:
            if whole is value:
                whole = value.clone()
            with comm.scope("initial parameters"):
                comm.broadcast(whole, src=comm.get_global_rank(self._group, 0), group=self._group)
        partition(parameter, whole, self._group)

    def _set_from_elsewhere(self, module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        """A parameter that has values already, the same on all ranks; it may come on any thread, so nothing is sent."""
        if not is_partitioned(parameter):
            partition(parameter, self._cast(parameter.data), self._group)

    def _cast(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self._dtype) if self._dtype is not None and value.is_floating_point() else value

    def _cut_up(self, module: torch.nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if is_partitioned(parameter):
                raise ModelError(f"parameter {name!r} is sharded already; a model goes through Init once")
            self._take(parameter, parameter.data)


def _dtype_of(config: str | Path | Mapping[str, Any] | None) -> torch.dtype | None:
    if config is None:
        return None
    from ds_core.config import load

    raw = load(config)
    for section, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if getattr(raw[section], "enabled", False):
            return dtype
    return None
