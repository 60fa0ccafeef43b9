"""`ds`: finds the subcommand among those the plugins offer, runs it, and turns errors into one clear message.

The subcommands are listed from `CommandEntry` data, so ``ds --help`` and the choice of a subcommand import neither
typer nor torch; only the chosen one is loaded.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ds_core
from ds_core.errors import DsError, PluginConflictError, UnknownPluginError, did_you_mean
from ds_core.hooks import CommandEntry
from ds_core.plugins import Provided, discover, load_ref, loaded_manager

if TYPE_CHECKING:
    from ds_core.plugins import PluginManager

__all__ = ["FAULT", "command_named", "commands", "installed_plugins", "main"]

FAULT = 2
"""Exit code of every error raised on purpose, and of a wrong call."""

_USAGE = """Usage: ds [--traceback] COMMAND [ARGUMENTS]...

Trains, inspects and repairs what the installed ds wheels bring.

Options:
  --help       Show this text; 'ds COMMAND --help' shows that of a command.
  --version    Show the version of ds-core.
  --traceback  Show where an error was raised.

Commands:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``ds`` with `arguments` (those of the process when None) and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in words[:1]
    if show_traceback:
        words.pop(0)
    try:
        return _dispatch(words)
    except DsError as error:
        if show_traceback:
            traceback.print_exc()
        sys.stderr.write(f"ds: error: {error}\n")
        return FAULT


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        sys.stdout.write(_usage())
        return 0 if words else FAULT
    if words[0] == "--version":
        sys.stdout.write(f"ds-core {ds_core.__version__}\n")
        return 0
    return _run(load_ref_of(command_named(words[0])), f"ds {words[0]}", words[1:])


def installed_plugins() -> PluginManager:
    """The process-wide plugins, without raising over those that are broken: the command line must be able to say so."""
    discover()
    manager = loaded_manager()
    if manager is None:
        raise DsError("the command line cannot be used while plugins are being loaded.")
    return manager


def commands() -> list[Provided[CommandEntry]]:
    """Every subcommand the plugins offer, by name."""
    return sorted(installed_plugins().collect("ds_commands"), key=lambda p: p.item.name)


def command_named(name: str) -> Provided[CommandEntry]:
    """The subcommand `name`.

    Raises:
        UnknownPluginError: no plugin offers it.
        PluginConflictError: two plugins offer it.
    """
    offered = commands()
    found = [p for p in offered if p.item.name == name]
    if not found:
        known = [p.item.name for p in offered]
        raise UnknownPluginError(
            f"there is no command {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
            f"{installed_plugins().hint(name)}"
        )
    if len(found) > 1:
        raise PluginConflictError(
            f"{len(found)} wheels offer the command {name!r}: {' and '.join(p.origin for p in found)}. "
            f"Set {' or '.join(f'DS_PLUGINS_DISABLE={p.record.id}' for p in found)}, or uninstall one."
        )
    return found[0]


def load_ref_of(command: Provided[CommandEntry]) -> Any:
    """The typer app or function of a subcommand."""
    return load_ref(command.item.app, command.record)


def _usage() -> str:
    offered = commands()
    width = max((len(p.item.name) for p in offered), default=0)
    return _USAGE + "".join(f"  {p.item.name:<{width}}  {p.item.help}\n" for p in offered)


def _run(app: Any, program: str, words: list[str]) -> int:
    # Not imported by name: it costs 60 ms, and only the command that runs needs it.
    typer = importlib.import_module("typer")
    if not isinstance(app, typer.Typer):
        app = _app_of(typer, app)
    command: Callable[..., Any] = typer.main.get_command(app)
    try:
        command(args=words, prog_name=program)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _app_of(typer: Any, function: Callable[..., Any]) -> Any:
    # Options after the first argument belong to that argument's own program: ds run train.py --lr 1.
    app = typer.Typer(add_completion=False, context_settings={"allow_interspersed_args": False})
    app.command()(function)
    return app
