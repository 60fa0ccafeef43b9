"""Reads a pickle without running it: a machine of our own that builds plain values, lazy tensors and inert records.

Note [Hostile pickles]: Python's unpickler imports and calls what a file names, so a checkpoint from elsewhere is a
program. This machine walks the opcodes (`pickletools.genops` parses them and executes nothing) and knows only those
that build containers and scalars, and a table of names (records.py). It refuses, with file, position and reason:
    - every global outside of the table and of the inert modules, before anything else happens with it;
    - calls (REDUCE, NEWOBJ) of anything but a table entry or an inert name, which gives a record, and opcodes of
      extension registries, old-style instances, out-of-band buffers and persistent names that are text;
    - state (BUILD) for anything but a record, or a dict (whose attributes are dropped);
    - keys that are not scalars, tuples of scalars or records, since hashing nested tuples takes exponential time;
    - more than `MAX_BYTES` of pickle, `MAX_STEPS` opcodes or `MAX_OBJECTS` containers, which keeps memory below 2 GB;
    - storages and views of them outside of their file (stored.py, torch_file.py).
Values that refer to each other many times, or to themselves, stay what they are; who walks them limits depth and number
(plain.py).
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Collection
from typing import Any

from ds_core.checkpoint.foreign.records import CALLS, INERT, Array, Global, Record, call, is_scalar, resolve
from ds_core.checkpoint.foreign.window import Window
from ds_core.errors import CheckpointError

__all__ = ["MAX_BYTES", "MAX_OBJECTS", "MAX_STEPS", "read_pickle"]

MAX_BYTES = 256 << 20
"""Longest pickle that is read; tensors are not in it, only their descriptions."""
MAX_STEPS = 32_000_000
"""Most opcodes that are followed."""
MAX_OBJECTS = 6_000_000
"""Most containers, records and tensors that are made."""
_BUFFER_BYTES = 1 << 16

PersistentLoad = Callable[[Any], Any]


def read_pickle(
    window: Window,
    persistent: PersistentLoad | None = None,
    *,
    inert: Collection[str] = INERT,
) -> tuple[Any, int]:
    """What the pickle at the beginning of `window` describes, and its length in bytes.

    Args:
        window: bytes of a file; what follows the pickle is not read.
        persistent: makes the object of a persistent id (a storage); None refuses them.
        inert: names whose objects become records, see `ds_core.checkpoint.foreign.records.INERT`.

    Raises:
        CheckpointError: it is no whole pickle, or it asks for something that is not allowed.
    """
    stream = _Stream(window)
    machine = _Machine(persistent, inert)
    position = 0
    try:
        for steps, (opcode, argument, at) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            position = at or 0
            if steps >= MAX_STEPS:
                raise CheckpointError(f"it has more than {MAX_STEPS} steps")
            machine.step(opcode.name, argument)
        return machine.result(), stream.tell()
    except CheckpointError as error:
        raise CheckpointError(f"{window.path}: refused at byte {position} of its pickle: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error, AttributeError) as error:
        raise CheckpointError(
            f"{window.path}: its pickle is damaged or cut short at byte {position} ({type(error).__name__}: {error})"
        ) from None


class _Stream:
    """A window as the file that `genops` reads, in blocks, and never more than `MAX_BYTES` of it."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._size = min(window.size, MAX_BYTES)
        self._at = 0
        self._block = b""
        self._first = 0

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        begin = self._at - self._first
        if begin + count > len(self._block):
            self._fill(count)
            begin = 0
        found = self._block[begin : begin + count]
        self._at += len(found)
        return found

    def readline(self) -> bytes:
        begin = self._at - self._first
        end = self._block.find(b"\n", begin) + 1
        if not end:  # names are short: what is no whole line in a block is none
            self._fill(_BUFFER_BYTES)
            begin, end = 0, self._block.find(b"\n") + 1
        found = self._block[begin : end or len(self._block)]
        self._at += len(found)
        return found

    def _fill(self, count: int) -> None:
        if self._at + count > MAX_BYTES:
            raise CheckpointError(f"it is longer than {MAX_BYTES} bytes")
        size = min(max(count, _BUFFER_BYTES), self._size - self._at)
        self._block, self._first = self._window.read(self._at, size), self._at


class _Machine:
    """The stack and the memo of a pickle; one method a kind of opcode."""

    def __init__(self, persistent: PersistentLoad | None, inert: Collection[str]) -> None:
        self._persistent = persistent
        self._inert = inert
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._made = 0

    def step(self, name: str, argument: Any) -> None:
        """Follows one opcode."""
        if name in _CONTAINERS:
            self._made += 1
            if self._made > MAX_OBJECTS:
                raise CheckpointError(f"it makes more than {MAX_OBJECTS} objects")
        if name in _PUSH:
            self._stack.append(argument)
        elif name in _MAKE:
            self._stack.append(_MAKE[name]())
        elif name in _GET:
            self._stack.append(self._memo[argument])
        elif name in _PUT:
            self._memo[argument] = self._stack[-1]
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self._stack) < count:
                raise ValueError("stack underflow")
            self._stack[-count:] = [tuple(self._stack[-count:])]
        elif name in _STEPS:
            _STEPS[name](self)
        elif name == "GLOBAL":
            self._name(*argument.split(" ", 1))
        elif name not in _IGNORED:
            raise CheckpointError(f"opcode {name} is in no checkpoint")

    def result(self) -> Any:
        """What is left on the stack."""
        if len(self._stack) != 1 or self._marked:
            raise ValueError(f"it leaves {len(self._stack)} objects")
        return self._stack[0]

    # ---- opcodes without arguments

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _items(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._items()

    def pop_mark(self) -> None:
        self._items()

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def make_tuple(self) -> None:
        items = self._items()
        self._stack.append(tuple(items))

    def make_list(self) -> None:
        items = self._items()
        self._stack.append(items)

    def make_dict(self) -> None:
        items = self._items()
        self._stack.append({})
        self._set(items)

    def make_frozenset(self) -> None:
        items = self._items()
        self._stack.append({_key(item) for item in items})

    def append(self) -> None:
        item = self._stack.pop()
        _list(self._stack[-1]).append(item)

    def appends(self) -> None:
        items = self._items()
        _list(self._stack[-1]).extend(items)

    def setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def setitems(self) -> None:
        self._set(self._items())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise CheckpointError(f"items are put into a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def additems(self) -> None:
        items = self._items()
        target = self._stack[-1]
        if type(target) is not set:
            raise CheckpointError(f"elements are put into a {type(target).__name__}")
        target.update(_key(item) for item in items)

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise CheckpointError("a global's name is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        try:
            self._stack.append(resolve(Global(module, name), self._inert))
        except KeyError:
            raise CheckpointError(
                f"it names {f'{module}.{name}'[:200]!r}, which is no part of a checkpoint and will not be run; "
                "if you trust who wrote the file, load it there and save plain tensors"
            ) from None

    def reduce(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Global) or type(args) is not tuple:
            raise CheckpointError(f"it calls a {type(function).__name__}")
        self._stack.append(call(function, args, self._inert))

    def newobj(self) -> None:
        args, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Global) or type(args) is not tuple or (kind in CALLS and args):
            raise CheckpointError("it makes an object of what is no class")
        self._stack.append(call(kind, args, self._inert))

    def build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is dict:  # attributes of an OrderedDict, such as versions of modules
            return
        if isinstance(target, Array) and type(state) is tuple and state[1:2] in (("<",), ("|",), ("=",)):
            return
        if not isinstance(target, Record):
            raise CheckpointError(f"state is given to a {type(target).__name__}")
        slots: Any = None
        if type(state) is tuple and len(state) == 2 and all(part is None or type(part) is dict for part in state):
            state, slots = state
        for part in (state, slots):
            if type(part) is dict and all(type(name) is str for name in part):
                target.attributes.update(part)
            elif type(part) is tuple:
                target.state = part
            elif part is not None:
                raise CheckpointError(f"the state of a {target.name} is a {type(part).__name__}")

    def persistent(self) -> None:
        if self._persistent is None:
            raise CheckpointError("it refers to a storage, and this file has none")
        self._stack.append(self._persistent(self._stack.pop()))


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise CheckpointError(f"elements are put into a {type(value).__name__}")
    return value


def _key(value: Any) -> Any:
    if is_scalar(value) or isinstance(value, Record) or (type(value) is tuple and all(map(is_scalar, value))):
        return value
    raise CheckpointError(f"a key is a {type(value).__name__}")


_PUSH = frozenset(
    (
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "SHORT_BINBYTES",
        "BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    )
)
_MAKE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_CONTAINERS = frozenset(
    ("MARK", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ")
)
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "MEMOIZE": _Machine.memoize,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "ADDITEMS": _Machine.additems,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.newobj,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
