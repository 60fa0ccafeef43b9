"""Run a function on several real ranks: processes (or threads) with a gloo group, reused from call to call.

Processes come from a fork server that has imported torch once; a call costs a new group, not a new interpreter.
"""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, ClassVar

from ds_core.errors import DsError

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch._C._distributed_c10d import Store

    from ds_core.testing._rank_worker import Answer

__all__ = ["RankDied", "RankError", "RankFailure", "run_ranks"]

GRACE_S = 5.0
"""How long the other ranks may go on after the first one failed, before they are stopped and their stacks shown."""


@dataclass(frozen=True)
class RankFailure:
    """How one rank failed. `exception` is None when it died, hung, or raised something that cannot cross a pipe."""

    rank: int
    kind: str
    message: str
    text: str
    exception: BaseException | None
    ended_s: float

    def __str__(self) -> str:
        body = self.text.rstrip() or self.message
        return f"--- rank {self.rank}: {self.kind}\n{body}"


@dataclass(frozen=True)
class RankDied:
    """The result of a rank that was allowed to die (`dies=`) and did. A negative exit code is a signal's number."""

    exit_code: int | None


class RankError(DsError, RuntimeError):
    """At least one rank failed; `failures` holds each, the earliest first, `results` what the others returned."""

    def __init__(self, title: str, failures: list[RankFailure], results: dict[int, Any]) -> None:
        self.title = title
        self.failures = {failure.rank: failure for failure in failures}
        self.results = results
        super().__init__("\n".join([title, *(str(failure) for failure in failures)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.title, list(self.failures.values()), self.results)


def run_ranks(
    fn: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    mode: str = "processes",
    dies: Collection[int] = (),
    init: bool = True,
    fresh: bool = False,
    group_timeout_s: float | None = None,
    start: str = "forkserver",
    **kwargs: Any,
) -> list[Any]:
    """Run `fn(*args, **kwargs)` on `world` ranks at once and return their results in rank order.

    With ``mode="processes"`` each rank is a process in which ``torch.distributed`` is initialised (gloo on loopback)
    and torch uses one thread. `fn` must be defined at module level of a file; a test module will do. With
    ``mode="threads"`` the ranks are threads of this process, `fn` gets its rank's `ProcessGroup` as first argument and
    there is no default group: cheap, for code that takes its group explicitly.

    Args:
        fn: what each rank runs; arguments and results cross a local pipe, tensors by value.
        world: number of ranks.
        timeout_s: a call that takes longer is stopped, with every rank's stack in the error.
        env: variables set on every rank for this call, on top of RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE.
        mode: "processes" or "threads".
        dies: ranks that may die; their result is a `RankDied` instead of an error.
        group_timeout_s: timeout of the process group; by default a little less than `timeout_s`, so that a collective
            that never completes ends with the error users would see.
        init: False leaves the process group to `fn` (for tests of initialisation itself).
        start: "forkserver", or "spawn" for devices whose driver must not be forked once torch has loaded it.
        fresh: in processes that ran nothing before and end with the call; a device that is loaded after a process's
            first backward pass cannot run another.

    Raises:
        RankError: any rank raised, died or did not end in time; it names every failing rank, the earliest first.
    """
    if world < 1:
        raise ValueError(f"run_ranks needs at least one rank, got world={world}")
    group_s = max(0.75 * timeout_s, timeout_s - 3.0) if group_timeout_s is None else group_timeout_s
    if mode == "threads":
        return _run_threads(fn, world, args, kwargs, timeout_s, group_s)
    if mode != "processes":
        raise ValueError(f'mode must be "processes" or "threads", got {mode!r}')
    pool = _Pool.shared(start)
    if fresh:
        pool = _Pool(start)
    try:
        return pool.run(fn, world, args, kwargs, timeout_s, group_s, dict(env or {}), frozenset(dies), init)
    finally:
        if fresh:
            pool.close()


class _Worker:
    """One rank process, its pipe for calls, and its pipe for stacks."""

    def __init__(self, start: str) -> None:
        from ds_core.testing import _rank_worker

        context: Any = multiprocessing.get_context(start)
        self.calls: Connection
        self.stacks: Connection
        self.calls, calls_end = context.Pipe()
        self.stacks, stacks_end = context.Pipe(duplex=False)
        os.set_blocking(self.stacks.fileno(), False)
        self.process: BaseProcess = context.Process(  # not a daemon: ranks may start data-loader workers
            target=_rank_worker.serve, args=(calls_end, stacks_end), name="ds-test-rank"
        )
        self.process.start()
        calls_end.close()
        stacks_end.close()

    def stack(self) -> str:
        """The stacks of all threads of a rank that does not answer."""
        pid = self.process.pid
        if pid is None or not self.process.is_alive():
            return "(the process is gone)"
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            return "(the process is gone)"
        text, deadline = b"", time.monotonic() + 2.0
        while time.monotonic() < deadline:
            if wait([self.stacks], 0.2):
                try:
                    chunk = os.read(self.stacks.fileno(), 65536)
                except BlockingIOError:
                    continue
                if not chunk:
                    break
                text += chunk
            elif text:
                break
        return text.decode(errors="replace") or "(no stack: the process did not answer the signal)"

    def stop(self, *, kill: bool) -> None:
        """End the process; `kill` does not wait for it to notice."""
        self.calls.close()
        if kill:
            self.process.kill()
        self.process.join(5.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(5.0)
        self.stacks.close()
        self.process.close()


@dataclass
class _Outcome:
    """What is known about a running call so far."""

    answers: dict[int, Answer] = field(default_factory=dict)
    failures: list[RankFailure] = field(default_factory=list)
    died: dict[int, RankDied] = field(default_factory=dict)


class _Pool:
    """Rank processes that wait for the next call, and the rendezvous store they meet at."""

    _shared: ClassVar[dict[str, _Pool]] = {}

    def __init__(self, start: str) -> None:
        self._start: str = start
        self._workers: list[_Worker] = []
        self._store: Any = None
        self._port: int = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @classmethod
    def shared(cls, start: str = "forkserver") -> _Pool:
        """The pool of this process, started at first use and stopped at interpreter exit."""
        if start not in cls._shared:
            context = multiprocessing.get_context("forkserver")
            preload = ["ds_core.testing._rank_worker"]
            if "pytest" in sys.modules:  # every child re-imports the main module, so have it ready too
                preload.append("pytest")
            context.set_forkserver_preload(preload)
            cls._shared[start] = cls(start)
            atexit.register(cls._shared[start].close)
        return cls._shared[start]

    def close(self) -> None:
        """Stop every process."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.calls.close()
        for worker in workers:
            worker.stop(kill=False)
        self._store = None

    def _rendezvous_port(self) -> int:
        if self._store is None:
            from torch._C._distributed_c10d import TCPStore

            listener = socket.create_server(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
            self._store = TCPStore(
                "127.0.0.1",
                self._port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
                timeout=timedelta(seconds=60),
            )
        return self._port

    def run(
        self,
        fn: Callable[..., Any],
        world: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout_s: float,
        group_s: float,
        env: dict[str, str],
        dies: frozenset[int],
        init: bool,
    ) -> list[Any]:
        from ds_core.testing._channel import decode, encode, locate
        from ds_core.testing._rank_worker import Call

        function, arguments = locate(fn), encode((args, kwargs))
        with self._lock:
            port, prefix = self._rendezvous_port(), f"call{next(self._numbers)}"
            self._workers += [_Worker(self._start) for _ in range(world - len(self._workers))]
            team = self._workers[:world]
            outcome = _Outcome()
            try:
                for rank, worker in enumerate(team):
                    call = Call(function, rank, world, port, prefix, group_s, env, list(sys.path), arguments, init)
                    worker.calls.send_bytes(encode(call))
                self._collect(team, outcome, dies, timeout_s)
            finally:
                clean = len(outcome.answers) == world and not outcome.failures
                if not clean:  # a failed call may leave anything behind: the next one gets fresh processes
                    self._workers = self._workers[world:]
                    for worker in team:
                        worker.stop(kill=True)
        results: dict[int, Any] = dict(outcome.died)
        for rank, answer in outcome.answers.items():
            if answer.value is not None:
                results[rank] = decode(answer.value)
        if outcome.failures:
            raise _error(getattr(fn, "__qualname__", "fn"), world, outcome.failures, results)
        return [results[rank] for rank in range(world)]

    def _collect(self, team: list[_Worker], outcome: _Outcome, dies: frozenset[int], timeout_s: float) -> None:
        """Wait for every rank; after a first failure the others have `GRACE_S` left."""
        started = time.monotonic()
        deadline, reason = started + timeout_s, f"did not end within timeout_s={timeout_s:g}"
        waiting = {worker.calls: rank for rank, worker in enumerate(team)}
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                stacks = {rank: team[rank].stack() for rank in sorted(waiting.values())}
                for rank, stack in stacks.items():
                    outcome.failures.append(
                        RankFailure(rank, f"hang, {reason}; stopped", reason, stack, None, time.monotonic())
                    )
                return
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = waiting.pop(connection)
                before = len(outcome.failures)
                self._receive(rank, team[rank], outcome, dies)
                if len(outcome.failures) > before:
                    grace = time.monotonic() + GRACE_S
                    if grace < deadline:
                        deadline, reason = grace, f"did not end within {GRACE_S:g} s of rank {rank}'s failure"

    def _receive(self, rank: int, worker: _Worker, outcome: _Outcome, dies: frozenset[int]) -> None:
        from ds_core.testing._channel import decode

        try:
            answer: Answer = decode(worker.calls.recv_bytes())
        except (EOFError, OSError):
            worker.process.join(5.0)
            code = worker.process.exitcode
            if rank in dies:
                outcome.died[rank] = RankDied(code)
                return
            name = f" ({signal.Signals(-code).name})" if code is not None and code < 0 else ""
            kind = f"died with exit code {code}{name}"
            outcome.failures.append(RankFailure(rank, kind, kind, "", None, time.monotonic()))
            return
        outcome.answers[rank] = answer
        if answer.value is None:
            exception = decode(answer.exception) if answer.exception is not None else None
            outcome.failures.append(
                RankFailure(rank, answer.kind, answer.message, answer.text, exception, answer.ended_s)
            )


def _error(name: str, world: int, failures: list[RankFailure], results: dict[int, Any]) -> RankError:
    ordered = sorted(failures, key=lambda failure: failure.ended_s)
    ranks = ", ".join(str(failure.rank) for failure in ordered)
    first = ordered[0]
    title = f"{name}: {len(ordered)} of {world} ranks failed (in order: {ranks}); first was rank {first.rank}"
    error = RankError(f"{title}: {first.kind}: {first.message}", ordered, results)
    error.__cause__ = first.exception
    return error


def thread_group(store: Store, rank: int, world: int, timeout_s: float, name: str) -> dist.ProcessGroup:
    """A gloo `ProcessGroup` of one rank that needs no default group, so that threads can each be a rank."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore

    prefixed = PrefixStore(name, store)
    group = dist.ProcessGroup(prefixed, rank, world)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [dist.ProcessGroupGloo.create_device(interface="lo")]
    backend = dist.ProcessGroupGloo(prefixed, rank, world, options)
    group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
    group._set_group_name(name)  # type: ignore[arg-type]
    return group


def _run_threads(
    fn: Callable[..., Any], world: int, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float, group_s: float
) -> list[Any]:
    from torch._C._distributed_c10d import HashStore

    store = HashStore()
    results: dict[int, Any] = {}
    failures: list[RankFailure] = []
    connected = threading.Barrier(world)

    def work(rank: int) -> None:
        is_connected = False
        try:
            group = thread_group(store, rank, world, group_s, "threads")
            connected.wait(group_s)  # one that is done early would close connections others still make
            is_connected = True
            results[rank] = fn(group, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - handed to the caller as RankError
            if not is_connected:  # else it would fail ranks that the barrier has let go and that did not wake yet
                connected.abort()
            failures.append(
                RankFailure(rank, type(error).__qualname__, str(error), traceback.format_exc(), error, time.monotonic())
            )

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.05)
            if failures:
                deadline = min(deadline, time.monotonic() + GRACE_S)
    frames = sys._current_frames()
    for rank, thread in enumerate(threads):
        if thread.is_alive():
            frame = frames.get(thread.ident or 0)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
            failures.append(RankFailure(rank, "hang; its thread was left behind", "", stack, None, time.monotonic()))
    if failures:
        raise _error(getattr(fn, "__qualname__", "fn"), world, failures, results)
    return [results[rank] for rank in range(world)]
