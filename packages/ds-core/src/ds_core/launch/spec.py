"""What to start: script, arguments, how many ranks where, and with what around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ds_core.errors import LaunchError

__all__ = ["LOOPBACK", "NO_ADDRESS", "LaunchSpec"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_ADDRESS = LOOPBACK[0]
"""The master address of jobs that were given none: this machine, or the first of several."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One job.

    Args:
        script: Python file, module (with `module`), or program (with `no_python`).
        arguments: what the script gets.
        nproc: ranks on each machine; None asks the accelerator how many devices there are.
        nnodes: machines.
        node_rank: number of this machine among them.
        master_addr: where the ranks meet: the machine with `node_rank` 0.
        master_port: its port; 0 takes a free one (one machine only).
        module: `script` is a module, as in ``python -m``.
        no_python: `script` is a program of its own.
        max_restarts: how often all ranks are started again after one failed.
        log_dir: folder for one output file per rank, beside the console.
        bind_cores_to_rank: give each rank its own share of the cores, by memory node.
        bind_core_list: the cores to share out, like ``0-27,32-59``; implies `bind_cores_to_rank`.
        env: variables for the ranks.
        local_rank_argument: give the script ``--local_rank=N`` before its own arguments, as older scripts expect.
        grace_s: how long ranks may take to end after Ctrl-C or SIGTERM, to write a checkpoint.
        hosts: for launchers that reach machines themselves: each machine, in order, with the numbers of its devices
            to use; none for as many as it has.
        devices_variable: limits a machine's ranks to these devices; empty leaves them as they are.
        exports: variables to hand on to the other machines.
        launcher_args: for pdsh, mpirun or srun.
        ssh_port: port of ssh on the machines.
        ssh_check: try first whether every machine can be reached (pdsh).
        venv_script: file that every machine's shell reads before Python starts (pdsh).
    """

    script: str
    arguments: tuple[str, ...] = ()
    nproc: int | None = None
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = NO_ADDRESS
    master_port: int = 0
    module: bool = False
    no_python: bool = False
    max_restarts: int = 0
    log_dir: Path | None = None
    bind_cores_to_rank: bool = False
    bind_core_list: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    local_rank_argument: bool = False
    grace_s: int = 30
    hosts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    devices_variable: str = ""
    exports: Mapping[str, str] = field(default_factory=dict)
    launcher_args: tuple[str, ...] = ()
    ssh_port: int | None = None
    ssh_check: bool = True
    venv_script: str | None = None

    @property
    def binds(self) -> bool:
        """Whether ranks are bound to cores."""
        return self.bind_cores_to_rank or self.bind_core_list is not None

    def validate(self) -> None:
        """Check what can be checked before anything starts.

        Raises:
            LaunchError: a value is out of range or the script does not exist.
        """
        for name, value, least in (
            ("nproc", self.nproc, 1),
            ("nnodes", self.nnodes, 1),
            ("node_rank", self.node_rank, 0),
        ):
            if value is not None and value < least:
                raise LaunchError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        if self.node_rank >= self.nnodes:
            raise LaunchError(f"--node-rank {self.node_rank} is outside --nnodes {self.nnodes}: machines count from 0")
        if self.nnodes > 1 and self.master_addr in LOOPBACK:
            raise LaunchError(
                f"--nnodes {self.nnodes} needs --master-addr with an address the machines share, got {self.master_addr}"
            )
        if self.nnodes > 1 and not self.master_port:
            raise LaunchError(f"--nnodes {self.nnodes} needs a --master-port that is the same on every machine")
        if not 0 <= self.master_port < 65536:
            raise LaunchError(f"--master-port must be in 0..65535, got {self.master_port}")
        if self.module and self.no_python:
            raise LaunchError("--module and --no-python exclude each other")
        if self.no_python and self.local_rank_argument:
            raise LaunchError(
                "only a Python script can be given --local_rank; with --no_python use --no_local_rank too"
            )
        if self.no_python and self.binds:
            raise LaunchError("--bind-cores-to-rank needs a Python script: with --no-python use taskset or numactl")
        if not self.module and not self.no_python and not Path(self.script).is_file():
            raise LaunchError(f"there is no script {self.script!r} in {Path.cwd()}; for a module use --module NAME")
