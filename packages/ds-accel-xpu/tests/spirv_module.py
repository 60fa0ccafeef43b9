"""As much of SPIR-V as the tests need: entry points, types of their parameters, capabilities, execution modes.

Source: the SPIR-V specification, sections 2.3 (physical layout), 3.3 (execution modes), 3.31 (capabilities), 3.49.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = 0x07230203
CAPABILITIES = {4: "Addresses", 5: "Linkage", 6: "Kernel", 8: "Float16Buffer", 9: "Float16", 10: "Float64"}
CAPABILITIES |= {11: "Int64", 12: "Int64Atomics", 22: "Int16", 38: "GenericPointer", 39: "Int8", 18: "Groups"}
CONTRACTION_OFF = 31
ENTRY_POINT, EXECUTION_MODE, CAPABILITY, DECORATE = 15, 16, 17, 71
TYPE_INT, TYPE_FLOAT, TYPE_POINTER, TYPE_FUNCTION, FUNCTION = 21, 22, 32, 33, 54
LINKAGE_ATTRIBUTES, EXPORT = 41, 0


@dataclass
class SpirvModule:
    """What a module holds. `signatures` is by entry point, as table.h writes it."""

    version: tuple[int, int]
    signatures: dict[str, str] = field(default_factory=dict)
    capabilities: set[str] = field(default_factory=set)
    contraction_off: set[str] = field(default_factory=set)


def instructions(words: list[int]) -> Iterator[tuple[int, list[int]]]:
    """(opcode, operands) of a module."""
    at = 5
    while at < len(words):
        count, opcode = words[at] >> 16, words[at] & 0xFFFF
        yield opcode, words[at + 1 : at + count]
        at += count


def text(words: list[int]) -> str:
    """The string that begins `words`."""
    return struct.pack(f"<{len(words)}I", *words).partition(b"\0")[0].decode()


def read(path: Path) -> SpirvModule:
    """The module in a file."""
    raw = path.read_bytes()
    words = list(struct.unpack(f"<{len(raw) // 4}I", raw))
    assert words[0] == MAGIC, f"{path} is no SPIR-V"
    module = SpirvModule(version=(words[1] >> 16 & 0xFF, words[1] >> 8 & 0xFF))
    kinds: dict[int, str] = {}
    parameters: dict[int, str] = {}
    types_of_functions: dict[int, int] = {}
    names: dict[int, str] = {}
    modes: list[tuple[int, int]] = []
    for opcode, operands in instructions(words):
        if opcode == CAPABILITY:
            module.capabilities.add(CAPABILITIES.get(operands[0], str(operands[0])))
        elif opcode == ENTRY_POINT:
            names[operands[1]] = text(operands[2:])
        elif opcode == EXECUTION_MODE:
            modes.append((operands[0], operands[1]))
        elif opcode == TYPE_INT:
            kinds[operands[0]] = {32: "i", 64: "l"}.get(operands[1], "?")
        elif opcode == TYPE_FLOAT:
            kinds[operands[0]] = {32: "f"}.get(operands[1], "?")
        elif opcode == TYPE_POINTER:
            kinds[operands[0]] = "p"
        elif opcode == TYPE_FUNCTION:
            parameters[operands[0]] = "".join(kinds.get(each, "?") for each in operands[2:])
        elif opcode == FUNCTION:
            types_of_functions[operands[1]] = operands[3]
    module.signatures = {name: parameters[types_of_functions[at]] for at, name in names.items()}
    module.contraction_off = {names[at] for at, mode in modes if mode == CONTRACTION_OFF}
    return module
