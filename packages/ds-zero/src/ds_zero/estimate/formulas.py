"""The rules of thumb DeepSpeed documents for model states, under its names; what a run here takes says `estimate`.

All take fp16 weights with fp32 Adam, and answer for one machine's memory and for one device's.

Source: DeepSpeed documentation, "Memory Requirements" (general RAM and GPU RAM for ZeRO-2 and ZeRO-3).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from ds_core.errors import ConfigError
from ds_zero.estimate.text import table

__all__ = [
    "Zero2Needs",
    "Zero3Needs",
    "estimate_zero2_model_states_mem_needs",
    "estimate_zero2_model_states_mem_needs_all_cold",
    "estimate_zero2_model_states_mem_needs_all_live",
    "estimate_zero3_model_states_mem_needs",
    "estimate_zero3_model_states_mem_needs_all_cold",
    "estimate_zero3_model_states_mem_needs_all_live",
]

logger = logging.getLogger(__name__)

GIB = 2**30


class Zero2Needs(NamedTuple):
    """Bytes of host memory on one machine, and of memory on one device."""

    cpu_bytes: int
    gpu_bytes: int


class Zero3Needs(NamedTuple):
    """As `Zero2Needs`, and the bytes to gather the largest layer, which are in both devices' figures."""

    cpu_bytes: int
    gpu_bytes: int
    largest_layer_bytes: int


def estimate_zero2_model_states_mem_needs(
    total_params: float,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    cpu_offload: bool = True,
    additional_buffer_factor: float = 1.5,
) -> Zero2Needs:
    """What stage 2 needs for `total_params` elements, with the optimizer in host memory or on the devices."""
    gpus = _gpus(num_gpus_per_node, num_nodes)
    init = 4 * num_gpus_per_node
    if cpu_offload:
        return Zero2Needs(int(total_params * max(init, 16) * additional_buffer_factor), int(2 * total_params))
    return Zero2Needs(
        int(total_params * init * additional_buffer_factor), int(4 * total_params + 16 * total_params / gpus)
    )


def estimate_zero3_model_states_mem_needs(
    total_params: float,
    largest_layer_params: float,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    cpu_offload: bool = True,
    cpu_offload_params: bool = True,
    zero_init: bool = True,
    additional_buffer_factor: float = 1.5,
) -> Zero3Needs:
    """What stage 3 needs; `zero_init` says that the model is made in shards rather than whole in each process.

    Raises:
        ConfigError: parameters in host memory and the optimizer not, which the rules do not cover.
    """
    gpus = _gpus(num_gpus_per_node, num_nodes)
    if cpu_offload_params and not cpu_offload:
        raise ConfigError(
            "cpu_offload_params true needs cpu_offload true: the optimizer updates parameters where they are"
        )
    largest = int(4 * largest_layer_params)
    on_node = num_gpus_per_node / gpus
    device = 0 if cpu_offload_params else 2 if cpu_offload else 18
    host = 18 * on_node if cpu_offload_params else 16 * on_node if cpu_offload else 0.0
    if not zero_init:
        needed = total_params * max(4 * num_gpus_per_node, host)
    elif cpu_offload:
        needed = total_params * host
    else:
        needed = largest_layer_params * 4 * num_gpus_per_node
    return Zero3Needs(int(needed * additional_buffer_factor), largest + int(device * total_params / gpus), largest)


def estimate_zero2_model_states_mem_needs_all_live(
    model: nn.Module, num_gpus_per_node: int = 1, num_nodes: int = 1, additional_buffer_factor: float = 1.5
) -> str:
    """The table of `estimate_zero2_model_states_mem_needs_all_cold` for a model at hand."""
    total = sum(p.numel() for p in model.parameters())
    return estimate_zero2_model_states_mem_needs_all_cold(total, num_gpus_per_node, num_nodes, additional_buffer_factor)


def estimate_zero2_model_states_mem_needs_all_cold(
    total_params: float, num_gpus_per_node: int = 1, num_nodes: int = 1, additional_buffer_factor: float = 1.5
) -> str:
    """Stage 2 with and without offload, as a table in GiB, which is logged as well."""
    rows = []
    for offload in (True, False):
        needs = estimate_zero2_model_states_mem_needs(
            total_params, num_gpus_per_node, num_nodes, offload, additional_buffer_factor
        )
        rows.append((needs.cpu_bytes, needs.gpu_bytes, f"offload_optimizer {_device(offload)}"))
    title = _title(2, total_params, None, num_gpus_per_node, num_nodes)
    return _report(title, rows)


def estimate_zero3_model_states_mem_needs_all_live(
    model: nn.Module, num_gpus_per_node: int = 1, num_nodes: int = 1, additional_buffer_factor: float = 1.5
) -> str:
    """The table of `estimate_zero3_model_states_mem_needs_all_cold` for a model at hand."""
    total = sum(p.numel() for p in model.parameters())
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    return estimate_zero3_model_states_mem_needs_all_cold(
        total, largest, num_gpus_per_node, num_nodes, additional_buffer_factor
    )


def estimate_zero3_model_states_mem_needs_all_cold(
    total_params: float,
    largest_layer_params: float,
    num_gpus_per_node: int = 1,
    num_nodes: int = 1,
    additional_buffer_factor: float = 1.5,
) -> str:
    """Stage 3 with each place for parameters and optimizer, as a table in GiB, which is logged as well."""
    rows = []
    for optimizer, params in ((True, True), (True, False), (False, False)):
        for zero_init in (True, False):
            needs = estimate_zero3_model_states_mem_needs(
                total_params,
                largest_layer_params,
                num_gpus_per_node,
                num_nodes,
                cpu_offload=optimizer,
                cpu_offload_params=params,
                zero_init=zero_init,
                additional_buffer_factor=additional_buffer_factor,
            )
            options = f"offload_param {_device(params)}, offload_optimizer {_device(optimizer)}, made "
            rows.append((needs.cpu_bytes, needs.gpu_bytes, options + ("in shards" if zero_init else "whole")))
    return _report(_title(3, total_params, largest_layer_params, num_gpus_per_node, num_nodes), rows)


def _gpus(per_node: int, nodes: int) -> int:
    for name, value in (("num_gpus_per_node", per_node), ("num_nodes", nodes)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    return per_node * nodes


def _device(is_host: bool) -> str:
    return "cpu" if is_host else "none"


def _title(stage: int, total: float, largest: float | None, per_node: int, nodes: int) -> str:
    layer = "" if largest is None else f", largest layer {largest / 1e6:.0f} M"
    return f"model states at stage {stage}: {total / 1e6:.0f} M parameters{layer}; {nodes} x {per_node} devices"


def _report(title: str, rows: Sequence[tuple[int, int, str]], log: Callable[..., None] = logger.info) -> str:
    lines = [("per machine", "per device", "settings")]
    lines += [(f"{cpu / GIB:.2f} GiB", f"{gpu / GIB:.2f} GiB", options) for cpu, gpu, options in rows]
    text = f"{title}\n{table(lines, right=(0, 1))}"
    log("%s", text)
    return text
