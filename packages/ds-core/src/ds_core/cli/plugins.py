"""``ds plugins list|why|doctor``: which plugins are installed, in which state, and what to do about the broken ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from ds_core.cli._output import write_json, write_line, write_table
from ds_core.cli.main import installed_plugins
from ds_core.errors import DsError, PluginError, UnknownPluginError, did_you_mean
from ds_core.hooks import HOOK_API
from ds_core.plugins import PluginManager, PluginRecord, PluginState, Provided
from ds_core.plugins.results import HOOK_RULES
from ds_core.plugins.scan import normalize

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="List the installed plugins, say what is wrong with one."
)

SWITCHES = (
    "DS_PLUGINS",
    "DS_PLUGINS_DISABLE",
    "DS_PLUGINS_AUTOLOAD",
    "DS_PLUGINS_STRICT",
    "DS_ACCELERATOR",
    "DS_ALLOW_CPU_FALLBACK",
    "DS_KERNEL_SELFTEST",
)
_LISTS: Mapping[str, Callable[[Any], object]] = {
    "ds_config_sections": lambda item: item.key,
    "ds_optimizers": lambda item: (item.name.casefold(), tuple(sorted(item.device_types)), item.priority),
    "ds_schedulers": lambda item: item.name.casefold(),
    "ds_ops": lambda item: (item.op, item.device_type, item.priority),
    "ds_comm_backends": lambda item: (item.name, item.priority),
    "ds_monitors": lambda item: item.name,
    "ds_launchers": lambda item: item.name,
    "ds_checkpoint_formats": lambda item: item.name,
    "ds_commands": lambda item: item.name,
}
"""Hooks `doctor` asks, each with what two plugins may not both offer."""

JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]
ProbeOption = Annotated[bool, typer.Option("--probe", help="Ask each accelerator whether it is usable here.")]


@app.command("list")
def list_plugins(as_json: JsonOption = False, probe: ProbeOption = False) -> None:
    """List every installed plugin with its state. Imports no torch; with --probe, an accelerator's probe may."""
    manager = installed_plugins()
    if probe:
        _probe(manager)
    if as_json:
        write_json([record.to_dict() for record in manager.records])
        return
    rows = [
        (
            record.id,
            record.version,
            _api(record),
            record.state.value,
            f"{record.load_ms:.1f}",
            record.reason or ("; ".join(record.notes)),
            record.location,
        )
        for record in manager.records
    ]
    write_table(("plugin", "version", "api", "state", "ms", "reason", "location"), rows)
    for error in manager.environment_errors:
        write_line(f"environment: {error}")


@app.command()
def why(
    name: Annotated[str, typer.Argument(help="Short name, wheel, or wheel:name.")],
    as_json: JsonOption = False,
    probe: ProbeOption = False,
) -> None:
    """Tell the whole history of one plugin, with the traceback of what went wrong."""
    manager = installed_plugins()
    if probe:
        _probe(manager)
    found = _named(manager, name)
    if as_json:
        write_json([record.to_dict() | {"offers": _offers(manager, record)} for record in found])
        return
    for index, record in enumerate(found):
        if index:
            write_line()
        _tell(manager, record)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check everything and say what to repair: exit code 1 when something is wrong."""
    manager = installed_plugins()
    faults = [*(str(error) for error in manager.environment_errors), *_check_lists(manager)]
    faults += _try(lambda: _probe(manager))
    broken = [record for record in manager.records if record.is_problem]
    remarks = _remarks(manager)
    in_force = {name: os.environ[name] for name in SWITCHES if os.environ.get(name)}
    if as_json:
        write_json(
            {
                "hook_api": ".".join(map(str, HOOK_API)),
                "switches": in_force,
                "problems": [record.to_dict() for record in broken],
                "faults": faults,
                "remarks": remarks,
            }
        )
    else:
        write_line(f"hook API {'.'.join(map(str, HOOK_API))}, {len(manager.records)} plugins installed")
        for switch, value in in_force.items():
            write_line(f"set in the environment: {switch}={value}")
        for fault in faults:
            write_line(f"problem: {fault}")
        for record in broken:
            write_line(f"problem: {record.describe()}")
            write_line(f"  at {record.location}")
            write_line(f"  {record.remedy()}")
        for remark in remarks:
            write_line(f"remark: {remark}")
        if not broken and not faults:
            write_line("nothing is wrong")
    if broken or faults:
        raise typer.Exit(1)


def _api(record: PluginRecord) -> str:
    return "-" if record.api is None else ".".join(map(str, record.api))


def _named(manager: PluginManager, name: str) -> list[PluginRecord]:
    # Wider than PluginManager.find: a reserved or hidden one must be findable here by its short name too.
    found = [r for r in manager.records if name in (r.id, r.name) or normalize(name) == normalize(r.dist)]
    if not found:
        known = {r.id for r in manager.records} | {r.name for r in manager.records} | {r.dist for r in manager.records}
        raise UnknownPluginError(
            f"no installed plugin is called {name!r}.{did_you_mean(name, known)} "
            f"Installed: {', '.join(sorted(r.id for r in manager.records))}."
        )
    return found


def _tell(manager: PluginManager, record: PluginRecord) -> None:
    write_line(record.describe())
    write_line(f"  wheel      {record.wheel} in {record.dist_location}")
    for duplicate in record.duplicates:
        write_line(f"  also in    {duplicate}")
    write_line(f"  module     {record.entry_point} ({record.location})")
    write_line(f"  hook API   {_api(record)} (this ds-core: {'.'.join(map(str, HOOK_API))})")
    write_line(f"  loaded in  {record.load_ms:.1f} ms")
    for note in record.notes:
        write_line(f"  note       {note}")
    write_line("  history")
    for step in record.history:
        write_line(f"    {step.at_ms:8.1f} ms  {step.state.value}" + (f": {step.reason}" if step.reason else ""))
    offers = _offers(manager, record)
    if offers:
        write_line("  offers")
    for hook, names in offers.items():
        write_line(f"    {hook}: {', '.join(names)}")
    if record.remedy():
        write_line(f"  {record.remedy()}")
    if record.traceback:
        write_line()
        write_line(record.traceback)


def _offers(manager: PluginManager, record: PluginRecord) -> dict[str, list[str]]:
    offers: dict[str, list[str]] = {}
    if not record.is_active:
        return offers
    for hook in ("ds_accelerators", *_LISTS):
        named = HOOK_RULES[hook].named or "name"
        names = [getattr(p.item, named) for p in manager.collect(hook) if p.record is record]
        if names:
            offers[hook] = names
    return offers


def _probe(manager: PluginManager) -> None:
    from ds_core.accelerator import candidates

    candidates(manager)


def _try(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except DsError as error:  # strict mode raises what is recorded as well; anything else is new
        return [] if isinstance(error, PluginError) else [str(error)]
    return []


def _check_lists(manager: PluginManager) -> list[str]:
    faults: list[str] = []
    for hook, key in _LISTS.items():
        faults += _try(lambda hook=hook: manager.collect(hook))  # type: ignore[misc]
        offered: dict[object, list[Provided[Any]]] = {}
        for p in manager.collect(hook):
            offered.setdefault(key(p.item), []).append(p)
        for rivals in offered.values():
            if len(rivals) > 1:
                name = getattr(rivals[0].item, HOOK_RULES[hook].named or "name")
                faults.append(
                    f"{len(rivals)} wheels offer {name!r} through {hook}: {' and '.join(p.origin for p in rivals)}. "
                    f"Set {' or '.join(f'DS_PLUGINS_DISABLE={p.record.id}' for p in rivals)}, or uninstall one."
                )
    return faults


def _remarks(manager: PluginManager) -> list[str]:
    remarks = [f"{record.id}: {note}" for record in manager.records for note in record.notes]
    for record in manager.records:
        for duplicate in record.duplicates:
            remarks.append(
                f"{record.wheel} is on sys.path twice: {record.dist_location} (used) and {duplicate}. Remove one."
            )
        if record.state is PluginState.BLOCKED:
            remarks.append(record.describe())
    return remarks
