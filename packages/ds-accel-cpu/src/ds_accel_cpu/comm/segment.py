"""Make the shared segment of a group and hand it to the ranks of this host, and to nobody else.

Note [Handing over]
    The first rank of a host makes an anonymous file (memfd) and listens on a unix-domain socket in the abstract
    namespace, under a random name that it publishes in the group's store together with a random word. The others
    connect, and the file's descriptor is passed to those whose process belongs to the same user (as the kernel says:
    SO_PEERCRED) and who know the word. Nothing of it has a name in a file system: when all ranks are gone, killed or
    not, nothing is left, and another user has no way to the memory.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from torch._C._distributed_c10d import Store

from ds_accel_cpu import _comm
from ds_accel_cpu.comm.hosts import Plan, host_key
from ds_core.errors import CommError

__all__ = ["RING_BYTES", "SLOTS", "SLOT_BYTES", "Member", "attach", "cores", "meet", "unusable"]

SLOTS = 2
SLOT_BYTES = 1024 * 1024
"""Where ranks have to sleep for each other, the number of rounds decides the speed: slots of 256 KiB took up to twice
as long on a loaded machine, and more slots instead of larger ones did not help. On a quiet one the two are equal."""

RING_BYTES = 256 * 1024

HAND_OVER_S = 60.0
"""For handing the segment over, once all ranks of the group are known to be there."""

_CREDENTIALS = struct.Struct("3i")


class Member(NamedTuple):
    """What a rank says of itself when a group is made."""

    host: str
    name: int
    problem: str


@functools.cache
def unusable() -> str:
    """Why no shared segment can be made here; empty when one can."""
    if sys.platform != "linux":
        return f"shared segments need Linux, this is {sys.platform}"
    try:
        host_key()
        with _file(4096), _listener(secrets.token_hex(8)):
            pass
    except (OSError, AttributeError) as error:
        return f"this system does not let a process make one ({type(error).__name__}: {error})"
    return ""


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0))


def meet(store: Store, rank: int, size: int, timeout: timedelta, mine: Member) -> tuple[str, list[Member]]:
    """What all ranks say of themselves, and the prefix of this meeting in the store. Called on all ranks.

    Ranks that make a group in the same store once more get a new meeting, so nobody reads what is left of an old one.
    """
    prefix = f"shm/{store.add(f'shm/meetings/{rank}', 1)}"
    store.set(f"{prefix}/member/{rank}", json.dumps(mine))
    keys = [f"{prefix}/member/{each}" for each in range(size)]
    store.wait(keys, timeout)
    return prefix, [Member(*json.loads(store.get(key))) for key in keys]


def attach(
    store: Store, prefix: str, layout: Plan, rank: int, names: Sequence[int], reduce: int, timeout: timedelta
) -> _comm.Endpoint:
    """This rank's end of the segment of its host. Called on all ranks after `meet`; returns when all are attached.

    Args:
        store: of the group.
        prefix: of this meeting.
        layout: who is on which host.
        rank: this rank in the group.
        names: numbers of the group's ranks in messages.
        reduce: address of the kernel ``reduce_ranks``.
        timeout: for the ranks of this host to attach.
    """
    local = layout.local
    bytes_ = _comm.segment_bytes(len(local), SLOTS, SLOT_BYTES, RING_BYTES)
    key = f"{prefix}/socket/{layout.host}"
    try:
        fd = _make(store, key, len(local), bytes_) if rank == local[0] else _receive(store, key, layout.lane)
    except (OSError, ValueError) as error:
        raise CommError(
            f"rank {names[rank]} could not share memory with the ranks {[names[each] for each in local]} of its host: "
            f"{error}; DS_COMM_BACKEND=gloo does without"
        ) from error
    endpoint = _comm.Endpoint(
        fd,
        rank=layout.lane,
        slots=SLOTS,
        slot_bytes=SLOT_BYTES,
        ring_bytes=RING_BYTES,
        names=[names[each] for each in local],
        may_spin=len(local) <= cores(),
        reduce=reduce,
    )
    store.set(f"{prefix}/attached/{rank}", "1")
    store.wait([f"{prefix}/attached/{each}" for each in local], timeout)
    return endpoint


@contextlib.contextmanager
def _file(bytes_: int):  # type: ignore[no-untyped-def]
    fd = _create(bytes_)
    try:
        yield fd
    finally:
        os.close(fd)


def _create(bytes_: int) -> int:
    """An anonymous file of this size that can neither grow nor shrink; a shrunk one would kill who reads it."""
    fd = os.memfd_create("ds-comm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, bytes_)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _listener(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(f"\0ds-comm-{name}")
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def _make(store: Store, key: str, count: int, bytes_: int) -> int:
    """Makes the file and passes it to ``count - 1`` other ranks."""
    fd = _create(bytes_)
    if count == 1:
        return fd
    name, word = secrets.token_hex(16), secrets.token_hex(16)
    try:
        with _listener(name) as listener:
            store.set(key, f"{name} {word}")
            hand_over(listener, word, fd, range(1, count), HAND_OVER_S)
    except BaseException:
        os.close(fd)
        raise
    return fd


def hand_over(listener: socket.socket, word: str, fd: int, lanes: Sequence[int], limit_s: float) -> None:
    """Passes `fd` to one connection for each of the lanes; connections that may not have it are closed.

    Raises:
        TimeoutError: not all came in time.
    """
    waiting, end = set(lanes), time.monotonic() + limit_s
    while waiting:
        listener.settimeout(max(0.01, end - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            raise TimeoutError(
                f"ranks at places {sorted(waiting)} of this host did not fetch the segment within {limit_s:g} s"
            ) from None
        with connection:
            lane = _asked(connection, word)
            if lane in waiting:
                socket.send_fds(connection, [b"1"], [fd])
                waiting.discard(lane)


def _asked(connection: socket.socket, word: str) -> int | None:
    """The lane of a peer of the same user that knows the word; None for anyone else."""
    if _peer_user(connection) != os.getuid():
        return None
    connection.settimeout(5.0)
    try:
        said, _, lane = connection.recv(128).decode("ascii", "replace").partition(" ")
    except OSError:
        return None
    return int(lane) if secrets.compare_digest(said, word) and lane.isdigit() else None


def _receive(store: Store, key: str, lane: int) -> int:
    """The descriptor that the host's first rank passes."""
    store.wait([key], timedelta(seconds=HAND_OVER_S))
    name, word = store.get(key).decode().split()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(HAND_OVER_S)
        connection.connect(f"\0ds-comm-{name}")
        if _peer_user(connection) != os.getuid():
            raise ValueError("the socket that hands out the segment belongs to another user")
        connection.sendall(f"{word} {lane}".encode())
        fds = array.array("i")
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if not fds:
            raise ValueError("the host's first rank refused to hand the segment over")
        return fds[0]


def _peer_user(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
