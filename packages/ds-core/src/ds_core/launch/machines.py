"""From a host file and filters to the job's machines: what ``ds run`` and the command ``deepspeed`` have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ds_core.errors import LaunchError
from ds_core.launch.exports import exported
from ds_core.launch.hosts import parse_inclusion_exclusion
from ds_core.launch.slurm import allocated_hosts
from ds_core.launch.spec import LaunchSpec

__all__ = ["REMOTE", "MachineChoice", "over_machines"]

REMOTE = ("pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm")
"""Launchers that reach the machines themselves."""


@dataclass(frozen=True, slots=True)
class MachineChoice:
    """Which machines and devices to use.

    Args:
        pool: slots of each machine, as a host file says; None asks SLURM, whose allocation is known.
        include, exclude: filters as of `ds_core.launch.hosts`.
        nodes: machines, the first ones; None for all.
        devices: ranks on each machine; None for one a slot.
    """

    pool: Mapping[str, int] | None = None
    include: str = ""
    exclude: str = ""
    nodes: int | None = None
    devices: int | None = None

    def hosts(self, launcher: str, environ: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        """The machines, in order, each with the numbers of its devices.

        Raises:
            LaunchError: no machines are named, one or a device is not there, or a filter is wrong.
        """
        if self.pool is not None:
            chosen = parse_inclusion_exclusion(self.pool, self.include, self.exclude)
            found = {host: tuple(slots) for host, slots in chosen.items()}
        elif launcher == "slurm":
            found = self._hosts_of_slurm(environ)
        else:
            raise LaunchError(f"--launcher {launcher} needs --hostfile with a line `host slots=N` for each machine")
        if self.nodes is not None:
            if not 1 <= self.nodes <= len(found):
                raise LaunchError(f"--num_nodes {self.nodes}: there are {len(found)} machines ({', '.join(found)})")
            found = dict(list(found.items())[: self.nodes])
        if self.devices is not None:
            for host, slots in found.items():
                if slots and len(slots) < self.devices:
                    raise LaunchError(f"--num_gpus {self.devices}: machine {host!r} has {len(slots)} to use")
            found = {host: slots[: self.devices] or tuple(range(self.devices)) for host, slots in found.items()}
        return found

    def _hosts_of_slurm(self, environ: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        if self.include or self.exclude:
            raise LaunchError("--include and --exclude need --hostfile; SLURM says machines, not devices")
        return allocated_hosts(environ)


def over_machines(
    spec: LaunchSpec, choice: MachineChoice, launcher: str, environ: Mapping[str, str], *, own: Mapping[str, str]
) -> LaunchSpec:
    """The job on these machines, with the variables that go along.

    Args:
        spec: the job but for its machines.
        choice: which machines.
        launcher: its name.
        environ: the variables here.
        own: what the user's file of variables says; goes along whatever is set here.

    Raises:
        LaunchError: as `MachineChoice.hosts`.
    """
    from ds_core import accelerator as accelerators

    here = accelerators.current()
    hosts = choice.hosts(launcher, environ)
    filtered = bool(choice.include or choice.exclude)
    return replace(
        spec,
        hosts=hosts,
        nnodes=len(hosts),
        nproc=None,
        devices_variable=here.visible_devices_variable if filtered else "",
        exports={**exported(environ, here.exported_variables), **own},
    )
