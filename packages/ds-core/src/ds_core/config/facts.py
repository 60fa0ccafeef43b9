"""What a config is resolved against, and where each resolved value came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ds_core.errors import ConfigError

__all__ = ["Auto", "Facts", "Origin", "OriginKind"]

OriginKind = Literal["file", "default", "auto", "argument", "environment", "derived"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the job when a config is resolved.

    Args:
        world_size: ranks in the job.
        data_parallel_size: ranks among which a batch is divided; None leaves the batch unsolved until
            `Config.for_data_parallel`, because mesh axes are planned from a config.
        device_type: torch device type.
        param_numel: elements of all parameters.
        hidden_size: the model's hidden size.
        model_dtype: torch name of the parameters' dtype, for example ``"bfloat16"``.
    """

    world_size: int
    data_parallel_size: int | None = None
    device_type: str = "cpu"
    param_numel: int | None = None
    hidden_size: int | None = None
    model_dtype: str | None = None

    def __post_init__(self) -> None:
        """Refuse a job of no ranks.

        Raises:
            ConfigError: a size is below 1.
        """
        for name in ("world_size", "data_parallel_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"{name} must be at least 1, got {size}")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: its kind, and the file, variable, argument or computation behind it."""

    kind: OriginKind
    detail: str = ""

    def __str__(self) -> str:
        """As shown in messages: ``from ds.json``, ``default``, ``auto: hidden_size 64 squared``."""
        if self.kind == "file":
            return f"from {self.detail}"
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True, slots=True)
class Auto:
    """A value that a section computed for a key left at ``"auto"`` or null, and how it was computed."""

    value: Any
    how: str
