"""Find out which rank this process is: from arguments, torchrun, Open MPI, MVAPICH, PMI or SLURM. Pure; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ds_core.errors import CommError

__all__ = ["Placement", "discover", "expand_hosts"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where this process stands among the others, and where they meet."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None
    master_addr: str
    master_port: int
    source: str

    @property
    def is_one_machine(self) -> bool:
        """True when every rank is known to be on this machine."""
        return self.master_addr in _LOOPBACK or self.local_world_size == self.world_size


@dataclass(frozen=True, slots=True)
class _Scheme:
    name: str
    rank: str
    world: tuple[str, ...]
    local_rank: str
    local_world: str
    hosts: tuple[str, ...] = ()


_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MPI = (
    _Scheme(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("AZ_BATCHAI_MPI_MASTER_NODE", "AZ_BATCH_MASTER_NODE"),
    ),
    _Scheme(
        "MVAPICH",
        "MV2_COMM_WORLD_RANK",
        ("MV2_COMM_WORLD_SIZE",),
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    _Scheme("PMI (MPICH, Intel MPI)", "PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_SLURM = _Scheme(
    "SLURM",
    "SLURM_PROCID",
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "SLURM_LOCALID",
    "",
    ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"),
)
# An MPI job inside a SLURM allocation sees SLURM's variables for its daemons, so SLURM is asked last.


def discover(
    environ: Mapping[str, str],
    *,
    rank: int = -1,
    world_size: int = -1,
    mpi: bool = True,
    default_port: int = 29500,
) -> Placement:
    """The placement of this process; world size 1 when nothing says otherwise.

    Args:
        environ: the environment variables.
        rank, world_size: what the caller passed; both or neither (-1).
        mpi: look at the variables of MPI launchers and SLURM.
        default_port: used when a launcher without a port of its own is found and MASTER_PORT is unset.

    Raises:
        CommError: half of a scheme's variables are set, a value is not a number, or no address can be derived.
    """
    if rank >= 0 or world_size >= 0:
        return _from_arguments(environ, rank, world_size, default_port)
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _from_torchrun(environ)
    if mpi:
        for scheme in (*_MPI, _SLURM):
            if scheme.rank in environ and not (scheme is _SLURM and _outside_step(environ)):
                return _from_scheme(environ, scheme, default_port)
    return Placement(0, 1, _number(environ, "LOCAL_RANK", 0), 1, "127.0.0.1", 0, "nothing set: one rank")


def expand_hosts(hosts: str) -> list[str]:
    """Host names of a SLURM node list, in order: ``"a[01-03,7],b"`` gives a01, a02, a03, a7, b."""
    names: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", hosts):
        names += _expand_one(item.strip())
    return names


def _expand_one(item: str) -> list[str]:
    match = re.search(r"\[([^\]]*)\]", item)
    if match is None:
        return [item] if item else []
    before, after = item[: match.start()], item[match.end() :]
    names: list[str] = []
    for part in match.group(1).split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise CommError(f"cannot read the SLURM node list {item!r}: {part!r} is not a number or a range")
        for number in range(int(first), int(last or first) + 1):
            names += _expand_one(f"{before}{number:0{len(first)}d}{after}")
    return names


def _from_arguments(environ: Mapping[str, str], rank: int, world_size: int, default_port: int) -> Placement:
    if rank < 0 or world_size < 1 or rank >= world_size:
        raise CommError(
            f"init_distributed(rank={rank}, world_size={world_size}): pass both with 0 <= rank < world_size, or neither"
        )
    return Placement(
        rank,
        world_size,
        _number(environ, "LOCAL_RANK", 0 if world_size == 1 else rank),
        _optional(environ, "LOCAL_WORLD_SIZE"),
        environ.get("MASTER_ADDR", "127.0.0.1"),
        _number(environ, "MASTER_PORT", default_port),
        "arguments",
    )


def _from_torchrun(environ: Mapping[str, str]) -> Placement:
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environ]
    world_size = _number(environ, "WORLD_SIZE", 1)
    if world_size > 1:
        missing += [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if missing:
        raise CommError(
            "torchrun-style variables are incomplete: "
            + ", ".join(f"{name}={environ[name]}" if name in environ else f"{name} missing" for name in _TORCHRUN)
            + "; start with `ds run` or torchrun, set all of them, or unset RANK and WORLD_SIZE to run on one rank"
        )
    rank = _number(environ, "RANK", 0)
    if not 0 <= rank < world_size:
        raise CommError(f"RANK={rank} is outside WORLD_SIZE={world_size}: ranks count from 0")
    return Placement(
        rank,
        world_size,
        _number(environ, "LOCAL_RANK", 0),
        _optional(environ, "LOCAL_WORLD_SIZE"),
        environ.get("MASTER_ADDR", "127.0.0.1"),
        _number(environ, "MASTER_PORT", 0),
        "torchrun variables",
    )


def _from_scheme(environ: Mapping[str, str], scheme: _Scheme, default_port: int) -> Placement:
    world_name = next((name for name in scheme.world if name in environ), None)
    if world_name is None:
        raise CommError(
            f"{scheme.name}: {scheme.rank}={environ[scheme.rank]} is set but {' and '.join(scheme.world)} missing; "
            "start ranks with the launcher itself (srun, mpirun), or pass rank and world_size to init_distributed"
        )
    rank, world_size = _number(environ, scheme.rank, 0), _number(environ, world_name, 1)
    local_world = _optional(environ, scheme.local_world) if scheme.local_world else None
    return Placement(
        rank,
        world_size,
        _number(environ, scheme.local_rank, 0 if world_size == 1 else rank),
        local_world if local_world is not None or world_size > 1 else 1,
        _master(environ, scheme, world_size, local_world),
        _number(environ, "MASTER_PORT", default_port),
        f"{scheme.name} variables",
    )


def _master(environ: Mapping[str, str], scheme: _Scheme, world_size: int, local_world: int | None) -> str:
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"]
    if world_size in (1, local_world):
        return "127.0.0.1"
    for name in scheme.hosts:
        if environ.get(name):
            value = environ[name]
            return expand_hosts(value)[0] if name.startswith("SLURM") else value.partition(":")[0]
    looked = ", ".join(("MASTER_ADDR", *scheme.hosts))
    raise CommError(
        f"{scheme.name}: {world_size} ranks, but no address where they meet: none of {looked} is set; "
        "set MASTER_ADDR to the host of rank 0 on every rank (mpirun -x MASTER_ADDR=..., srun --export)"
    )


def _outside_step(environ: Mapping[str, str]) -> bool:
    """True in the shell of an allocation (salloc, sbatch): its variables describe the job, not this process."""
    return "SLURM_JOB_ID" in environ and not ({"SLURM_STEP_ID", "SLURM_STEPID"} & set(environ))


def _optional(environ: Mapping[str, str], name: str) -> int | None:
    return _number(environ, name, 0) if name in environ else None


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise CommError(f"environment variable {name}={text!r} is not a whole number") from None
