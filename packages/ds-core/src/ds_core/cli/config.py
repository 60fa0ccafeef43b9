"""``ds config check|explain|schema|diff``: look at a config without starting anything. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from ds_core.cli._output import write_json, write_line, write_table
from ds_core.config import Config, Facts, json_schema, load, resolve
from ds_core.config.config import ExplainRow
from ds_core.config.problems import show
from ds_core.errors import ConfigError, DsError

__all__ = ["app"]

FAULT = 2
"""Exit code when the config cannot be used."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Check a config, say where each value comes from, compare two."
)

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="JSON or HJSON file, or base64 of one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]
WorldOption = Annotated[
    int, typer.Option("--world", min=1, help="Ranks to solve the batch sizes for; no rank is started.")
]
MaybeWorldOption = Annotated[
    int | None, typer.Option("--world", min=1, help="Ranks to solve the batch sizes for; not solved without it.")
]
P = ParamSpec("P")


def _reported(command: Callable[P, None]) -> Callable[P, None]:
    """`command` with errors of this package written as one message, or as JSON when JSON was asked for."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except DsError as error:
            if kwargs.get("as_json"):
                kind = type(error).__name__
                write_json({"ok": False, "error": kind, "problems": str(error).splitlines()})
            else:
                typer.echo(f"ds config: {error}", err=True)
            raise typer.Exit(FAULT) from error

    return run


@app.command()
@_reported
def check(file: FileArgument, world: MaybeWorldOption = None, as_json: JsonOption = False) -> None:
    """Say whether a config can be used: its keys, types and combinations, and with --world its batch sizes."""
    config = _resolved(file, world)
    if as_json:
        write_json({"ok": True, "file": config.raw.label, "batch": _batch(config)})
        return
    text = f"{config.raw.label}: ok"
    if config.solved is not None:
        batch = config.batch
        text += (
            f", train_batch_size {batch.train_batch_size} = micro {batch.micro_batch_size} x accumulation"
            f" {batch.accumulation_steps} x {config.facts.data_parallel_size} data-parallel ranks"
        )
    write_line(text)


@app.command()
@_reported
def explain(file: FileArgument, world: WorldOption = 1, as_json: JsonOption = False) -> None:
    """List every value of a config and where it comes from."""
    rows = list(_resolved(file, world).rows())
    if as_json:
        write_json([_json_row(row) for row in rows])
        return
    write_table(("key", "value", "origin"), [(row.key, show(row.value, row.key), str(row.origin)) for row in rows])


@app.command()
@_reported
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write to; otherwise printed.")] = None,
) -> None:
    """Write the JSON Schema of a config, with the sections of every installed wheel, for editors."""
    text = json.dumps(json_schema(), indent=2)
    if output is None:
        write_line(text)
        return
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the schema cannot be written to {str(output)!r}: {error}") from error


@app.command()
@_reported
def diff(
    left: Annotated[str, typer.Argument(metavar="A", help="Config file.")],
    right: Annotated[str, typer.Argument(metavar="B", help="Config file to compare with.")],
    world: WorldOption = 1,
    as_json: JsonOption = False,
) -> None:
    """List the values that differ between two configs once both are resolved."""
    rows = _resolved(left, world).diff(_resolved(right, world))
    if as_json:
        write_json(
            [{"key": row.key, "left": _json_side(row.left), "right": _json_side(row.right)} for row in rows],
        )
        return
    if not rows:
        write_line("no difference")
        return
    write_table(("key", left, right), [(row.key, _side(row.left), _side(row.right)) for row in rows])


def _resolved(file: str, world: int | None) -> Config:
    """The config as a job of `world` ranks would see it; the batch is left open when `world` is None."""
    config = resolve(load(file), Facts(world_size=world or 1))
    return config if world is None else config.for_data_parallel(_data_parallel_size(config, world))


def _data_parallel_size(config: Config, world: int) -> int:
    """Ranks among which the batch is divided once the axes that installed wheels ask for beside it are taken."""
    from ds_core.plugins import manager

    size = 1
    for request in manager().call("ds_mesh_axes", config=config, model=None):
        size *= 1 if request.item.splits_batch or request.item.name == "data" else request.item.size
    if world % size:
        raise ConfigError(f"{world} ranks cannot be divided among mesh axes of {size} ranks; use a multiple of {size}")
    return world // size


def _batch(config: Config) -> dict[str, int] | None:
    if config.solved is None:
        return None
    return {
        "train_batch_size": config.batch.train_batch_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": config.batch.accumulation_steps,
    }


def _json_row(row: ExplainRow) -> dict[str, object]:
    value = row.value if show(row.value, row.key) != "***" else "***"
    return {"key": row.key, "value": value, "origin": row.origin.kind, "detail": row.origin.detail}


def _json_side(row: ExplainRow | None) -> dict[str, object] | None:
    return None if row is None else _json_row(row)


def _side(row: ExplainRow | None) -> str:
    return "-" if row is None else f"{show(row.value, row.key)} ({row.origin})"
