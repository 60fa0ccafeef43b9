"""Parameter groups whose tensors are all on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ds_core.errors import ConfigError
from ds_core.optim.groups import normalize, tensors_of

__all__ = ["on_cpu"]


def on_cpu(owner: str, elsewhere_use: str, params: Iterable[Any]) -> list[dict[str, Any]]:
    """Group dicts from what torch takes.

    Args:
        owner: class that updates them, for messages.
        elsewhere_use: class that serves any device.

    Raises:
        ConfigError: a tensor is not on the CPU.
        ModelError: there is none.
    """
    groups = normalize(params)
    elsewhere = sorted({str(t.device) for t in tensors_of(groups) if t.device.type != "cpu"})
    if elsewhere:
        raise ConfigError(
            f"{owner} updates parameters on the CPU, got some on {', '.join(elsewhere)}. Use the optimizer of that "
            f"device, or {elsewhere_use}, which serves any."
        )
    return groups
