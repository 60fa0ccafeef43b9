"""A torch device written in Python, in this process: for tests of what must work on a device that has next to nothing.

Its tensors are a subclass of torch's that holds a host tensor. They have no address and no storage; there are no
streams, no events, no page-locked memory, no memory figures and no collectives, random numbers are the host's, and ops
that are not torch's own are refused. It is a stand-in for devices of strangers that are made the same way, and for
one's own torch backend while that does not exist.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["PythonTensor", "load"]

_FACTORIES = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m")
"""Ops that make a tensor out of none; torch makes all others of these and of ops that have a tensor to look at."""

_TAKE_HOST_TENSORS = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("copy_", "_to_copy", "index", "_unsafe_index", "index_put_", "_index_put_impl_", "index_put")
)

_KEPT: list[torch.library.Library] = []


class PythonTensor(torch.Tensor):
    """A tensor of the device; `host` is where its values really are."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # torch's own way

    @staticmethod
    def __new__(cls: type, host: torch.Tensor, requires_grad: bool = False) -> Any:
        """A tensor that shows `host`, and shares its memory."""
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(_device_type(), 0),
            requires_grad=requires_grad,
        )
        made.host = host
        return made

    def __init__(self, host: torch.Tensor, requires_grad: bool = False) -> None:
        """Everything was done when it was made."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # as its documentation has it
        cls, func: Any, kinds: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one of torch's own ops on the host tensors."""
        if func.namespace not in ("aten", "prim"):
            raise NotImplementedError(f"{func}: the device knows torch's own ops only")
        kwargs = dict(kwargs or {})
        strays = any(_is_stray(each) for each in tree_leaves((args, kwargs)))
        if strays and func.overloadpacket not in _TAKE_HOST_TENSORS:
            raise RuntimeError(f"{func}: expected all tensors to be on one device, found {_device_type()}:0 and cpu")
        back = {id(tensor.host): tensor for tensor in _tensors((args, kwargs))}
        to_host = _is_host(kwargs.get("device"))
        copies_to_host = func is torch.ops.aten.copy_.default and not isinstance(args[0], PythonTensor)
        result = func(*tree_map(_lower, tuple(args)), **tree_map(_lower, kwargs))
        if to_host or copies_to_host:
            return result

        def lift(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            known = back.get(id(value))
            return PythonTensor(value) if known is None else known

        return tree_map(lift, result)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """As the host tensor, with the device's name."""
        return f"{_device_type()}:{self.host!r}"

    def __format__(self, specification: str) -> str:
        """As the host tensor."""
        return format(self.host, specification)

    def tolist(self) -> Any:
        """The values; torch refuses for a subclass."""
        return self.host.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As torch saves tensors of devices it does not know."""
        parts = (self.host.detach(), self.dtype, str(self.device), self.requires_grad)
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, parts

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """What the tensor is made of."""
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, torch.Tensor], context: None, size: Any, stride: Any) -> PythonTensor:
        """The tensor that was made of `inner`."""
        return PythonTensor(inner["host"])


def load(name: str) -> None:
    """Makes ``torch.device(name)`` usable in this process, where torch has one place for such a device; again is fine.

    Raises:
        RuntimeError: another backend has the place; from torch.
    """
    if _KEPT and _device_type() == name:
        return
    begun: list[int] = []

    def set_device(index: int | torch.device) -> None:
        if index not in (0, torch.device(name, 0)):
            raise RuntimeError(f"{name} has one device, index 0, got {index}")
        begun.append(0)

    module = types.ModuleType(f"torch.{name}")
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: bool(begun),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": set_device,
        "manual_seed_all": lambda seed: None,  # draws come from the host's generator, which is seeded too
        "_is_in_bad_fork": lambda: False,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "device": lambda device: contextlib.nullcontext(),
        "get_device_name": lambda device=None: "a device written in Python",
    }
    vars(module).update(answers, _initialized=True)
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(name, backend_module=module)
    library = torch.library.Library("aten", "IMPL")
    for factory in _FACTORIES:
        library.impl(factory, _maker(factory), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    _KEPT.append(library)


def _maker(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def make(*args: Any, **kwargs: Any) -> PythonTensor:
        return PythonTensor(op(*args, **{**kwargs, "device": torch.device("cpu"), "pin_memory": False}))

    return make


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _lower(target).copy_(_lower(source))
    return target


def _device_type() -> str:
    name: str = torch._C._get_privateuse1_backend_name()
    return name


def _is_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _lower(value: Any) -> Any:
    if isinstance(value, PythonTensor):
        return value.host
    if isinstance(value, torch.device) and value.type == _device_type():
        return torch.device("cpu")
    return value


def _is_stray(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, PythonTensor) and value.dim() > 0


def _tensors(values: Any) -> list[PythonTensor]:
    found: list[PythonTensor] = []
    tree_map(lambda value: found.append(value) if isinstance(value, PythonTensor) else None, values)
    return found
