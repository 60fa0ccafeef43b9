"""`DeepSpeedConfig`: a config resolved for this job, whose values are attributes by DeepSpeed's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_core import comm
from ds_core.accessors import ACCESSORS
from ds_core.config import Config, Facts, load, resolve
from ds_core.config.source import read
from ds_core.errors import ConfigError

__all__ = ["DeepSpeedConfig", "load_ds_config"]

_PATHS = {**ACCESSORS, "zero_config": "zero_optimization", "zero_optimization_stage": "zero_optimization.stage"}


def load_ds_config(config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a config: a path, a dict, or base64 text."""
    return read(config)[0]


class DeepSpeedConfig:
    """Values of a config: ``config.train_batch_size``, ``config.zero_optimization_stage``, ``config.fp16_enabled``, ...

    Args:
        config: path, dict or base64 text.
        mpu: its ``get_data_parallel_world_size()`` is how many ranks divide a batch; None: all ranks.
        mesh_device: torch's DeviceMesh; the size of its first dimension is.

    Raises:
        ConfigError: the config cannot be used.
    """

    def __init__(self, config: str | Path | Mapping[str, Any], mpu: Any = None, mesh_device: Any = None) -> None:
        ranks = comm.get_world_size()
        if mesh_device is not None:
            ranks = mesh_device.size(0)
        elif mpu is not None:
            ranks = mpu.get_data_parallel_world_size()
        facts = Facts(world_size=comm.get_world_size(), data_parallel_size=ranks)
        self.resolved: Config = resolve(load(config), facts)
        self.mpu: Any = mpu

    def __getattr__(self, name: str) -> Any:
        if name == "resolved" or name.startswith("__"):
            raise AttributeError(name)
        path = _PATHS.get(name, name)
        if name in ("zero_enabled", "zero_optimization"):
            return bool(self.resolved.get("zero_optimization.stage", 0))
        try:
            return self.resolved[path] if path in self.resolved.sections else self._value(path)
        except ConfigError as error:
            raise AttributeError(f"DeepSpeedConfig has no attribute {name!r}: {error}") from error

    def _value(self, path: str) -> Any:
        missing = object()
        value = self.resolved.get(path, missing)
        if value is missing:
            raise ConfigError(f"the config has no key {path!r}")
        return value

    def print_user_config(self) -> None:
        """Logs what was written."""
        from ds_core.utils import log_dist

        log_dist(str(self.resolved.to_dict()), ranks=[0])

    def print(self, name: str) -> None:
        """Logs every value and where it came from."""
        from ds_core.utils import log_dist

        rows = [f"  {row.key} = {row.value!r} ({row.origin})" for row in self.resolved.rows()]
        log_dist("\n".join([name, *rows]), ranks=[0])
