"""How test ranks and the test talk: tensors cross a local pipe as plain bytes, everything else as multiprocessing does.

Nothing here touches a file. It carries objects between a test and the processes that test started itself, never
anything that came from elsewhere.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch

__all__ = ["FunctionRef", "decode", "encode", "locate", "resolve"]


@dataclass(frozen=True)
class FunctionRef:
    """A module-level function, named so that another process finds it: module, file of the module, name in it."""

    module: str
    file: str
    qualname: str


def locate(fn: Callable[..., Any]) -> FunctionRef:
    """The reference of a module-level function; TypeError for anything another process could not find."""
    qualname = getattr(fn, "__qualname__", None)
    module = sys.modules.get(getattr(fn, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    found: Any = module
    for part in qualname.split(".") if qualname else ("<none>",):
        found = getattr(found, part, None)
    if module is None or file is None or found is not fn:
        raise TypeError(
            f"run_ranks needs a function defined at module level in a file, got {fn!r}: other processes import it by "
            "name, so lambdas, closures, bound methods and functions typed into a prompt cannot be used"
        )
    return FunctionRef(module.__name__, str(Path(file).resolve()), str(qualname))


def resolve(ref: FunctionRef) -> Callable[..., Any]:
    """Import the function's module, once per process and from the very file the test uses, and return the function."""
    found: Any = _module(ref)
    for part in ref.qualname.split("."):
        found = getattr(found, part)
    result: Callable[..., Any] = found
    return result


def _same_file(module: types.ModuleType | None, file: str) -> bool:
    own = getattr(module, "__file__", None)
    return own is not None and str(Path(own).resolve()) == file


def _module(ref: FunctionRef) -> types.ModuleType:
    for name in (ref.module, "__mp_main__") if ref.module == "__main__" else (ref.module,):
        known = sys.modules.get(name)
        if known is not None and _same_file(known, ref.file):
            return known
    name = "__mp_main__" if ref.module == "__main__" else ref.module
    if name != "__mp_main__":
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.origin is not None and str(Path(spec.origin).resolve()) == ref.file:
            return importlib.import_module(name)
    # Test modules are usually not importable by name (no __init__.py, import mode "importlib"): load the file itself
    # under the name the test knows it by, with empty parents, so that its classes cross the pipe in both directions.
    parents = name.split(".")[:-1]
    for end in range(1, len(parents) + 1):
        parent = ".".join(parents[:end])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    spec = importlib.util.spec_from_file_location(name, ref.file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {ref.file} as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...], requires_grad: bool, parameter: bool) -> Any:
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    value = flat.view(dtype).reshape(shape)
    if parameter:
        return torch.nn.Parameter(value, requires_grad=requires_grad)
    return value.requires_grad_(requires_grad)


class _Encoder(ForkingPickler):
    """multiprocessing's encoder, with host tensors by value: no shared memory that outlives or dies with a rank."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind not in (torch.Tensor, torch.nn.Parameter) or obj.device.type != "cpu" or obj.layout != torch.strided:
            return NotImplemented
        value = obj.detach().contiguous().reshape(-1)
        raw = value.view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return _tensor, (raw, obj.dtype, tuple(obj.shape), obj.requires_grad, kind is torch.nn.Parameter)


def encode(value: Any) -> bytes:
    """`value` as bytes for `decode` in the process at the other end of the pipe."""
    buffer = io.BytesIO()
    _Encoder(buffer).dump(value)
    return buffer.getvalue()


def decode(data: bytes) -> Any:
    """The value that `encode` was given."""
    return ForkingPickler.loads(data)
