"""``initialize`` and its relatives; importing this module imports neither torch nor a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_core.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    import torch

    from ds_core.data import DistributedLoader
    from ds_core.engine import Engine
    from ds_core.optimizer_handle import OptimizerHandle

__all__ = ["add_config_arguments", "include_dir", "initialize"]


def initialize(
    args: argparse.Namespace | None = None,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None = None,
    model_parameters: Any = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = 29500,
    mpu: None = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    mesh_param: None = None,
    config_params: str | Path | Mapping[str, Any] | None = None,
    accelerator: str | None = None,
) -> tuple[Engine, OptimizerHandle | None, DistributedLoader | None, Any]:
    """Wraps a model in an engine that trains it as a config says. Called on all ranks.

    Starts torch.distributed if it is not running, moves the model to this rank's device, makes all ranks start from
    the first rank's parameters, and builds optimizer, schedule and data loader.

    Args:
        args: parsed arguments with ``deepspeed_config`` or ``ds_config``, an alternative to `config`.
        model: the module; its parameters become views of flat buffers.
        optimizer: a torch optimizer over the model's parameters, or a callable that makes one from parameter groups;
            takes the place of ``optimizer`` in the config.
        model_parameters: parameters, or group dicts as torch optimizers take them; default every trainable one.
        training_data: a data set; the third result is then a loader of this rank's share.
        lr_scheduler: a schedule over `optimizer`, or a callable that makes one from the optimizer.
        distributed_port: rendezvous port where the environment names none.
        mpu: refused; other axes than data come from wheels, which plan them from the config.
        dist_init_required: False refuses to start torch.distributed here.
        collate_fn: for the loader.
        config: path, dict or base64 text of the JSON config.
        mesh_param: refused, as `mpu`.
        config_params: older name of `config`.
        accelerator: device kind; beats the config and ``DS_ACCELERATOR``.

    Returns:
        ``(engine, optimizer, dataloader, lr_scheduler)``; the last three are None where there is none.

    Raises:
        ConfigError: no config, two configs, or one that cannot be used.
        ModelError: the model or optimizer cannot be trained as it is.
        AcceleratorError, PluginError, CommError: the machine or the installation is not as asked.
    """
    source = _config_source(args, config, config_params)
    for name, value in (("mpu", mpu), ("mesh_param", mesh_param)):
        if value is not None:
            raise ConfigError(
                f"{name} is not taken: the mesh is planned from the config and the model; leave it out (stages come "
                "with ds-pipeline, experts with ds-moe; tensor and sequence axes are not released yet)"
            )
    if model is None:
        raise ConfigError("initialize needs model=, a torch.nn.Module")
    from ds_core import comm
    from ds_core.build import Request, build_engine

    if dist_init_required is False and not comm.is_initialized():
        raise ConfigError("dist_init_required is False, and torch.distributed is not initialised; initialise it first")
    request = Request(
        model=model,
        config=source,
        optimizer=optimizer,
        model_parameters=model_parameters,
        training_data=training_data,
        lr_scheduler=lr_scheduler,
        collate_fn=collate_fn,
        accelerator=accelerator,
        distributed_port=distributed_port,
    )
    engine = build_engine(request)
    return engine, engine.optimizer, engine.training_dataloader, engine.lr_scheduler


def _config_source(args: Any, config: Any, config_params: Any) -> Any:
    from_args = None
    for name in ("deepspeed_config", "ds_config", "deepscale_config"):
        from_args = from_args or getattr(args, name, None)
    given = {"config": config, "config_params": config_params, "args.deepspeed_config": from_args}
    present = [name for name, value in given.items() if value is not None]
    if len(present) > 1:
        raise ConfigError(f"the config was given {len(present)} times, as {' and '.join(present)}; give it once")
    if not present:
        raise ConfigError("initialize needs a config: config= a path, dict or base64 text, or --deepspeed_config FILE")
    return given[present[0]]


def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds ``--deepspeed`` and ``--deepspeed_config`` to a parser, as scripts written for DeepSpeed expect."""
    group = parser.add_argument_group("ds", "training configuration")
    group.add_argument("--deepspeed", action="store_true", help="use the engine (kept for compatibility)")
    group.add_argument("--deepspeed_config", "--ds_config", dest="deepspeed_config", default=None, help="JSON config")
    return parser


def include_dir() -> Path:
    """Directory of the C headers that kernel libraries compile against."""
    return Path(__file__).parent / "include"
