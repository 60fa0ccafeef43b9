"""The page of the command line: every command with its arguments and options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from reference_pages.markdown import cell, code, prose, table
from reference_pages.markdown import page as make_page


def page() -> str:
    """The page."""
    from ds_core.cli import command

    root: Any = command()
    blocks = [prose(root.help or "")]
    blocks += list(commands(root, click.Context(root, info_name="ds"), 2))
    return make_page("Command line", *blocks)


def commands(command: Any, context: click.Context, depth: int) -> Iterator[str]:
    """The text of a command and of those below it."""
    for name in command.list_commands(context):
        found: Any = command.get_command(context, name)
        inner = click.Context(found, info_name=name, parent=context)
        yield f"{'#' * min(depth, 5)} {inner.command_path}"
        yield prose(found.help or "")
        if isinstance(found, click.Group):
            yield from commands(found, inner, depth + 1)
        else:
            usage = " ".join([inner.command_path, *found.collect_usage_pieces(inner)])
            yield f"```text\n{usage}\n```"
            yield table(["option or argument", "meaning"], (row(item) for item in found.get_params(inner)))


def row(item: Any) -> list[str]:
    """A row for one option or argument."""
    if isinstance(item, click.Argument):
        return [code(item.human_readable_name), cell(getattr(item, "help", None) or "")]
    names = ", ".join([*item.opts, *item.secondary_opts])
    default = "" if item.default in (None, False, ()) or callable(item.default) else f" (default: {item.default})"
    return [code(names), cell(prose(item.help or "") + default)]
