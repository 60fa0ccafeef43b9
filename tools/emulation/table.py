"""The table of what was emulated, and its place in a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from emulation.cases import Outcome

__all__ = ["text", "write_into"]

BEGIN, END = "<!-- emulated: written by tools/emulate.py -->", "<!-- end of emulated -->"


def text(outcomes: Sequence[Outcome], elsewhere: Mapping[str, str]) -> str:
    """A Markdown table."""
    return "\n".join(_lines(outcomes, elsewhere))


def _lines(outcomes: Sequence[Outcome], elsewhere: Mapping[str, str]) -> Iterator[str]:
    yield "| level | emulated processor | ops | cases | within bounds | bit-equal to x86-64 | other calls, bit-equal |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for outcome in outcomes:
        machine = outcome.machine
        where = f"`{machine.processor}`" + (f", vectors of {machine.vector_bits} bits" if machine.vector_bits else "")
        if outcome.reason:
            yield f"| `{machine.level}` | {where} | | | *not run: {outcome.reason}* | | |"
            continue
        cases = sum(outcome.cases.values())
        within = cases - len(outcome.failures)
        same = sum(outcome.same.values())
        yield f"| `{machine.level}` | {where} | {len(outcome.cases)} | {cases} | {within} | {same} | {outcome.beside} |"
    for level, reason in elsewhere.items():
        yield f"| `{level}` | *{reason}* | | | | | |"
    yield ""
    differing = {op for outcome in outcomes for op, number in outcome.cases.items() if outcome.same.get(op, 0) < number}
    if differing:
        yield f"Not bit-equal everywhere: {', '.join(f'`{op}`' for op in sorted(differing))}."
        yield ""
    uncalled = sorted({kernel for outcome in outcomes for kernel in outcome.uncalled})
    if uncalled:
        yield f"Kernels that no conformance case calls: {', '.join(f'`{name}`' for name in uncalled)}."
        yield ""
    tools = dict.fromkeys(part for outcome in outcomes for part in (outcome.emulator, outcome.compiler) if part)
    yield f"Emulators and compilers: {'; '.join(tools) or 'none'}."


def write_into(page: Path, table: str) -> None:
    """Puts the table between its marks in a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no place for the table: a line {BEGIN!r} and one {END!r}")
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
