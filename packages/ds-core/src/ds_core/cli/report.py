"""``ds report``: versions, wheels, accelerators and settings, to read or to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

from ds_core.cli._devices import device_rows
from ds_core.cli._output import write_json, write_line, write_table
from ds_core.cli.main import installed_plugins
from ds_core.cli.plugins import SWITCHES
from ds_core.hooks import ReportRow
from ds_core.plugins import PluginManager

__all__ = ["command", "rows"]


def command(as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """Report versions, wheels, accelerators and settings. Imports torch."""
    found = rows(installed_plugins())
    if as_json:
        write_json([{"section": r.section, "name": r.name, "value": r.value, "status": r.status} for r in found])
        return
    for index, section in enumerate(dict.fromkeys(row.section for row in found)):
        if index and not sys.stdout.isatty():
            write_line()
        lines = [(r.name, r.value, "" if r.status == "info" else r.status) for r in found if r.section == section]
        write_table(("name", "value", "status"), lines, title=section)


def rows(manager: PluginManager) -> list[ReportRow]:
    """Every row of the report: core's own, then those the plugins add through ``ds_report``."""
    return [
        *_system(),
        *_torch(),
        *_wheels(manager),
        *device_rows(manager),
        *_switches(manager),
        *(provided.item for provided in manager.collect("ds_report")),
    ]


def _system() -> list[ReportRow]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return [
        ReportRow("system", "python", f"{platform.python_version()} ({sys.executable})"),
        ReportRow("system", "os", platform.platform()),
        ReportRow("system", "cpu", f"{_cpu_name()}, {cores} CPUs usable"),
        *_cores(),
    ]


def _cores() -> list[ReportRow]:
    """Which cores ``ds run --bind-cores-to-rank`` would share out, and by which nodes."""
    if sys.platform != "linux":
        return []
    from ds_core.launch.topology import cores_text, read_topology

    found = read_topology()
    quota = "" if found.quota is None else f"; the cgroup grants the time of {found.quota:g}"
    by_node = "; ".join(
        f"node {node}: CPUs {cores_text(cpu.id for cpu in found.cpus if cpu.node == node)}" for node in found.nodes
    )
    threads = len(found.cpus) / max(found.core_count, 1)
    value = f"{found.core_count} with {threads:g} hardware thread{'s' if threads > 1 else ''} each, {by_node}{quota}"
    return [ReportRow("system", "cores", value)]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _torch() -> list[ReportRow]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [ReportRow("torch", "torch", f"cannot be imported ({type(error).__name__}: {error})", "error")]
    distributed = torch.distributed.is_available()
    backends = [name for name in ("gloo", "nccl", "mpi", "xccl") if distributed and _has_backend(name)]
    return [
        ReportRow("torch", "torch", str(torch.__version__)),
        ReportRow("torch", "cuda build", str(torch.version.cuda or "no")),
        ReportRow("torch", "distributed", ", ".join(backends) if distributed else "no"),
        ReportRow("torch", "threads", str(torch.get_num_threads())),
    ]


def _has_backend(name: str) -> bool:
    import torch.distributed

    return bool(torch.distributed.is_backend_available(name))


def _wheels(manager: PluginManager) -> list[ReportRow]:
    found: list[ReportRow] = []
    for record in manager.records:
        status = "error" if record.is_problem else "ok" if record.is_active else "info"
        value = f"{record.version}, {record.state.value}" + (f": {record.reason}" if record.is_problem else "")
        found.append(ReportRow("wheels", record.id, value, status))
    for name in ("pluggy", "pydantic", "safetensors", "numpy"):
        found.append(ReportRow("wheels", name, importlib.metadata.version(name)))
    return found


def _switches(manager: PluginManager) -> list[ReportRow]:
    found = [ReportRow("environment", name, os.environ[name]) for name in SWITCHES if os.environ.get(name)]
    found += [ReportRow("environment", "problem", str(error), "error") for error in manager.environment_errors]
    return found
