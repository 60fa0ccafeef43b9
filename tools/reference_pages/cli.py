"""The page of the command line: every command with its arguments and options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from ds_core.cli.main import commands, load_ref_of
from reference_pages.markdown import cell, code, prose, table
from reference_pages.markdown import page as make_page


def page() -> str:
    """The page."""
    offered = commands()
    blocks = [
        "Errors raised on purpose end `ds` with exit code 2 and one line; `ds --traceback COMMAND` shows where.",
        table(["command", "what it does"], ([code(f"ds {p.item.name}"), cell(p.item.help)] for p in offered)),
    ]
    for provided in offered:
        app: Any = load_ref_of(provided)
        if not isinstance(app, typer.Typer):
            function, app = app, typer.Typer(add_completion=False)
            app.command()(function)
        blocks += describe(typer.main.get_command(app), f"ds {provided.item.name}", 2)
    return make_page("Command line", *blocks)


def describe(command: Any, path: str, depth: int) -> Iterator[str]:
    """The text of a command, and of those below it. Works on click's protocol, wherever typer takes click from."""
    context = command.context_class(command, info_name=path)
    below = command.list_commands(context) if isinstance(getattr(command, "commands", None), dict) else []
    yield f"{'#' * min(depth, 5)} {path}"
    yield prose(command.help or "")
    if not below:
        yield f"```text\n{' '.join([path, *command.collect_usage_pieces(context)])}\n```"
        yield table(["option or argument", "meaning"], (row(item) for item in command.get_params(context)))
    for name in below:
        yield from describe(command.get_command(context, name), f"{path} {name}", depth + 1)


def row(item: Any) -> list[str]:
    """A row for one option or argument."""
    if item.param_type_name == "argument":
        return [code(str(item.name).upper()), cell(getattr(item, "help", None) or "")]
    names = ", ".join([*item.opts, *item.secondary_opts])
    plain = item.default is not None and item.default is not False and isinstance(item.default, str | int | float)
    return [code(names), cell(prose(item.help or "") + (f" (default: {item.default})" if plain else ""))]
