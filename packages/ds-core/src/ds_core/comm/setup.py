"""Start and end the process groups: which rank, which backend, where to meet, and what went wrong when it fails."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store, TCPStore
from torch.distributed import ProcessGroup

from ds_core.comm import staged
from ds_core.comm.backends import choose_backend
from ds_core.comm.discovery import Placement, discover
from ds_core.comm.logs import configure
from ds_core.comm.state import WORLD_LABEL, counter, is_member
from ds_core.errors import CommError

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator

__all__ = ["default_timeout", "destroy_process_group", "init_distributed", "mpi_discovery", "new_group"]

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 1800.0
EXIT_GRACE_S = 0.1
"""What a rank waits at exit for gloo's threads; see `_let_workers_finish`."""
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def init_distributed(
    dist_backend: str | None = None,
    auto_mpi_discovery: bool = True,
    distributed_port: int = 29500,
    verbose: bool = True,
    timeout: timedelta | None = None,
    init_method: str | None = None,
    dist_init_required: bool | None = None,
    config: Any = None,
    rank: int = -1,
    world_size: int = -1,
    accelerator: Accelerator | None = None,
) -> None:
    """Make the default process group, once; a second call checks that it fits. Called on all ranks.

    The rank comes from `rank` and `world_size`, else from the variables of torchrun (`ds run`), Open MPI, MVAPICH, PMI
    or SLURM, else this is one rank by itself. With one rank no port is opened.

    Args:
        dist_backend: backend by name; else DS_COMM_BACKEND, else the accelerator's, else gloo.
        auto_mpi_discovery: look at the variables of MPI launchers and SLURM.
        distributed_port: port of rank 0 for launchers that state none (MASTER_PORT goes first).
        verbose: say at level INFO what was found.
        timeout: for every collective; else DS_COMM_TIMEOUT_S, else DEEPSPEED_TIMEOUT (minutes), else 30 minutes.
        init_method: URL for torch (``tcp://``, ``file://``, ``env://``); the placement is found as above.
        dist_init_required: False demands that the process group exists already (when there are several ranks).
        config: mapping or object with a `comms_logger` section.
        rank, world_size: both, to skip discovery.
        accelerator: whose backend is used when none is named; selected when needed and not given.

    Raises:
        CommError: no usable placement or backend, the ranks did not meet, or the existing group does not fit.
    """
    if config is not None:
        configure(config)
    if dist.is_initialized():
        _check_existing(rank, world_size, accelerator)
        return
    placement = discover(
        os.environ, rank=rank, world_size=world_size, mpi=auto_mpi_discovery, default_port=distributed_port
    )
    if dist_init_required is False and placement.world_size > 1:
        raise CommError(
            f"dist_init_required=False, but there is no process group and {placement.source} say(s) "
            f"{placement.world_size} ranks: call torch.distributed.init_process_group first, or leave it at None"
        )
    _export(placement)
    backend = choose_backend(dist_backend, os.environ, placement, accelerator)
    limit = timeout if timeout is not None else default_timeout()
    try:
        _start(backend, placement, init_method, limit)
    except (RuntimeError, ValueError, OSError) as error:
        raise CommError(_start_failure(error, backend, placement, init_method)) from error
    if placement.world_size > 1:
        atexit.unregister(_let_workers_finish)
        atexit.register(_let_workers_finish)
    _label(dist.group.WORLD, WORLD_LABEL)
    if verbose:
        logger.info(
            "rank %d of %d (local rank %d) from %s; backend %s",
            placement.rank,
            placement.world_size,
            placement.local_rank,
            placement.source,
            backend,
        )


def default_timeout() -> timedelta:
    """DS_COMM_TIMEOUT_S, else DEEPSPEED_TIMEOUT in minutes, else 30 minutes."""
    for name, unit_s in (("DS_COMM_TIMEOUT_S", 1.0), ("DEEPSPEED_TIMEOUT", 60.0)):
        text = os.environ.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit_s
        except ValueError:
            seconds = 0.0
        if seconds <= 0:
            raise CommError(f"environment variable {name}={text!r} must be a number above 0")
        return timedelta(seconds=seconds)
    return timedelta(seconds=DEFAULT_TIMEOUT_S)


def new_group(
    ranks: Sequence[int] | None = None,
    timeout: timedelta | None = None,
    backend: str | None = None,
    name: str | None = None,
    **kwargs: Any,
) -> ProcessGroup | None:
    """A group of `ranks` (None: all). Called on all ranks of the world, in the same order.

    Args:
        ranks: world ranks of the members.
        timeout: for its collectives; else as `default_timeout`.
        backend: else that of the default group.
        name: what the group is called in reports and errors.
        kwargs: handed to ``torch.distributed.new_group``.

    Returns:
        The group; on ranks outside it what torch returns there; None when there is no process group.
    """
    members = None if ranks is None else sorted(set(ranks))
    if not dist.is_initialized():
        if members not in (None, [0]):
            raise CommError(f"new_group(ranks={members}): there is no process group; call init_distributed first")
        return None
    world = dist.get_world_size()
    wrong = [rank for rank in members or () if not 0 <= rank < world]
    if wrong or members == []:
        raise CommError(f"new_group(ranks={members}): ranks must be in 0..{world - 1} and at least one")
    limit = timeout if timeout is not None else default_timeout()
    group: ProcessGroup | None = dist.new_group(members, limit, backend, group_desc=name, **kwargs)
    if name is not None and group is not None and is_member(group):
        _label(group, name)
    return group


def destroy_process_group(group: ProcessGroup | None = None) -> None:
    """Leave the group (None: all of them). What was counted stays until `reset`."""
    if not dist.is_initialized():
        return
    name = None if group is None or group is dist.group.WORLD else group.group_name
    dist.destroy_process_group(group)
    counter.forget_group(name)


def mpi_discovery(distributed_port: int = 29500, verbose: bool = True) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from an MPI launcher's or SLURM's variables."""
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    placement = discover(environ, default_port=distributed_port)
    if placement.source.startswith("nothing"):
        raise CommError("mpi_discovery: no variables of Open MPI, MVAPICH, PMI or SLURM; start with mpirun or srun")
    os.environ.update(
        RANK=str(placement.rank),
        WORLD_SIZE=str(placement.world_size),
        LOCAL_RANK=str(placement.local_rank),
        MASTER_ADDR=placement.master_addr,
        MASTER_PORT=str(placement.master_port),
    )
    if verbose:
        logger.info("rank %d of %d from %s", placement.rank, placement.world_size, placement.source)


def _label(group: ProcessGroup | None, name: str) -> None:
    if group is not None:
        counter.label(group.group_name, name)


def _check_existing(rank: int, world_size: int, accelerator: Accelerator | None) -> None:
    for what, wanted, have in (("rank", rank, dist.get_rank()), ("world_size", world_size, dist.get_world_size())):
        if wanted >= 0 and wanted != have:
            raise CommError(
                f"init_distributed({what}={wanted}): the process group exists already with {what} {have}; "
                "destroy it first (ds_core.comm.destroy_process_group) or do not pass it"
            )
    group = dist.group.WORLD
    if group is None:
        return
    if accelerator is not None and not staged.is_served(accelerator.device_type, group):
        raise CommError(
            f"the process group that exists (backend {dist.get_backend()}) takes no tensors of device "
            f"{accelerator.device_type!r}: let ds_core.initialize make it, or call ds_core.comm.init_distributed with "
            f"DS_ACCELERATOR={accelerator.name} set before"
        )
    _label(group, WORLD_LABEL)


def _export(placement: Placement) -> None:
    """What the rest of the process reads from the environment: the local rank, and gloo's interface on one machine."""
    os.environ.setdefault("LOCAL_RANK", str(placement.local_rank))
    if placement.is_one_machine and "GLOO_SOCKET_IFNAME" not in os.environ:
        name = _loopback_interface()
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _loopback_interface() -> str | None:
    known = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in known), None)


def _let_workers_finish() -> None:
    """Gives gloo's worker threads the moment they need to let go of the last collective's tensors.

    Run at exit. A worker that still waits for the interpreter lock when Python finalizes is ended inside a destructor,
    and the process aborts although all went well.
    """
    time.sleep(EXIT_GRACE_S)


def _start(backend: str, placement: Placement, init_method: str | None, limit: timedelta) -> None:
    if init_method is not None:
        dist.init_process_group(
            backend,
            init_method=init_method,
            rank=placement.rank,
            world_size=placement.world_size,
            timeout=limit,
        )
    elif os.environ.get(_AGENT_STORE) == "True" and placement.source == "torchrun variables":
        dist.init_process_group(backend, init_method="env://", timeout=limit)
    else:
        store = _store(placement, limit)
        dist.init_process_group(
            backend, store=store, rank=placement.rank, world_size=placement.world_size, timeout=limit
        )


def _store(placement: Placement, limit: timedelta) -> Store:
    """Where the ranks meet. On loopback only loopback listens; torch's own choice would be every interface."""
    if placement.world_size == 1:
        return HashStore()
    address, port, first = placement.master_addr, placement.master_port, placement.rank == 0
    if address in ("127.0.0.1", "localhost"):
        if not first:
            return TCPStore("127.0.0.1", port, is_master=False, timeout=limit)
        listener = socket.create_server(("127.0.0.1", port))
        return TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=limit,
            master_listen_fd=listener.detach(),
        )
    return TCPStore(address, port, is_master=first, wait_for_workers=False, timeout=limit)


def _start_failure(error: BaseException, backend: str, placement: Placement, init_method: str | None) -> str:
    where = init_method or f"{placement.master_addr}:{placement.master_port}"
    lines = [
        f"rank {placement.rank} of {placement.world_size} could not join the process group (backend {backend}, "
        f"meeting at {where}, placement from {placement.source}): {str(error).strip().splitlines()[0]}",
        "check that all ranks were started, that rank 0 runs at that address and the port is free and reachable, and",
        f"that {_interface_hint(backend)} names a network the ranks share",
    ]
    return "\n".join(lines)


def _interface_hint(backend: str) -> str:
    name = "NCCL_SOCKET_IFNAME" if "nccl" in backend else "GLOO_SOCKET_IFNAME"
    known = ", ".join(sorted(path.name for path in Path("/sys/class/net").glob("*"))) or "unknown"
    return f"{name}={os.environ.get(name, 'unset')} (interfaces here: {known})"
