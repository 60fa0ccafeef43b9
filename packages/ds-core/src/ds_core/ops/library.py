"""Registers every op of the table with torch, as ``torch.ops.ds.*``.

Note [One kernel for all devices]
    Each op gets a single kernel under CompositeExplicitAutograd that checks the arguments and asks the registry for
    the tensors' device type. So a wheel's implementation is found the same way from ``torch.ops.ds`` and from
    ``ds_core.ops``, for dispatch keys that torch knows and for those of out-of-tree devices, and it is loaded only
    when it is first called. The shape functions serve FakeTensor and Meta; plain `Library` calls are used because the
    ``custom_op`` decorator costs several times more on every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import run
from ds_core.ops.table import OPS

__all__ = ["LIBRARY", "serve"]

LIBRARY = torch.library.Library("ds", "FRAGMENT")
"""Owns the registrations; they last as long as it."""


def _kernel(definition: OpDefinition) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return run(definition, *args, **kwargs)

    return kernel


def _register(definition: OpDefinition) -> None:
    qualified = f"ds::{definition.name}"
    LIBRARY.define(definition.schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(definition.name, _kernel(definition), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, definition.fake, lib=LIBRARY)
    if definition.autograd is not None:
        torch.library.register_autograd(
            qualified, definition.autograd.backward, setup_context=definition.autograd.setup_context, lib=LIBRARY
        )
    if definition.flops is not None:
        register_flop_formula(getattr(torch.ops.ds, definition.name))(definition.flops)


def serve(kind: type) -> None:
    """Runs every op on tensors of subclass `kind` as on others; see Note [Devices written in Python]."""
    for each in OPS.values():
        torch.library.register_torch_dispatch(f"ds::{each.name}", kind, _rule(each.definition()), lib=LIBRARY)


def _rule(definition: OpDefinition) -> Callable[..., Any]:
    def rule(kind: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(definition, *args, **(kwargs or {}))

    return rule


for _op in OPS.values():
    _register(_op.definition())
