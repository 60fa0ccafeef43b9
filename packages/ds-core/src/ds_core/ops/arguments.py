"""Argument structs of kernels, packed from Python by the declarations of ``ds_kernel.h`` themselves.

Note [One declaration]
    A kernel takes a pointer to the argument struct of its op. The layout is read from the C headers that kernels are
    compiled against, so a field is declared once, and a caller that misspells one or leaves one out is told so.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ds_core.errors import OpError, did_you_mean
from ds_core.ops.native import include_dir

__all__ = ["ArgumentStruct", "argument_struct", "argument_structs", "read_structs"]

_CODES = {"uint32_t": "I", "int32_t": "i", "uint64_t": "Q", "int64_t": "q", "float": "f", "double": "d"}
_STRUCT = re.compile(r"typedef struct (\w+) \{(.*?)\} \1;", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DEFAULT = re.compile(r"(\w+);\s*/\*(?:(?!\*/).)*\b0 if left out\b", re.DOTALL)
_FIELD = re.compile(r"^(?:const )?(\w+)\s*((?:\*\s*(?:const\s*)?)*)\s*(\w+)$")


class ArgumentStruct:
    """The layout of one struct. Calling it packs the struct from its fields by name.

    Args:
        name: as in the header, for example ``"ds_adam_args"``.
        fields: (name, format code of `struct`) in order, without ``struct_size`` and reserved fields.
        format: of the whole struct, for `struct.Struct`.
        optional: fields that are 0 when a caller leaves them out: they took the place of a reserved one, and there are
            callers from before.
    """

    __slots__ = ("_defaults", "_names", "_pack", "fields", "name", "size")

    def __init__(
        self, name: str, fields: tuple[tuple[str, str], ...], format: str, optional: Collection[str] = ()
    ) -> None:
        packer = struct.Struct(format)
        self.name: str = name
        self.fields: tuple[tuple[str, str], ...] = fields
        self.size: int = packer.size
        self._names: tuple[str, ...] = tuple(field for field, _ in fields)
        self._defaults: dict[str, int] = dict.fromkeys(optional, 0)
        self._pack: Callable[..., bytes] = packer.pack

    def __call__(self, **values: Any) -> bytes:
        """The struct with these fields. Addresses are integers, 0 for NULL.

        Raises:
            OpError: a field is missing, unknown, or does not fit its type.
        """
        if self._defaults:
            values = {**self._defaults, **values}
        try:
            packed = self._pack(self.size, *[values[name] for name in self._names])
        except (KeyError, struct.error, OverflowError) as error:
            raise OpError(self._complaint(values, error)) from error
        if len(values) != len(self._names):
            raise OpError(self._complaint(values, None))
        return packed

    def _complaint(self, values: Mapping[str, Any], error: Exception | None) -> str:
        missing = [name for name in self._names if name not in values]
        unknown = [name for name in values if name not in self._names]
        if unknown:
            return f"{self.name} has no field {unknown[0]!r}.{did_you_mean(unknown[0], self._names)}"
        if missing:
            return f"{self.name}: missing {', '.join(missing)}"
        return f"{self.name}: a value does not fit its field: {error}"


def argument_struct(name: str) -> ArgumentStruct:
    """The struct called `name` in the headers of this ds-core.

    Raises:
        OpError: there is none.
    """
    known = argument_structs()
    if name not in known:
        raise OpError(f"ds_kernel.h has no struct {name!r}.{did_you_mean(name, known)}")
    return known[name]


@functools.cache
def argument_structs() -> Mapping[str, ArgumentStruct]:
    """Every argument struct of the headers of this ds-core, by name."""
    headers = sorted((include_dir() / "ds_kernel").glob("*.h"))
    return {name: found for header in headers for name, found in read_structs(header.read_text()).items()}


def read_structs(header: str) -> dict[str, ArgumentStruct]:
    """The structs declared in the text of a header.

    Raises:
        OpError: a struct has a field of a type that cannot be passed.
    """
    return {name: _read_struct(name, body) for name, body in _STRUCT.findall(header)}


def _read_struct(name: str, body: str) -> ArgumentStruct:
    optional = _DEFAULT.findall(body)
    body = _COMMENT.sub("", body)
    format, fields = "@", []
    for number, declaration in enumerate(line.strip() for line in body.split(";") if line.strip()):
        match = _FIELD.match(" ".join(declaration.split()))
        code = None if match is None else "P" if match[2] else _CODES.get(match[1])
        if match is None or code is None:
            raise OpError(
                f"{name}: cannot pass the field {declaration!r}; allowed types: {', '.join(_CODES)}, pointers"
            )
        if number == 0 and (match[3], code) != ("struct_size", "I"):
            raise OpError(f"{name}: the first field must be `uint32_t struct_size`, got {declaration!r}")
        if match[3].startswith("reserved"):
            format += f"{struct.calcsize(code)}x"
            continue
        format += code
        if number > 0:
            fields.append((match[3], code))
    return ArgumentStruct(name, tuple(fields), format + "0P", optional)  # ends as aligned as C does
