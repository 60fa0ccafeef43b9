"""What launchers over several machines have in common: one process on each, which starts the ranks there.

pdsh, mpirun and srun only have to start `ds_core.launch.node` once per machine. The ranks then come from torchrun's
agent as on one machine, meet at the first machine, and machines may have different numbers of ranks.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from ds_core.errors import LaunchError
from ds_core.launch.base import Launcher
from ds_core.launch.node import encode
from ds_core.launch.spec import NO_ADDRESS, LaunchSpec

__all__ = ["RemoteLauncher"]


class RemoteLauncher(Launcher):
    """Starts `ds_core.launch.node` on every machine of `LaunchSpec.hosts`."""

    program: ClassVar[str] = ""
    """What has to be installed here."""
    program_hint: ClassVar[str] = ""
    has_venv_script: ClassVar[bool] = False
    has_ssh_port: ClassVar[bool] = False

    def __init__(self) -> None:
        self._job: str = f"{os.getpid()}-{time.time_ns()}"

    def check(self, spec: LaunchSpec) -> None:
        """Raise `LaunchError` where the job cannot be started on these machines with this launcher."""
        if not spec.hosts:
            raise LaunchError(f"--launcher {self.name} needs --hostfile with a line `host slots=N` for each machine")
        if spec.nnodes != len(spec.hosts):
            raise LaunchError(f"--nnodes {spec.nnodes}, but the host file and its filters leave {len(spec.hosts)}")
        super().check(spec)
        if spec.venv_script is not None and not self.has_venv_script:
            raise LaunchError(f"--venv_script works with pdsh only; with --launcher {self.name} start it from there")
        if spec.ssh_port is not None and not self.has_ssh_port:
            raise LaunchError(f"--ssh_port works with pdsh only; with --launcher {self.name} set it in ~/.ssh/config")
        if shutil.which(self.program) is None:
            raise LaunchError(f"--launcher {self.name} needs the program {self.program}; {self.program_hint}")

    def nproc(self, spec: LaunchSpec) -> int:
        """Ranks on the first machine, where the job says."""
        first = next(iter(spec.hosts.values()), ())
        return spec.nproc or len(first) or 1

    def environment(self, spec: LaunchSpec, environ: Mapping[str, str]) -> dict[str, str]:
        """The caller's variables and the job's; `command` says which of them go along."""
        return {**environ, **spec.exports, **spec.env}

    def node_command(self, spec: LaunchSpec, *more: str) -> list[str]:
        """What runs once on every machine."""
        return [sys.executable, "-m", "ds_core.launch.node", f"--job={self._job}", *more, encode(spec)]

    def handed_on(self, spec: LaunchSpec) -> dict[str, str]:
        """The variables that go along, by name."""
        return dict(sorted({**spec.exports, **spec.env}.items()))

    @abstractmethod
    def command(self, spec: LaunchSpec) -> list[str]:
        """The command here that starts `node_command` once on every machine, and ends when they all did."""

    def run(self, spec: LaunchSpec) -> None:
        """As `Launcher.run`; the first machine is where ranks meet unless the job says otherwise."""
        super().run(with_meeting_point(spec))


def with_meeting_point(spec: LaunchSpec) -> LaunchSpec:
    """The job with the address of its first machine, where none was given."""
    if spec.master_addr != NO_ADDRESS or len(spec.hosts) < 2:
        return spec
    return replace(spec, master_addr=next(iter(spec.hosts)))
