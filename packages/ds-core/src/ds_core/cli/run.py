"""``ds run``: start a training script on the ranks of one or more machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ds_core.errors import LaunchError
from ds_core.launch.base import Launcher
from ds_core.launch.outcome import RanksFailedError
from ds_core.launch.spec import LaunchSpec

__all__ = ["command"]


def command(
    script: Annotated[str, typer.Argument(help="Python file, or module with --module, or program with --no-python.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What the script gets.")] = None,
    nproc: Annotated[
        int | None,
        typer.Option(
            "--nproc", "--num_gpus", "--num_accelerators", help="Ranks per machine. [default: one per device]"
        ),
    ] = None,
    nnodes: Annotated[int, typer.Option("--nnodes", "--num_nodes", help="Machines.")] = 1,
    node_rank: Annotated[int, typer.Option("--node-rank", "--node_rank", help="Number of this machine, from 0.")] = 0,
    master_addr: Annotated[
        str, typer.Option("--master-addr", "--master_addr", help="Address of machine 0.")
    ] = "127.0.0.1",
    master_port: Annotated[
        int, typer.Option("--master-port", "--master_port", help="Port on machine 0; 0 takes a free one.")
    ] = 0,
    module: Annotated[bool, typer.Option("--module", help="SCRIPT is a module, as in python -m.")] = False,
    no_python: Annotated[
        bool, typer.Option("--no-python", "--no_python", help="SCRIPT is a program of its own.")
    ] = False,
    max_restarts: Annotated[int, typer.Option("--max-restarts", help="Start all ranks again after a failure.")] = 0,
    log_dir: Annotated[
        Path | None, typer.Option("--log-dir", "--enable_each_rank_log", help="Keep each rank's output here.")
    ] = None,
    bind_cores_to_rank: Annotated[
        bool,
        typer.Option(
            "--bind-cores-to-rank",
            "--bind_cores_to_rank",
            "--bind-cores",
            help="Give each rank its own cores and as many threads, memory node by memory node.",
        ),
    ] = False,
    bind_core_list: Annotated[
        str | None,
        typer.Option("--bind-core-list", "--bind_core_list", help="Cores to share out, like 0-27,32-59."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the ranks; repeatable.")] = None,
    grace: Annotated[int, typer.Option("--grace", help="Seconds ranks get to end after Ctrl-C or SIGTERM.")] = 30,
    launcher: Annotated[str, typer.Option("--launcher", help="How ranks are started: a launcher's name.")] = "local",
) -> None:
    """Start SCRIPT on every rank. Options go before SCRIPT; what follows it is the script's."""
    spec = LaunchSpec(
        script=script,
        arguments=tuple(arguments or ()),
        nproc=nproc,
        nnodes=nnodes,
        node_rank=node_rank,
        master_addr=master_addr,
        master_port=master_port,
        module=module,
        no_python=no_python,
        max_restarts=max_restarts,
        log_dir=log_dir,
        bind_cores_to_rank=bind_cores_to_rank,
        bind_core_list=bind_core_list,
        env=_variables(env or []),
        grace_s=grace,
    )
    try:
        _launcher(launcher).run(spec)
    except RanksFailedError as error:
        sys.stderr.write(f"ds run: {error}\n")
        raise typer.Exit(error.exit_code) from None


def _launcher(name: str) -> Launcher:
    from ds_core.plugins import load_ref, manager

    provided = manager().by_name("ds_launchers", name)
    made = load_ref(provided.item.factory, provided.record)()
    if not isinstance(made, Launcher):
        raise LaunchError(f"launcher {name!r} of {provided.origin} is a {type(made).__name__}, not a ds_core Launcher")
    return made


def _variables(items: list[str]) -> dict[str, str]:
    made = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise LaunchError(f"--env takes NAME=VALUE, got {item!r}")
        made[name] = value
    return made
