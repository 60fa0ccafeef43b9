"""The launchers ds-core brings, as data."""

from __future__ import annotations

from ds_core.hooks import LauncherEntry

__all__ = ["ENTRIES"]

ENTRIES: tuple[LauncherEntry, ...] = (
    LauncherEntry("local", "ds_core.launch.local:LocalLauncher", "ranks on this machine, through torchrun"),
    LauncherEntry("pdsh", "ds_core.launch.pdsh:PdshLauncher", "machines reached with pdsh over ssh"),
    LauncherEntry("openmpi", "ds_core.launch.mpi:OpenMpiLauncher", "machines reached with Open MPI's mpirun"),
    LauncherEntry("mpich", "ds_core.launch.mpi:MpichLauncher", "machines reached with MPICH's mpirun"),
    LauncherEntry("impi", "ds_core.launch.mpi:ImpiLauncher", "machines reached with Intel MPI's mpirun"),
    LauncherEntry("mvapich", "ds_core.launch.mpi:MvapichLauncher", "machines reached with MVAPICH's mpirun"),
    LauncherEntry("slurm", "ds_core.launch.slurm:SlurmLauncher", "machines of a SLURM allocation, with srun"),
)
