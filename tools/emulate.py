"""Runs the conformance cases of every op on processors that are not here: python tools/emulate.py [LEVEL ...].

Kernels are cross-compiled by the wheel's own CMakeLists.txt and called under qemu by a small program; the Python code
of the ops runs here. Every output is compared with the reference, within the bound of its case, and with what the
kernels of this machine give, bit for bit. `--write` puts the table into docs/explanation/levels.md.

Needs cmake, ninja, the cross compilers and qemu-user (Debian: g++-aarch64-linux-gnu, qemu-user). What cannot run is a
row of the table with its reason; ends with 1 when a case failed, or with --strict when something could not run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emulation.cases import Outcome, run_cases
from emulation.table import text, write_into
from emulation.targets import ELSEWHERE, MACHINES, Machine, Missing, build, probe

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explanation" / "levels.md"


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def run(machine: Machine, folder: Path, ops: Sequence[str]) -> Outcome:
    """All cases on one emulated machine, or why not."""
    say(f"{machine.level} on {machine.processor}")
    try:
        built = build(machine, folder)
        found = probe(machine, built)
    except Missing as reason:
        say(f"  not run: {reason}")
        return Outcome(machine, reason=str(reason))
    outcome = run_cases(machine, built, ops, found)
    for line in outcome.failures:
        say(f"  {line}")
    say(f"  {outcome.summary()}")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    levels = list(dict.fromkeys(machine.level for machine in MACHINES))
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=f"of {', '.join(levels)} (default: all)")
    parser.add_argument("--ops", nargs="+", default=[], help="these ops only")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--strict", action="store_true", help="end with 1 when something could not run")
    parser.add_argument("--build", type=Path, help="folder for what is compiled (default: a temporary one)")
    asked = parser.parse_args()
    unknown = [level for level in asked.levels if level not in levels]
    if unknown:
        parser.error(f"no emulator is known for {', '.join(unknown)}; known: {', '.join(levels)}")
    with tempfile.TemporaryDirectory(prefix="emulate-") as scratch:
        folder = asked.build or Path(scratch)
        chosen = [machine for machine in MACHINES if not asked.levels or machine.level in asked.levels]
        outcomes = [run(machine, folder, asked.ops) for machine in chosen]
    table = text(outcomes, ELSEWHERE)
    say("\n" + table)
    if asked.write:
        write_into(PAGE, table)
    failed = any(outcome.failures for outcome in outcomes)
    left_out = any(outcome.reason for outcome in outcomes)
    sys.exit(1 if failed or (asked.strict and left_out) else 0)


if __name__ == "__main__":
    main()
