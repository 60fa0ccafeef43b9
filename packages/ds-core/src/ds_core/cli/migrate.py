"""``ds migrate CONFIG``: a config of DeepSpeed in present names, and what to know about it. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ds_core.cli._output import write_json, write_line
from ds_core.config.migrate import Migration, migrate
from ds_core.errors import ConfigError, DsError

__all__ = ["command"]

FAULT = 2
"""Exit code when the config cannot be read."""
LEFT_OVER = 1
"""Exit code when something of it is not served, or wrong."""


def command(
    file: Annotated[str, typer.Argument(metavar="CONFIG", help="JSON or HJSON file, or base64 of one.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the new config; otherwise printed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write config and remarks as one JSON document.")] = False,
) -> None:
    """Rewrite a config written for DeepSpeed, with a remark on every key that changed.

    The exit code is 0 when the new config asks for all that the old one did, 1 when something is not served or wrong.
    """
    try:
        found = migrate(file)
        if out is not None:
            _write(out, found)
    except DsError as error:
        typer.echo(f"ds migrate: {error}", err=True)
        raise typer.Exit(FAULT) from error
    if as_json:
        remarks = [{"key": remark.key, "kind": remark.kind, "text": remark.text} for remark in found.remarks]
        write_json({"ok": found.is_clean, "config": found.config, "remarks": remarks})
    else:
        if out is None:
            write_line(json.dumps(found.config, indent=2))
        for remark in found.remarks:
            typer.echo(f"{remark.kind}: {remark.text}", err=True)
    if not found.is_clean:
        raise typer.Exit(LEFT_OVER)


def _write(out: Path, found: Migration) -> None:
    try:
        out.write_text(json.dumps(found.config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the config cannot be written to {str(out)!r}: {error}") from error
