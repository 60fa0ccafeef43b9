"""The launcher of a SLURM allocation: srun starts one process on every machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

from ds_core.errors import LaunchError
from ds_core.launch.remote import RemoteLauncher
from ds_core.launch.spec import LaunchSpec

__all__ = ["SlurmLauncher", "allocated_hosts"]


class SlurmLauncher(RemoteLauncher):
    """srun, with every variable handed on, as srun does. A machine that fails ends the others."""

    name: ClassVar[str] = "slurm"
    program: ClassVar[str] = "srun"
    program_hint: ClassVar[str] = "run this inside a SLURM allocation (salloc, sbatch)"

    def command(self, spec: LaunchSpec) -> list[str]:
        """One task per machine. Cores and devices of the step are the allocation's; --launcher-args may say more."""
        words = [self.program, f"--nodes={spec.nnodes}", f"--ntasks={spec.nnodes}", "--ntasks-per-node=1"]
        words += [f"--nodelist={','.join(spec.hosts)}", "--kill-on-bad-exit=1", "--export=ALL"]
        return [*words, *spec.launcher_args, *self.node_command(spec)]


def allocated_hosts(environ: Mapping[str, str] = os.environ) -> dict[str, tuple[int, ...]]:
    """The machines of this SLURM job, each with as many devices as it turns out to have.

    Raises:
        LaunchError: this is no SLURM job.
    """
    from ds_core.comm.discovery import expand_hosts

    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes:
        raise LaunchError("--launcher slurm needs --hostfile, or an allocation: SLURM_JOB_NODELIST is not set")
    return dict.fromkeys(expand_hosts(nodes), ())
