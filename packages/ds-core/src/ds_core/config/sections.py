"""The config sections ds-core brings, as data: reading this imports no pydantic."""

from __future__ import annotations

from ds_core.hooks import ConfigSection

__all__ = ["SECTIONS"]

SECTIONS: tuple[ConfigSection, ...] = (
    ConfigSection("optimizer", "ds_core.config.models:OptimizerSection", summary="The optimizer, by name"),
    ConfigSection("scheduler", "ds_core.config.models:SchedulerSection", summary="The learning-rate schedule, by name"),
    ConfigSection("fp16", "ds_core.config.precision:Fp16Section", summary="float16 training with loss scaling"),
    ConfigSection(
        "bf16",
        "ds_core.config.precision:Bf16Section",
        legacy_keys={"bfloat16": "bf16"},
        summary="bfloat16 training with float32 master weights",
    ),
    ConfigSection(
        "torch_autocast", "ds_core.config.precision:TorchAutocastSection", summary="torch.autocast in the engine"
    ),
    ConfigSection(
        "data_types", "ds_core.config.precision:DataTypesSection", summary="Types of accumulation and parameters"
    ),
    ConfigSection("comms_logger", "ds_core.config.models:CommsLoggerSection", summary="Logging of collectives"),
    ConfigSection("tensorboard", "ds_core.config.models:TensorboardSection", summary="Metrics to TensorBoard"),
    ConfigSection("jsonl_monitor", "ds_core.config.models:JsonlMonitorSection", summary="Metrics to a JSON-lines file"),
    ConfigSection("timers", "ds_core.config.models:TimersSection", summary="Throughput timer"),
    ConfigSection("aio", "ds_core.config.aio:AioSection", summary="Asynchronous file I/O, for offload to NVMe"),
    ConfigSection("checkpoint", "ds_core.config.models:CheckpointSection", summary="Saving and loading"),
)
