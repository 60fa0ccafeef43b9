"""One machine's share of a job over several: started there once by pdsh, mpirun or srun, it starts the ranks.

``python -m ds_core.launch.node --job ID [--host NAME] TEXT``: TEXT is `encode` of the job, so that no argument meets
a shell. Which machine this is comes from ``--host``, SLURM's name of it, or the MPI rank. ``--signal NUMBER``
instead of TEXT signals the share of that job that runs here, as ending pdsh does not end what it started.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_core.errors import LaunchError
from ds_core.launch.base import REPORT_VARIABLE
from ds_core.launch.local import LocalLauncher
from ds_core.launch.outcome import RanksFailedError
from ds_core.launch.spec import LaunchSpec

__all__ = ["decode", "encode", "main", "node_rank"]

_FIELDS = (
    *("script", "nproc", "nnodes", "master_addr", "master_port", "module", "no_python", "max_restarts"),
    *("bind_cores_to_rank", "bind_core_list", "local_rank_argument", "grace_s", "devices_variable"),
)
_RANKS = ("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_OF_THIS_PROCESS = (
    *("OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *("DS_LAUNCH_SCRATCH", REPORT_VARIABLE),
)
"""What srun and mpirun may hand on and must not reach the ranks: it describes this process, or files elsewhere."""


def encode(spec: LaunchSpec) -> str:
    """The job as letters that no shell changes. Variables are not in it: the launcher hands them on."""
    told: dict[str, Any] = {name: getattr(spec, name) for name in _FIELDS}
    told["arguments"] = list(spec.arguments)
    told["hosts"] = [[host, list(slots)] for host, slots in spec.hosts.items()]
    told["log_dir"] = None if spec.log_dir is None else str(spec.log_dir)
    told["cwd"] = str(Path.cwd())
    return base64.urlsafe_b64encode(json.dumps(told).encode()).decode()


def decode(text: str) -> tuple[LaunchSpec, Path]:
    """The job, and the folder to run it in."""
    told = json.loads(base64.urlsafe_b64decode(text))
    spec = LaunchSpec(
        **{name: told[name] for name in _FIELDS},
        arguments=tuple(told["arguments"]),
        hosts={host: tuple(slots) for host, slots in told["hosts"]},
        log_dir=None if told["log_dir"] is None else Path(told["log_dir"]),
    )
    return spec, Path(told["cwd"])


def node_rank(spec: LaunchSpec, environ: Mapping[str, str]) -> int:
    """Which of the job's machines this is, by the variables of whoever started this process.

    Raises:
        LaunchError: none of them is set, or there are not so many machines.
    """
    name = environ.get("SLURMD_NODENAME", "")
    if name in spec.hosts and "OMPI_COMM_WORLD_RANK" not in environ and "PMI_RANK" not in environ:
        return list(spec.hosts).index(name)
    found = next((environ[variable] for variable in _RANKS if variable in environ), None)
    if found is None:
        raise LaunchError(f"cannot tell which machine this is: none of {', '.join(_RANKS)} is set")
    if not found.isdigit() or int(found) >= spec.nnodes:
        raise LaunchError(
            f"machine {found} of {spec.nnodes}: the launcher started more than one process on a machine; "
            "remove counts of processes from --launcher-args"
        )
    return int(found)


def share_of(spec: LaunchSpec, rank: int) -> LaunchSpec:
    """What machine `rank` has to start."""
    slots = list(spec.hosts.values())[rank]
    limits = {spec.devices_variable: ",".join(map(str, slots))} if spec.devices_variable and slots else {}
    nproc = spec.nproc if spec.nproc is not None else len(slots) or None
    return replace(spec, node_rank=rank, nproc=nproc, env={**spec.env, **limits})


def main(words: list[str]) -> int:
    """Start this machine's ranks and wait for them; the exit code is as `Launcher.run` says."""
    parser = argparse.ArgumentParser("ds_core.launch.node", allow_abbrev=False)
    parser.add_argument("--job", required=True)
    parser.add_argument("--host")
    parser.add_argument("--signal", type=int)
    parser.add_argument("text", nargs="?")
    asked = parser.parse_args(words)
    if asked.signal is not None:
        _signal(asked.job, asked.host, asked.signal)
        return 0
    spec, folder = decode(asked.text)
    try:
        rank = node_rank(spec, os.environ) if asked.host is None else _number_of(asked.host, spec)
        try:
            os.chdir(folder)
        except OSError as error:
            raise LaunchError(f"the job runs in {folder}, which is not on machine {rank}: {error}") from error
        for name in [name for name in os.environ if name.startswith(_OF_THIS_PROCESS)]:
            del os.environ[name]
        LocalLauncher().run(share_of(spec, rank))
    except RanksFailedError as error:
        sys.stderr.write(f"ds run: {error}\n")
        return error.exit_code
    except LaunchError as error:
        sys.stderr.write(f"ds run: {error}\n")
        return 2
    return 0


def _number_of(host: str, spec: LaunchSpec) -> int:
    """The place of a machine that is called as pdsh calls it, without the user it logs in as."""
    names = [name.rpartition("@")[2] for name in spec.hosts]
    if host.rpartition("@")[2] not in names:
        raise LaunchError(f"this machine was started as {host!r}, which is none of {', '.join(spec.hosts)}")
    return names.index(host.rpartition("@")[2])


def _signal(job: str, host: str | None, number: int) -> None:
    """Signals the process of this module that has this job's id, and no other."""
    wanted = {"ds_core.launch.node", f"--job={job}"} | ({f"--host={host}"} if host is not None else set())
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told = path.read_bytes().decode(errors="replace").split("\0")
            if wanted <= set(told) and not any(word.startswith("--signal") for word in told):
                os.kill(int(path.parent.name), number)
        except (OSError, ValueError):  # it ended meanwhile, or is another user's
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
