"""``ds ops``: each op by device, native or reference, and which wheel the native one comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from ds_core.cli._output import write_json, write_line, write_table
from ds_core.cli.main import installed_plugins
from ds_core.ops.registry import Implementation, implementations
from ds_core.ops.table import OPS

__all__ = ["command"]

REFERENCE = "reference"


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, one object an implementation.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List every implementation, those not chosen too.")] = False,
) -> None:
    """List the ops by device: the wheel whose native kernel runs, or 'reference' for the plain PyTorch one."""
    found = implementations(installed_plugins())
    if as_json:
        write_json([asdict(row) | {"summary": OPS[row.op].summary} for row in found])
        return
    if every:
        rows = [(r.op, r.device, r.provider, r.proof, str(r.priority), "chosen" if r.chosen else "") for r in found]
        write_table(("op", "device", "from", "proven", "priority", ""), rows)
        return
    devices = sorted({row.device for row in found if not row.reference} | {"cpu"})
    rows_by_device = [(name, *(_cell(found, name, device) for device in devices), OPS[name].summary) for name in OPS]
    write_table(("op", *devices, "what it does"), rows_by_device)
    native = sum(1 for row in rows_by_device for cell in row[1:-1] if cell != REFERENCE)
    write_line(f"{native} native, {len(OPS) * len(devices) - native} reference; on any other device the reference runs")


def _cell(found: Sequence[Implementation], name: str, device: str) -> str:
    chosen = [_with_proof(r) for r in found if r.op == name and r.device == device and r.chosen]
    if len(chosen) > 1:
        return "conflict: " + " and ".join(chosen)
    return chosen[0] if chosen else REFERENCE


def _with_proof(row: Implementation) -> str:
    return row.provider if row.proof in ("", "unstated") else f"{row.provider}: {row.proof}"
