"""The launchers over MPI's mpirun: Open MPI, and the three that share MPICH's process manager (Hydra)."""

from __future__ import annotations

import subprocess
from typing import ClassVar

from ds_core.errors import LaunchError
from ds_core.launch.remote import RemoteLauncher
from ds_core.launch.spec import LaunchSpec

__all__ = ["ImpiLauncher", "MpichLauncher", "MvapichLauncher", "OpenMpiLauncher"]


class _MpiLauncher(RemoteLauncher):
    """One MPI process per machine; MPI carries nothing, it only starts them and ends all when one fails."""

    program: ClassVar[str] = "mpirun"
    product: ClassVar[str] = ""
    marks: ClassVar[tuple[str, ...]] = ()
    """What ``mpirun --version`` says of itself."""

    def check(self, spec: LaunchSpec) -> None:
        """As for every launcher; the mpirun found must be the one that is meant, for their flags differ."""
        super().check(spec)
        told = _told_by([self.program, "--version"])
        if not any(mark.lower() in told.lower() for mark in self.marks):
            first = next((line.strip() for line in told.splitlines() if line.strip()), "nothing")
            raise LaunchError(
                f"--launcher {self.name} needs {self.product}'s mpirun, and the one on PATH says {first!r}; put the "
                "right one first on PATH, or choose among openmpi, mpich, impi, mvapich"
            )


class OpenMpiLauncher(_MpiLauncher):
    """Open MPI."""

    name: ClassVar[str] = "openmpi"
    product: ClassVar[str] = "Open MPI"
    program_hint: ClassVar[str] = "install Open MPI, or load its module"
    marks: ClassVar[tuple[str, ...]] = ("Open MPI", "OpenRTE", "PRRTE")

    def command(self, spec: LaunchSpec) -> list[str]:
        """One process per machine, bound to nothing, as it has the ranks of the whole machine to start."""
        hosts = ",".join(f"{host}:1" for host in spec.hosts)
        words = [self.program, "-n", str(spec.nnodes), "--host", hosts, "--map-by", "ppr:1:node", "--bind-to", "none"]
        for name in self.handed_on(spec):
            words += ["-x", name]
        return [*words, *spec.launcher_args, *self.node_command(spec)]


class MpichLauncher(_MpiLauncher):
    """MPICH."""

    name: ClassVar[str] = "mpich"
    product: ClassVar[str] = "MPICH"
    program_hint: ClassVar[str] = "install MPICH, or load its module"
    marks: ClassVar[tuple[str, ...]] = ("HYDRA", "MPICH")

    def command(self, spec: LaunchSpec) -> list[str]:
        """Hydra's flags."""
        words = [self.program, "-n", str(spec.nnodes), "-ppn", "1", "-hosts", ",".join(spec.hosts)]
        names = ",".join(self.handed_on(spec))
        return [*words, *(["-genvlist", names] if names else []), *spec.launcher_args, *self.node_command(spec)]


class ImpiLauncher(MpichLauncher):
    """Intel MPI."""

    name: ClassVar[str] = "impi"
    product: ClassVar[str] = "Intel MPI"
    program_hint: ClassVar[str] = "install Intel MPI and source its vars.sh"
    marks: ClassVar[tuple[str, ...]] = ("Intel",)


class MvapichLauncher(MpichLauncher):
    """MVAPICH."""

    name: ClassVar[str] = "mvapich"
    product: ClassVar[str] = "MVAPICH"
    program_hint: ClassVar[str] = "install MVAPICH, or load its module"
    marks: ClassVar[tuple[str, ...]] = ("HYDRA", "MVAPICH")


def _told_by(command: list[str]) -> str:
    """What a program prints about itself; empty where it cannot be asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
