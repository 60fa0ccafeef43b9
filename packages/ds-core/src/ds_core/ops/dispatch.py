"""Running an op at once, without torch's dispatcher, when nothing is looking on."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.ops.definition import OpDefinition
from ds_core.ops.registry import resolve

__all__ = ["is_plain", "run"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether an op may run at once; else (tracing, compiling, tensor subclasses) it must go through ``torch.ops``."""
    return type(tensor) in _PLAIN and not torch.compiler.is_compiling()


def run(definition: OpDefinition, *args: Any, **kwargs: Any) -> Any:
    """Checks the arguments and runs the implementation for the device of the first tensor."""
    definition.check(*args, **kwargs)
    return resolve(definition.name, args[0].device.type)(*args, **kwargs)
