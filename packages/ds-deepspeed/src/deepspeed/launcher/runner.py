"""The command ``deepspeed``: DeepSpeed's flags, answered by ``ds run``'s launcher."""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ds_core.errors import DsError, LaunchError
from ds_core.launch.exports import read_environment_file
from ds_core.launch.hosts import (
    encode_world_info,
    fetch_hostfile,
    parse_inclusion_exclusion,
    parse_resource_filter,
)

if TYPE_CHECKING:
    from ds_core.launch.spec import LaunchSpec

__all__ = [
    "DEEPSPEED_ENVIRONMENT_NAME",
    "DLTS_HOSTFILE",
    "encode_world_info",
    "fetch_hostfile",
    "main",
    "parse_args",
    "parse_inclusion_exclusion",
    "parse_resource_filter",
    "spec_of",
]

DLTS_HOSTFILE = "/job/hostfile"
DEEPSPEED_ENVIRONMENT_NAME = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
"""File of ``NAME=VALUE`` lines for the ranks, looked for in the home and the working directory."""

_WAITING = {
    "elastic_training": "--elastic_training comes with ds-elastic, which is not released yet",
    "autotuning": "--autotuning comes with ds-tune, which is not released yet",
}
_LOCAL = ("localhost", "127.0.0.1", socket.gethostname())


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """DeepSpeed's launcher flags."""
    parser = argparse.ArgumentParser("deepspeed", description="Start a training script on every device.")
    add = parser.add_argument
    add("-H", "--hostfile", default=DLTS_HOSTFILE, help="machines, a line `host slots=N` each")
    add("-i", "--include", default="", help="machines and devices to use, like w0@w1:0,2")
    add("-e", "--exclude", default="", help="machines and devices to leave out")
    add("--num_nodes", type=int, default=-1, help="machines to use")
    add("--num_gpus", "--num_accelerators", dest="num_gpus", type=int, default=-1, help="ranks on each machine")
    add("--min_elastic_nodes", type=int, default=-1, help=argparse.SUPPRESS)
    add("--max_elastic_nodes", type=int, default=-1, help=argparse.SUPPRESS)
    add("--elastic_training", action="store_true", help=argparse.SUPPRESS)
    add("--master_port", type=int, default=29500, help="port on machine 0")
    add("--master_addr", default="", help="address of machine 0")
    add("--node_rank", type=int, default=-1, help="number of this machine, with --no_ssh")
    add("--launcher", default="pdsh", help="how machines are reached: pdsh, openmpi, mpich, impi, mvapich, slurm")
    add("--launcher_args", default="", help="more words for pdsh, mpirun or srun")
    add("--module", action="store_true", help="the script is a module")
    add("--no_python", action="store_true", help="the script is a program of its own")
    add("--no_local_rank", action="store_true", help="do not give the script --local_rank")
    add("--no_ssh", action="store_true", help="this command is started by hand on every machine")
    add("--no_ssh_check", action="store_true", help="do not try ssh before the start (pdsh)")
    add("--force_multi", action="store_true", help="use the launcher for one machine too")
    add("--save_pid", action="store_true", help=argparse.SUPPRESS)
    add("--enable_each_rank_log", default=None, help="folder for each rank's output")
    add("--autotuning", default="", choices=["", "tune", "run"], help=argparse.SUPPRESS)
    add("--bind_cores_to_rank", action="store_true", help="give each rank its own cores")
    add("--bind_core_list", default=None, help="cores to share out, like 0-27,32-59")
    add("--ssh_port", type=int, default=None, help="port of ssh on the machines (pdsh)")
    add("--venv_script", default=None, help="file for the machines' shells to read first (pdsh)")
    add("--log_level", default="info", help="level of the log")
    add("-q", "--quiet", action="store_true", help="only errors")
    add("user_script", help="Python file, module or program")
    add("user_args", nargs=argparse.REMAINDER, help="what the script gets")
    return parser.parse_args(args)


def spec_of(args: argparse.Namespace, environ: Mapping[str, str]) -> LaunchSpec:
    """The job that the flags ask for.

    Raises:
        LaunchError: it needs what is not here, or the flags contradict each other.
    """
    from ds_core.launch.spec import NO_ADDRESS, LaunchSpec

    for name, message in _WAITING.items():
        if getattr(args, name):
            raise LaunchError(message)
    hosts = fetch_hostfile(args.hostfile)
    if hosts is None and args.hostfile != DLTS_HOSTFILE:
        raise LaunchError(f"--hostfile {args.hostfile}: there is no such file")
    job = LaunchSpec(
        script=args.user_script,
        arguments=tuple(args.user_args),
        master_addr=args.master_addr or NO_ADDRESS,
        master_port=args.master_port,
        module=args.module,
        no_python=args.no_python,
        log_dir=Path(args.enable_each_rank_log) if args.enable_each_rank_log else None,
        bind_cores_to_rank=args.bind_cores_to_rank,
        bind_core_list=args.bind_core_list,
        local_rank_argument=not args.no_local_rank and not args.no_python,
        launcher_args=tuple(shlex.split(args.launcher_args)),
        ssh_port=args.ssh_port,
        ssh_check=not args.no_ssh_check,
        venv_script=args.venv_script,
    )
    if _goes_elsewhere(args, hosts, environ):
        return _over_machines(job, args, hosts, environ)
    return _here(job, args, hosts, environ)


def _goes_elsewhere(args: argparse.Namespace, hosts: Mapping[str, int] | None, environ: Mapping[str, str]) -> bool:
    """Whether the machines are reached from here: several, another one, or asked for by --force_multi."""
    if args.no_ssh:
        return False
    if hosts is None:
        in_allocation = args.launcher == "slurm" and "SLURM_JOB_NODELIST" in environ
        if args.num_nodes > 1 and not in_allocation:
            raise LaunchError(f"--num_nodes {args.num_nodes} needs --hostfile, or --no_ssh and this command on each")
        return args.force_multi or in_allocation
    chosen = list(parse_inclusion_exclusion(hosts, args.include, args.exclude))[: max(args.num_nodes, 0) or None]
    return args.force_multi or len(chosen) > 1 or chosen[0] not in _LOCAL


def _over_machines(
    job: LaunchSpec, args: argparse.Namespace, hosts: Mapping[str, int] | None, environ: Mapping[str, str]
) -> LaunchSpec:
    from ds_core.launch.machines import REMOTE, MachineChoice, over_machines

    name = args.launcher.lower()
    if name not in REMOTE:
        raise LaunchError(f"--launcher must be one of {', '.join(REMOTE)}, got {args.launcher}")
    if hosts is None and name != "slurm":
        hosts = {socket.gethostname(): _devices(args.num_gpus)}  # --force_multi
    nodes, devices = (count if count > 0 else None for count in (args.num_nodes, args.num_gpus))
    choice = MachineChoice(hosts, args.include, args.exclude, nodes, devices)
    return over_machines(job, choice, name, environ, own=_file_variables())


def _here(
    job: LaunchSpec, args: argparse.Namespace, hosts: Mapping[str, int] | None, environ: Mapping[str, str]
) -> LaunchSpec:
    pool = hosts or {"localhost": _devices(args.num_gpus)}
    chosen = parse_inclusion_exclusion(pool, args.include, args.exclude)
    if args.num_nodes > 0:
        chosen = dict(list(chosen.items())[: args.num_nodes])
    nodes = args.num_nodes if args.num_nodes > 0 and hosts is None and args.no_ssh else len(chosen)
    rank = max(args.node_rank, 0)
    slots = list(chosen.values())[rank if len(chosen) > 1 else 0]
    if args.num_gpus > 0:
        slots = slots[: args.num_gpus]
    filtered = bool(args.include or args.exclude)
    written = {name: value for name, value in _file_variables().items() if name not in environ}
    return replace(
        job,
        nproc=len(slots) if hosts or filtered or args.num_gpus > 0 else None,
        nnodes=nodes,
        node_rank=rank,
        master_port=job.master_port if nodes > 1 else 0,
        env={**written, **(_visible(slots) if filtered else {})},
    )


def _devices(asked: int) -> int:
    from ds_core import accelerator as accelerators

    return max(asked, accelerators.current().device_count())


def _visible(slots: Sequence[int]) -> dict[str, str]:
    from ds_core import accelerator as accelerators

    name = accelerators.current().visible_devices_variable
    return {name: ",".join(map(str, slots))} if name else {}


def _file_variables() -> dict[str, str]:
    """What `DEEPSPEED_ENVIRONMENT_NAME` says."""
    return read_environment_file(DEEPSPEED_ENVIRONMENT_NAME, (Path.home(), Path.cwd()))


def main(args: Sequence[str] | None = None) -> None:
    """Start the job; ends the process with the exit code of the first rank that failed."""
    from ds_core.launch.named import named_launcher
    from ds_core.launch.outcome import RanksFailedError

    try:
        asked = parse_args(args)
        job = spec_of(asked, os.environ)
        named_launcher(asked.launcher.lower() if job.hosts else "local").run(job)
    except RanksFailedError as error:
        sys.stderr.write(f"deepspeed: {error}\n")
        sys.exit(error.exit_code)
    except DsError as error:
        sys.stderr.write(f"deepspeed: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
