"""The process behind one test rank: waits for calls, joins a fresh gloo group for each, reports what happened."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from ds_core.testing._channel import FunctionRef, decode, encode, resolve

__all__ = ["Answer", "Call", "serve"]


@dataclass(frozen=True)
class Call:
    """One call of a rank: which function, as which rank, in which group, with what environment."""

    function: FunctionRef
    rank: int
    world: int
    store_port: int
    store_prefix: str
    timeout_s: float
    env: dict[str, str]
    path: list[str]
    arguments: bytes
    init: bool


@dataclass(frozen=True)
class Answer:
    """What became of a call. `value` and `exception` are encoded; `ended_s` is the machine's monotonic clock."""

    value: bytes | None
    exception: bytes | None
    kind: str
    message: str
    text: str
    ended_s: float


def serve(calls: Connection, stacks: Connection) -> None:
    """Answer calls until the test closes the pipe. SIGUSR1 writes every thread's stack to `stacks`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=stacks.fileno(), all_threads=True)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is not looked at by the collection after each call
    while True:
        try:
            call = decode(calls.recv_bytes())
        except (EOFError, OSError):
            return
        if call is None:
            return
        answer = _answer(call)
        try:
            calls.send_bytes(encode(answer))
        except (BrokenPipeError, OSError):
            return


def _answer(call: Call) -> Answer:
    value: bytes | None = None
    failed_s: list[float] = []
    try:
        with _environment(call), _group(call), _noting(failed_s):
            sys.path[:] = call.path
            fn = resolve(call.function)
            args, kwargs = decode(call.arguments)
            value = encode(fn(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - every failure of the rank, SystemExit too, goes back to the test
        text, ended_s = traceback.format_exc(), failed_s[0] if failed_s else time.monotonic()
        return Answer(None, _encoded(error), type(error).__qualname__, str(error), text, ended_s)
    return Answer(value, None, "", "", "", time.monotonic())


@contextlib.contextmanager
def _noting(failed_s: list[float]) -> Iterator[None]:
    """Note when the function failed: before the group is left, which makes the other ranks fail too."""
    try:
        yield
    except BaseException:
        failed_s.append(time.monotonic())
        raise


def _encoded(error: BaseException) -> bytes | None:
    try:
        data = encode(error)
        decode(data)
    except Exception:  # noqa: BLE001 - an exception that does not survive the pipe is reported as text only
        return None
    return data


@contextlib.contextmanager
def _environment(call: Call) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(
        {
            "RANK": str(call.rank),
            "WORLD_SIZE": str(call.world),
            "LOCAL_RANK": str(call.rank),
            "LOCAL_WORLD_SIZE": str(call.world),
            **call.env,
        }
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _group(call: Call) -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if call.init:
        timeout = timedelta(seconds=call.timeout_s)
        store = TCPStore("127.0.0.1", call.store_port, is_master=False, timeout=timeout)
        dist.init_process_group(
            "gloo",
            store=PrefixStore(call.store_prefix, store),
            rank=call.rank,
            world_size=call.world,
            timeout=timeout,
        )
    try:
        yield
    finally:
        _forget()


def _forget() -> None:
    """Leave the group even when the function failed inside it, so that its peers get an error instead of a wait."""
    gc.collect()  # engines of this call hold groups; they must not live into the next one
    comm: Any = sys.modules.get("ds_core.comm")
    if comm is not None:
        comm.reset()
        comm.reset_log()
        comm.configure({"comms_logger": {}})
        comm.destroy_process_group()
    if dist.is_initialized():
        dist.destroy_process_group()
