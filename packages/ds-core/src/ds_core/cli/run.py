"""``ds run``: start a training script on the ranks of one or more machines."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ds_core.errors import LaunchError
from ds_core.launch.hosts import read_hostfile
from ds_core.launch.machines import REMOTE, MachineChoice, over_machines
from ds_core.launch.named import named_launcher
from ds_core.launch.outcome import RanksFailedError
from ds_core.launch.spec import NO_ADDRESS, LaunchSpec

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
    ] = NO_ADDRESS,
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
    launcher: Annotated[
        str,
        typer.Option("--launcher", help="local, or for several machines pdsh, openmpi, mpich, impi, mvapich, slurm."),
    ] = "local",
    launcher_args: Annotated[
        str, typer.Option("--launcher-args", "--launcher_args", help="More words for pdsh, mpirun or srun.")
    ] = "",
    hostfile: Annotated[
        Path | None, typer.Option("--hostfile", "-H", help="Machines, a line `host slots=N` each.")
    ] = None,
    include: Annotated[str, typer.Option("--include", "-i", help="Machines and devices to use, like w0@w1:0,2.")] = "",
    exclude: Annotated[str, typer.Option("--exclude", "-e", help="Machines and devices to leave out.")] = "",
    ssh_port: Annotated[int | None, typer.Option("--ssh-port", "--ssh_port", help="Port of ssh (pdsh).")] = None,
    ssh_check: Annotated[
        bool, typer.Option("--ssh-check/--no-ssh-check", help="Try first whether ssh reaches every machine (pdsh).")
    ] = True,
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
        launcher_args=tuple(shlex.split(launcher_args)),
        ssh_port=ssh_port,
        ssh_check=ssh_check,
    )
    if launcher in REMOTE:
        pool = read_hostfile(hostfile) if hostfile is not None else None
        choice = MachineChoice(pool, include, exclude, nnodes if nnodes > 1 else None, nproc)
        spec = over_machines(replace(spec, master_port=master_port or 29500), choice, launcher, os.environ, own={})
    elif hostfile or include or exclude:
        raise LaunchError(f"--hostfile, --include and --exclude need --launcher {' or '.join(REMOTE)}, got {launcher}")
    try:
        named_launcher(launcher).run(spec)
    except RanksFailedError as error:
        sys.stderr.write(f"ds run: {error}\n")
        raise typer.Exit(error.exit_code) from None


def _variables(items: list[str]) -> dict[str, str]:
    made = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise LaunchError(f"--env takes NAME=VALUE, got {item!r}")
        made[name] = value
    return made
