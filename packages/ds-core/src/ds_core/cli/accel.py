"""``ds accel list|test``: the devices that installed wheels bring, and the acceptance test of one of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ds_core.cli._output import write_json, write_line, write_table
from ds_core.cli.main import installed_plugins
from ds_core.testing.conformance import Report, Result, chosen, run
from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.expected import read_expected
from ds_core.testing.conformance.text import COLUMNS, failures, filtered, headline, level_rows, markdown

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List devices, test one against the contract.")

REFUSED = 1
"""Exit code of a device that is not accepted."""


@app.command("list")
def list_accelerators(as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """List every accelerator with its state, and why not. Asks each wheel's probe."""
    from ds_core.accelerator import candidates

    manager = installed_plugins()
    offered = candidates(manager)
    rows = [
        {
            "id": c.id,
            "version": c.record.version,
            "state": c.state.value,
            "devices": c.device_count,
            "priority": c.entry.priority,
            "floor": c.entry.is_floor,
            "reason": c.reason,
        }
        for c in offered
    ]
    known = {id(c.record) for c in offered}
    for record in manager.records:
        if id(record) not in known and record.failed_at("ds_accelerators"):
            rows.append({"id": record.id, "version": record.version, "state": record.state.value, "devices": 0,
                         "priority": 0, "floor": False, "reason": record.reason})  # fmt: skip
    if as_json:
        write_json(rows)
        return
    write_table(
        ("accelerator", "version", "state", "devices", "priority", "reason"),
        [
            (
                str(row["id"]),
                str(row["version"]),
                str(row["state"]),
                str(row["devices"]),
                f"{row['priority']}{' (floor)' if row['floor'] else ''}",
                str(row["reason"]),
            )
            for row in rows
        ],
    )


@app.command()
def test(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The accelerator: short name, or wheel:name.")],
    level: Annotated[
        int | None, typer.Option("--level", "-l", help="Levels up to this one; all when not given.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="GROUP[/CASE]", help="These cases; may be repeated.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the report as Markdown, for a README.")
    ] = None,
    xfail: Annotated[
        Path | None,
        typer.Option("--xfail", metavar="FILE", help="Expected failures: 'group/case: why' a line. Strict."),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds an ordinary case may take.")] = 60.0,
    library: Annotated[
        Path | None,
        typer.Option("--library", metavar="FILE", help="Ops of a kernel library by itself, called with host pointers."),
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="List the cases and the promise each checks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Write the table and the failures only.")] = False,
) -> None:
    """Test an accelerator against the contract, level by level, each case in a process that may die of it.

    With --library nothing of NAME but its name is used: the ops of a library for the host, or of an emulated one, are.

    Exit code 0: nothing failed. 1: something did, or the device is not usable here. 2: a wrong call.
    """
    cases = chosen(level, only or (), kernels=library is not None)
    if list_only:
        write_table(("case", "level", "contract"), [(case.id, str(case.level), case.contract) for case in cases])
        return
    expected = read_expected(xfail, chosen()) if xfail is not None else {}
    progress = _Progress(len(cases), quiet=quiet)
    report = run(name, cases, timeout_s=timeout_s, expected=expected, told=progress.told, library=library)
    _write(report, json_file, markdown_file)
    if not report.is_accepted:
        raise typer.Exit(REFUSED)


class _Progress:
    """A line on standard error for each case that did not pass, and a counter where that is a terminal."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total: int = total
        self._done: int = 0
        self._counts: bool = sys.stderr.isatty() and not quiet
        self._tells: bool = not quiet

    def told(self, case: Case, result: Result) -> None:
        """Called after each case."""
        self._done += 1
        if self._counts:
            sys.stderr.write(f"\r\x1b[K{self._done}/{self._total} {case.id}")
            if self._done == self._total:
                sys.stderr.write("\r\x1b[K")
        if self._tells and (result.outcome.is_bad):
            sys.stderr.write(f"{chr(13) + chr(27) + '[K' if self._counts else ''}{result.outcome.value}: {case.id}\n")
        sys.stderr.flush()


def _write(report: Report, json_file: Path | None, markdown_file: Path | None) -> None:
    for paragraph in failures(report):
        write_line(paragraph)
        write_line()
    missing = filtered(report)
    if missing:
        write_table(("filtered for want of", "", "cases"), [(kind, what, str(n)) for kind, what, n in missing])
        write_line()
    write_table(COLUMNS, level_rows(report))
    for line in headline(report):
        write_line(line)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(markdown(report), encoding="utf-8")
