"""A caller's values as JSON and back: tensors, tuples, bytes, arrays and keys that are no strings keep what they are.

Note [Marked values]
    What JSON has is written as it is. Anything else becomes a dict with the member ``$kind``; a dict of the caller's
    own that has such a member, or a key that is no string, is written as a list of pairs. What no kind covers stays as
    it is, so that the writer of JSON names it.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from typing import Any

import torch

from ds_core.errors import CheckpointError

__all__ = ["LIMIT_BYTES", "decode", "encode"]

MARK = "$kind"
LIMIT_BYTES = 16 << 20
"""The largest tensor or array; weights belong in the module."""
_NAMES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
)
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES}
_ARRAY_KINDS = "biufc"


def encode(value: Any, what: str = "client_state") -> Any:
    """`value` in what JSON can hold; see Note [Marked values].

    Raises:
        CheckpointError: a tensor or an array is larger than `LIMIT_BYTES`.
    """
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and MARK not in value:
            return {key: encode(item, f"{what}[{key!r}]") for key, item in value.items()}
        pairs = [[encode(key, what), encode(item, f"{what}[{key!r}]")] for key, item in value.items()]
        return {MARK: "dict", "items": pairs}
    if isinstance(value, list):
        return [encode(item, f"{what}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, tuple | set | frozenset):
        kind = "tuple" if isinstance(value, tuple) else "set"
        return {MARK: kind, "items": [encode(item, f"{what}[{index}]") for index, item in enumerate(value)]}
    if isinstance(value, bytes | bytearray):
        return {MARK: "bytes", "data": _text(bytes(value))}
    if isinstance(value, torch.Tensor):
        return _of_tensor(value, what)
    if type(value).__module__ == "numpy" and hasattr(value, "tobytes") and value.dtype.kind in _ARRAY_KINDS:
        _check_size(value.nbytes, what)
        ordered = value.astype(value.dtype.newbyteorder("<"))
        shape = list(value.shape) if hasattr(value, "__setitem__") else None
        return {MARK: "array", "dtype": ordered.dtype.str, "shape": shape, "data": _text(ordered.tobytes())}
    return value


def decode(value: Any) -> Any:
    """What `encode` was given.

    Raises:
        CheckpointError: `value` is none that `encode` makes.
    """
    try:
        return _decode(value)
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise CheckpointError(f"client_state of the checkpoint is not what was written: {error!r}") from error


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: _decode(item) for key, item in value.items()}
    kind = value[MARK]
    if kind not in _KINDS:
        raise ValueError(f"{MARK} {kind!r} is not one of {', '.join(_KINDS)}")
    return _KINDS[kind](value)


def _of_tensor(tensor: torch.Tensor, what: str) -> Any:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
        return tensor
    _check_size(tensor.numel() * tensor.itemsize, what)
    values = tensor.detach().cpu().contiguous().reshape(-1)
    data = values.view(torch.uint8).numpy().tobytes() if values.numel() else b""
    return {MARK: "tensor", "dtype": name, "shape": list(tensor.shape), "data": _text(data)}


def _to_tensor(value: dict[str, Any]) -> torch.Tensor:
    dtype, shape, data = _DTYPES[value["dtype"]], [int(size) for size in value["shape"]], _bytes(value)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for shape {shape} of {dtype}")
    made = torch.empty(shape, dtype=dtype)
    if data:
        made.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return made


def _to_array(value: dict[str, Any]) -> Any:
    import numpy

    dtype = numpy.dtype(value["dtype"])
    if dtype.kind not in _ARRAY_KINDS:
        raise ValueError(f"arrays of {dtype} are not read")
    made = numpy.frombuffer(_bytes(value), dtype).astype(dtype.newbyteorder("="))
    return made.reshape(value["shape"]) if value["shape"] is not None else made[0]


def _check_size(size_bytes: int, what: str) -> None:
    if size_bytes > LIMIT_BYTES:
        raise CheckpointError(
            f"{what} has {size_bytes} bytes and goes into the manifest, which takes tensors of up to {LIMIT_BYTES}; "
            "keep large ones as buffers of the module or in a file of your own"
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(value: dict[str, Any]) -> bytes:
    return base64.b64decode(value["data"], validate=True)


_KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": lambda value: {_decode(key): _decode(item) for key, item in value["items"]},
    "tuple": lambda value: tuple(_decode(item) for item in value["items"]),
    "set": lambda value: {_decode(item) for item in value["items"]},
    "bytes": _bytes,
    "tensor": _to_tensor,
    "array": _to_array,
}
