"""Running an op at once, without torch's dispatcher, when nothing is looking on.

Note [Devices written in Python]
    A device may be a subclass of torch's tensors, which sees every op before a kernel of ours does and knows torch's
    own ops only. To a tensor of the type that its device makes nothing is looking on: it is plain, and where an op
    still has to go through ``torch.ops``, for a derivative, our kernel is put before what the subclass does. An engine
    does that when it is built, and so does the first op that is called without a derivative.
"""

from __future__ import annotations

from typing import Any

import torch

from ds_core.ops.definition import OpDefinition
from ds_core.ops.registry import resolve

__all__ = ["is_plain", "meet", "run"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_HOST = ("cpu", "meta")


_own: dict[str, type] = {}
"""By device type, the type its tensors are made as; see Note [Devices written in Python]."""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether an op may run at once; else (tracing, compiling, tensor subclasses) it must go through ``torch.ops``."""
    kind = type(tensor)
    return (kind in _PLAIN or _is_own(kind, tensor.device)) and not torch.compiler.is_compiling()


def meet(device: torch.device) -> None:
    """Lets every op run on the tensors of `device`, whatever type they are; see Note [Devices written in Python]."""
    if device.type not in _HOST and device.type not in _own:
        own = _own[device.type] = type(torch.empty(0, device=device))
        if own not in _PLAIN:
            from ds_core.ops.library import serve

            serve(own)


def _is_own(kind: type, device: torch.device) -> bool:
    if device.type in _HOST or torch._C._len_torch_dispatch_stack():  # a mode would make tensors of its own type
        return False
    meet(device)
    return kind is _own[device.type]


def run(definition: OpDefinition, *args: Any, **kwargs: Any) -> Any:
    """Checks the arguments and runs the implementation for the device of the first tensor."""
    definition.check(*args, **kwargs)
    return resolve(definition.name, args[0].device.type)(*args, **kwargs)
