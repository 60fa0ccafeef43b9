"""Launchers over several machines: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(
    __name__,
    "launchers over several machines are ds_core.launch.pdsh, .mpi and .slurm; the command chooses by --launcher",
)
