"""What a pickle turns into that is no plain value: names, inert records, and the table of what is understood.

Note [Nothing is imported]: a pickle names classes and functions. Here a name stays a name: it is looked up in the table
below or in a short list of modules whose objects become `Record`s, and is refused otherwise. No name in a file is ever
imported, called or given attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ds_core.checkpoint.foreign.stored import Storage, StoredTensor
from ds_core.errors import CheckpointError

__all__ = ["CALLS", "INERT", "Array", "Global", "Record", "resolve"]

INERT = ("deepspeed.*", "argparse.Namespace", "types.SimpleNamespace")
"""Names whose objects become records: whole modules end in ``.*``."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle uses: a class or a function, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that is not here: its name, what it was made of, and its attributes. Does nothing.

    Attributes:
        name: of the class.
        args: what the object was to be made of.
        attributes: by name; a plain dict.
        state: what the object was to make its attributes of, where that is a tuple.
    """

    name: str
    args: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    state: tuple[Any, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


class Array(NamedTuple):
    """The element type of a numpy scalar; an array itself becomes a `Record`."""

    code: str


def resolve(name: Global, inert: Collection[str]) -> Any:
    """What stands for a global on the machine's stack: a dtype, a type of storage, or the name itself.

    Raises:
        KeyError: it is not one of those a checkpoint needs.
    """
    if name in CALLS or name in _TYPES:
        return name
    if name.module == "torch":
        if name.name in _DTYPES:
            return _DTYPES[name.name]
        if name.name in _STORAGES:
            return _STORAGES[name.name]
    if name == Global("torch.storage", "UntypedStorage"):
        return torch.uint8
    if _is_inert(name, inert):
        return name
    raise KeyError(str(name))


def call(name: Global, args: tuple[Any, ...], inert: Collection[str]) -> Any:
    """What an object's recipe, a name applied to arguments, stands for.

    Raises:
        CheckpointError: these arguments make nothing a checkpoint needs.
    """
    if name in CALLS:
        try:
            return CALLS[name](*args)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{name} is given arguments it cannot have ({error})") from None
    if _is_inert(name, inert):
        return Record(str(name), args)
    raise CheckpointError(f"{name} is not something to make an object with")


def _is_inert(name: Global, inert: Collection[str]) -> bool:
    full = str(name)
    return any(full.startswith(rule[:-1]) if rule.endswith(".*") else full == rule for rule in inert)


# ---- what the names in the table give


def is_scalar(value: Any) -> bool:
    """Whether a value may be a key: hashing it takes no more than its own size."""
    return value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype)


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in _a(list | tuple, pairs):
        key, value = _a(list | tuple, pair)
        made[_key(key)] = value
    return made


def _default(factory: Any = None) -> dict[Any, Any]:
    if factory is not None and not isinstance(factory, Global):
        raise TypeError("the factory is no type")
    return {}


def _key(value: Any) -> Any:
    if is_scalar(value) or isinstance(value, Record) or (isinstance(value, tuple) and all(map(is_scalar, value))):
        return value
    raise TypeError(f"a key is a {type(value).__name__}")


def _set(items: Any = ()) -> set[Any]:
    return {_key(item) for item in _a(list | tuple, items)}


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"encoding {str(encoding)[:20]!r}")
    return str(_a(str, text)).encode("latin1")


def _size(sizes: Any = ()) -> tuple[int, ...]:
    return tuple(_integers(sizes))


def _integers(values: Any) -> list[int]:
    if not isinstance(values, list | tuple) or not all(type(value) is int for value in values):
        raise TypeError("sizes are no integers")
    return list(values)


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> StoredTensor:
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise TypeError("a tensor needs a storage and an offset")
    return StoredTensor.of(storage, offset, _integers(size), _integers(stride))


def _typed_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor needs a storage and a dtype")
    numel = storage.numel * storage.dtype.itemsize // dtype.itemsize
    return _tensor(Storage(storage.window, dtype, numel), offset, size, stride)


def _parameter(data: Any, requires_grad: Any = False, hooks: Any = None, state: Any = None) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise TypeError("a parameter needs a tensor")
    return data


def _of_type(function: Any, kind: Any, args: Any, state: Any = None) -> StoredTensor:
    if not isinstance(function, Global) or function not in (_TENSOR_V2, _PARAMETER) or kind not in _TENSOR_TYPES:
        raise TypeError("a subclass of Tensor")
    made = CALLS[function](*_a(tuple, args))
    assert isinstance(made, StoredTensor)
    return made


def _device(*args: Any) -> str:
    if not all(isinstance(arg, str | int) for arg in args):
        raise TypeError("no device")
    return ":".join(map(str, args))


def _reconstruct(kind: Any, base: Any, state: Any) -> Record:
    if not isinstance(kind, Global) or kind in CALLS or base != Global("builtins", "object") or state is not None:
        raise TypeError("not a plain object")
    return Record(str(kind))


def _member(kind: Any, name: Any) -> Record:
    # How some Pythons write the member of an Enum. Nothing but a record of two names comes of it.
    if not isinstance(kind, Global) or kind in CALLS or kind in _TYPES or not isinstance(name, str):
        raise TypeError("only a member of an inert enum may be named")
    return Record(str(kind), (name,))


def _numpy_dtype(code: Any, align: Any = False, copy: Any = True) -> Array:
    if code not in _NUMPY:
        raise ValueError(f"numpy dtype {str(code)[:20]!r}")
    return Array(code)


def _numpy_scalar(dtype: Any, content: Any) -> Any:
    import struct

    if not isinstance(dtype, Array):
        raise TypeError("no numpy dtype")
    try:
        (value,) = struct.unpack("<" + _NUMPY[dtype.code], _a(bytes, content))
    except struct.error as error:
        raise ValueError(str(error)) from None
    return value


def _numpy_array(kind: Any, shape: Any, code: Any) -> Record:
    if kind != Global("numpy", "ndarray"):
        raise TypeError("no numpy array")
    return Record("numpy.ndarray")


def _random_state(*args: Any) -> Record:
    return Record("numpy.random")


def _a(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"got {type(value).__name__}")
    return value


_TENSOR_V2 = Global("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_TENSOR_TYPES = (
    Global("torch", "Tensor"),
    Global("torch.nn.parameter", "Parameter"),
    Global("torch._tensor", "Tensor"),
)
_NUMPY = {
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "b1": "?",
}
"""Codes of numpy's types, and those of `struct`."""
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int64", "int32", "int16", "int8"),
        *("uint8", "uint16", "uint32", "uint64", "bool", "float8_e4m3fn", "float8_e5m2"),
    )
}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_PYTHON: Mapping[str, Callable[..., Any]] = {
    "set": _set,
    "frozenset": _set,
    "complex": lambda real, imag: complex(_a(int | float, real), _a(int | float, imag)),
    "bytes": lambda content=b"": _a(bytes, content),
    "bytearray": lambda content=b"", encoding="latin1": (
        content if isinstance(content, bytes) else _encode(content, encoding)
    ),
    "slice": lambda *ends: Record("slice", tuple(_a(int | None, end) for end in ends)),
    "range": lambda *ends: Record("range", tuple(_integers(list(ends)))),
    "getattr": _member,
}
CALLS: dict[Global, Callable[..., Any]] = {
    **{Global(module, name): made for name, made in _PYTHON.items() for module in ("builtins", "__builtin__")},
    Global("collections", "OrderedDict"): _ordered,
    Global("collections", "defaultdict"): _default,
    Global("_codecs", "encode"): _encode,
    Global("copy_reg", "_reconstructor"): _reconstruct,
    Global("copyreg", "_reconstructor"): _reconstruct,
    Global("torch", "Size"): _size,
    Global("torch", "device"): _device,
    _TENSOR_V2: _tensor,
    Global("torch._utils", "_rebuild_tensor"): _tensor,
    Global("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    _PARAMETER: _parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Global("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    Global("torch.serialization", "_get_layout"): lambda name: _a(str, name),
    Global("numpy", "dtype"): _numpy_dtype,
    Global("numpy.core.multiarray", "scalar"): _numpy_scalar,
    Global("numpy._core.multiarray", "scalar"): _numpy_scalar,
    Global("numpy.core.multiarray", "_reconstruct"): _numpy_array,
    Global("numpy._core.multiarray", "_reconstruct"): _numpy_array,
}
"""What a pickle may call, and the function of ours that stands for it."""
_TYPES = {
    *_TENSOR_TYPES,
    Global("numpy", "ndarray"),
    *(Global(m, n) for m in ("builtins", "__builtin__") for n in ("object", "dict", "list", "int", "float", "str")),
}
"""What a pickle may name and not call."""
