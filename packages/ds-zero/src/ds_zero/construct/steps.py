"""What a recording is made of: cells (storages), refs (tensors on them) and steps (operators).

Note [Hollow tensors]: a recorded tensor is an ordinary tensor on the device its constructor asked for, but its storage
has zero bytes. Unlike a meta tensor it tells the truth about its device, `torch.nn.init` treats it like any other, and
``parameter.data = shard`` works on it later, so the Parameter object the model was built with is the one that trains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Blank", "Cell", "Log", "Ref", "Step", "Traits", "map_tensors", "refs_in", "traits_of"]

# In-place operators whose result does not depend on what the tensor held before.
_BLIND = frozenset(
    {
        "uniform_",
        "normal_",
        "zero_",
        "fill_",
        "copy_",
        "random_",
        "exponential_",
        "geometric_",
        "cauchy_",
        "log_normal_",
    }
    | {"bernoulli_", "eye_"}
)
_EMPTY = frozenset({"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"})


@dataclass(frozen=True, slots=True)
class Ref:
    """One tensor of a recording: its cell, and its geometry on it (sizes, strides and offset in elements)."""

    cell: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    conj: bool
    neg: bool

    @classmethod
    def of(cls, cell: int, tensor: torch.Tensor) -> Ref:
        size, stride = tuple(tensor.shape), tuple(tensor.stride())
        return cls(cell, tensor.dtype, size, stride, int(tensor.storage_offset()), tensor.is_conj(), tensor.is_neg())

    def on(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor this ref describes, on `storage`."""
        tensor = torch.empty(0, dtype=self.dtype, device=storage.device)
        tensor.set_(storage, self.offset, self.size, self.stride)
        tensor = tensor.conj() if self.conj else tensor
        return torch._neg_view(tensor) if self.neg else tensor

    def covers(self, nbytes: int) -> bool:
        """Whether the tensor fills a storage of `nbytes` bytes, each element once."""
        expected = 1
        for size, stride in sorted(zip(self.size, self.stride, strict=True), key=lambda pair: pair[1]):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return self.offset == 0 and expected * self.dtype.itemsize == nbytes


@dataclass(frozen=True, slots=True)
class Blank:
    """A tensor of which an operator reads only shape, strides and dtype (`zeros_like`); it costs no memory."""

    ref: Ref


@dataclass(slots=True, eq=False)
class Cell:
    """One storage: what it would occupy, and its real bytes where it had some before the recording wrote to it."""

    index: int
    weak: StorageWeakRef
    nbytes: int
    device: torch.device
    base: torch.UntypedStorage | None = None

    def storage(self) -> torch.UntypedStorage | None:
        """The storage, or None when no tensor is on it any more."""
        found: torch.UntypedStorage | None = torch.UntypedStorage._new_with_weak_ptr(self.weak.cdata)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operator: its arguments with refs for tensors, the cells it reads and writes, and what it makes.

    `reads` leaves out cells the step only writes. `writes` are refs of arguments changed in place; `outs` are refs on
    cells the step makes. `blind` means that what `writes` held before does not matter to the written elements.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: frozenset[int]
    writes: tuple[Ref, ...]
    outs: tuple[Ref | None, ...]
    blind: bool
    random: bool
    default_dtype: torch.dtype

    def kills(self, ref: Ref, cells: list[Cell]) -> bool:
        """Whether writing `ref` makes everything its cell held before unreachable."""
        return self.blind and ref.cell not in self.reads and ref.covers(cells[ref.cell].nbytes)


@dataclass(slots=True, eq=False)
class Log:
    """Everything recorded: cells, steps in order, which steps write each cell, and what draws random numbers."""

    cells: list[Cell] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    writers: list[list[int]] = field(default_factory=list)
    randoms: list[int] = field(default_factory=list)
    generators: dict[torch.Generator, None] = field(default_factory=dict)

    def new_cell(self, storage: torch.UntypedStorage, nbytes: int) -> Cell:
        cell = Cell(len(self.cells), StorageWeakRef(storage), nbytes, storage.device)
        self.cells.append(cell)
        self.writers.append([])
        return cell

    def add(self, step: Step) -> None:
        index = len(self.steps)
        self.steps.append(step)
        for cell in {ref.cell for ref in (*step.writes, *step.outs) if ref is not None}:
            self.writers[cell].append(index)
        if step.random:
            self.randoms.append(index)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the schema of an operator says about it."""

    written: tuple[str, ...]
    names: tuple[str, ...]
    view: bool
    in_place_view: bool
    random: bool
    blind: bool
    empty: bool
    like: bool
    takes_device: bool
    gives_tensors: bool

    def written_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensor arguments the operator changes in place."""
        named = dict(zip(self.names, args, strict=False)) | kwargs
        return [tensor for name in self.written for tensor in refs_in(named.get(name), torch.Tensor)]


@functools.cache
def traits_of(func: Any) -> Traits:
    """The traits of one operator overload, read once from its schema and tags."""
    schema = func._schema
    written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    name = schema.name.split("::")[1]
    names = tuple(argument.name for argument in schema.arguments)
    aliased = any(value.alias_info is not None for value in schema.returns)
    return Traits(
        written=written,
        names=names,
        view=aliased and not written,
        in_place_view=torch.Tag.inplace_view in func.tags,
        random=torch.Tag.nondeterministic_seeded in func.tags or "generator" in names,
        blind=name in _BLIND,
        empty=name in _EMPTY,
        like=name.endswith("_like") or name.startswith("new_"),
        takes_device="device" in names,
        gives_tensors=not schema.returns or any("Tensor" in str(value.type) for value in schema.returns),
    )


def map_tensors(change: Callable[[Any], Any], value: Any, kind: type | tuple[type, ...] = torch.Tensor) -> Any:
    """`value` with every `kind` inside its lists, tuples and dicts replaced by ``change(it)``."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([map_tensors(change, item, kind) for item in value])
    if isinstance(value, dict):
        return {key: map_tensors(change, item, kind) for key, item in value.items()}
    return value


def refs_in(value: Any, kind: type | tuple[type, ...] = Ref) -> Iterator[Any]:
    """Every `kind` inside the lists, tuples and dicts of `value`, in order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from refs_in(item, kind)
    elif isinstance(value, dict):
        yield from refs_in(list(value.values()), kind)
