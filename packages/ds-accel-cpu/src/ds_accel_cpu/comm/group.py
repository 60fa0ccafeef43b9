"""`ShmGroup`: the backend ``shm`` as torch.distributed sees it.

Note [The backend shm]
    Ranks of one host exchange tensors through one shared segment; see Note [Rounds] in csrc/comm/group.h and Note
    [Messages] in csrc/comm/channels.h. Its size is

        4 KiB * k + ranks^2 * RING_BYTES + ranks * SLOTS * SLOT_BYTES        (k small: counters, 2 pages for 4 ranks)

    and pages are taken when they are first used: rings only by pairs that send messages, slots up to the size of what
    is sent. A group of 4 ranks that only reduces holds 8 MiB at most, whatever the size of the tensors. Between hosts
    there is gloo; see Note [Lanes] in `spanning`.

    Collectives run in the calling thread, or, when asynchronous, in the order of issue in a thread of the group. A rank
    that is killed, leaves, calls something else or does not come in time breaks the group: every rank gets an error
    that names it, within a fraction of a second of the cause, and every later call gets the same error.
"""

from __future__ import annotations

import atexit
import functools
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, Work

from ds_accel_cpu.comm.codes import reduction_code
from ds_accel_cpu.comm.connect import connect
from ds_accel_cpu.comm.transport import Pending, Transport
from ds_accel_cpu.comm.work import ShmWork, Staging

__all__ = ["BACKEND", "ShmGroup"]

BACKEND = "shm"
EXIT_GRACE_S = 2.0
"""At exit: for what was issued and never waited for."""

Tensor = torch.Tensor


class ShmGroup(dist.ProcessGroup):
    """A process group for tensors of the CPU. Made on all ranks of the group; torch's names and arguments.

    Args:
        store: where the ranks meet.
        rank: this process among them.
        size: how many they are.
        timeout: of every collective.
        host: the key of this rank's host; ranks with equal keys share memory. By default it is found out.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta, host: str | None = None) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg] # the form torch has for subclasses
        self._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.CUSTOM, None)
        self._timeout: timedelta = timeout
        self._name: str = ""
        self._description: str = ""
        self._me: int = rank
        self._ranks: int = size
        self.transport: Transport = connect(store, rank, size, timeout, host)
        self._futures: ThreadPoolExecutor | None = None
        _alive().add(self)

    def getBackendName(self) -> str:
        """``"shm"``."""
        return BACKEND

    def _get_backend(self, device: torch.device) -> Any:
        """This group: torch 2.14 asks it for what it supports; 2.13 asked no subclass."""
        return self

    # torch keeps names in the backends of a group; this one has none beside itself.

    def getGroupName(self) -> str:
        """The name torch gave the group."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Called by torch."""
        self._name = name

    def getGroupDesc(self) -> str:
        """The description torch gave the group."""
        return self._description

    def setGroupDesc(self, description: str) -> None:
        """Called by torch."""
        self._description = description

    def close(self, drain_s: float = EXIT_GRACE_S) -> None:
        """Leaves the group; other ranks that still wait for this one get an error. Further calls fail."""
        self.transport.close(drain_s)

    def abort(self) -> None:
        """Leaves at once."""
        self.close(0.0)

    def shutdown(self) -> None:
        """Leaves."""
        self.close()

    # ---- calls ----

    def _settle(self, run: Callable[[], None]) -> object:
        if self._futures is None:
            self._futures = ThreadPoolExecutor(1, thread_name_prefix="ds-shm-future")
        return self._futures.submit(run)

    def _limit(self, opts: Any, timeout: timedelta | None = None) -> float:
        for limit in (timeout, getattr(opts, "timeout", None)):
            if isinstance(limit, timedelta) and limit > timedelta(0):
                return limit.total_seconds()
        return self._timeout.total_seconds()

    def _work(self, pending: Sequence[Pending | None], staging: Staging, results: Sequence[Tensor]) -> ShmWork:
        return ShmWork([each for each in pending if each is not None], staging, results, self._settle)

    def allreduce(self, tensors: Any, opts: Any = None, timeout: timedelta | None = None) -> Work:
        """Reduces in place over the group."""
        return self._all_reduce(_listed(tensors), opts, timeout)

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> Work:
        """Reduces several tensors in place over the group."""
        return self._all_reduce(_listed(tensors), opts, None)

    def _all_reduce(self, tensors: list[Tensor], opts: Any, timeout: timedelta | None) -> Work:
        staging, limit = Staging(), self._limit(opts, timeout)
        later = _is_async(opts) or len(tensors) > 1
        codes = [reduction_code(_reduction(opts), each.dtype) for each in tensors]
        pending = [
            self.transport.all_reduce(staging.update(each), code, limit, later)
            for each, code in zip(tensors, codes, strict=True)
        ]
        return self._work(pending, staging, tensors)

    def reduce(self, tensors: Any, opts: Any = None, *rest: Any) -> Work:
        """Reduces onto the root; ``opts`` may be torch's options, or the root, the reduction and the timeout."""
        (tensor,) = _listed(tensors)
        op, timeout = (*rest, None, None)[:2] if isinstance(opts, int) else (None, None)
        staging, root = Staging(), _root(opts)
        code = reduction_code(_reduction(opts if op is None else op), tensor.dtype)
        host = staging.update(tensor) if root == self._me else staging.read(tensor)
        pending = self.transport.reduce(host, code, root, self._limit(opts, timeout), _is_async(opts))
        return self._work([pending], staging, [tensor])

    def broadcast(self, tensors: Any, opts: Any = None, timeout: timedelta | None = None) -> Work:
        """Copies the root's tensor into everyone's."""
        listed, staging, root = _listed(tensors), Staging(), _root(opts)
        pick = staging.read if root == self._me else staging.write
        later = _is_async(opts) or len(listed) > 1
        limit = self._limit(opts, timeout)
        pending = [self.transport.broadcast(pick(each), root, limit, later) for each in listed]
        return self._work(pending, staging, listed)

    def allgather(self, output_tensors: Any, input_tensors: Any, opts: Any = None) -> Work:
        """Collects every rank's tensor in a list."""
        (source,), outputs = _listed(input_tensors), _flat(output_tensors)
        self._check_blocks("all_gather", "output", outputs, source)
        staging = Staging()
        written = [staging.write(each) for each in outputs]
        limit = self._limit(opts, opts if isinstance(opts, timedelta) else None)
        pending = self.transport.all_gather(written, staging.read(source), limit, _is_async(opts))
        return self._work([pending], staging, outputs)

    def allgather_coalesced(self, output_lists: Any, input_list: Any, opts: Any = None) -> Work:
        """`allgather` of several tensors: one list of outputs for each."""
        staging, pending = Staging(), []
        for outputs, source in zip(output_lists, input_list, strict=True):
            self._check_blocks("all_gather", "output", outputs, source)
            written = [staging.write(each) for each in outputs]
            pending.append(self.transport.all_gather(written, staging.read(source), self._limit(opts), True))
        return self._work(pending, staging, _flat(output_lists))

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Work:
        """Concatenates every rank's tensor."""
        self._check_flat("all_gather", output, input)
        staging = Staging()
        pending = self.transport.all_gather(
            [staging.write(output)], staging.read(input), self._limit(opts), _is_async(opts)
        )
        return self._work([pending], staging, [output])

    def all_gather_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> Work:
        """`all_gather_single` of several pairs."""
        staging, pending = Staging(), []
        for output, source in zip(outputs, inputs, strict=True):
            self._check_flat("all_gather", output, source)
            pending.append(
                self.transport.all_gather([staging.write(output)], staging.read(source), self._limit(opts), True)
            )
        return self._work(pending, staging, list(outputs))

    def reduce_scatter(self, output_tensors: Any, input_tensors: Any, opts: Any = None, *rest: Any) -> Work:
        """Reduces a list of tensors and keeps this rank's."""
        (output,), inputs, staging = _listed(output_tensors), _flat(input_tensors), Staging()
        self._check_blocks("reduce_scatter", "input", inputs, output)
        code = reduction_code(_reduction(opts), output.dtype)
        limit = self._limit(opts, rest[0] if rest else None)
        read = [staging.read(each) for each in inputs]
        pending = self.transport.reduce_scatter(staging.write(output), read, code, limit, _is_async(opts))
        return self._work([pending], staging, [output])

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> Work:
        """Reduces a tensor and keeps this rank's block of it."""
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def reduce_scatter_single_coalesced(self, outputs: Any, inputs: Any, opts: Any = None) -> Work:
        """`reduce_scatter_single` of several pairs."""
        staging, pending = Staging(), []
        later = _is_async(opts) or len(outputs) > 1
        for output, source in zip(outputs, inputs, strict=True):
            self._check_flat("reduce_scatter", source, output)
            code = reduction_code(_reduction(opts), output.dtype)
            read = [staging.read(source)]
            pending.append(self.transport.reduce_scatter(staging.write(output), read, code, self._limit(opts), later))
        return self._work(pending, staging, list(outputs))

    def gather(self, output_tensors: Any, input_tensors: Any, opts: Any = None, *rest: Any) -> Work:
        """Collects every rank's tensor at the root."""
        (source,), root, staging = _listed(input_tensors), _root(opts), Staging()
        outputs = _flat(output_tensors) if root == self._me else []
        if root == self._me:
            self._check_blocks("gather", "output", outputs, source)
        written = [staging.write(each) for each in outputs]
        limit = self._limit(opts, rest[0] if rest else None)
        pending = self.transport.gather(written, staging.read(source), root, limit, _is_async(opts))
        return self._work([pending], staging, outputs)

    def scatter(self, output_tensors: Any, input_tensors: Any, opts: Any = None, *rest: Any) -> Work:
        """Hands out the root's tensors, one to each rank."""
        (output,), root, staging = _listed(output_tensors), _root(opts), Staging()
        inputs = _flat(input_tensors) if root == self._me else []
        if root == self._me:
            self._check_blocks("scatter", "input", inputs, output)
        read = [staging.read(each) for each in inputs]
        limit = self._limit(opts, rest[0] if rest else None)
        pending = self.transport.scatter(staging.write(output), read, root, limit, _is_async(opts))
        return self._work([pending], staging, [output])

    def alltoall(self, output_tensors: Any, input_tensors: Any, opts: Any = None) -> Work:
        """Sends the i-th input to rank i and receives the i-th output from it."""
        outputs, inputs = list(output_tensors), list(input_tensors)
        if len(outputs) != self._ranks or len(inputs) != self._ranks:
            raise ValueError(
                f"all_to_all: {len(outputs)} outputs and {len(inputs)} inputs for {self._ranks} ranks: one for each"
            )
        staging = Staging()
        read, written = [staging.read(each) for each in inputs], [staging.write(each) for each in outputs]
        limit = self._limit(opts, opts if isinstance(opts, timedelta) else None)
        pending = self.transport.all_to_all(written, read, limit, _is_async(opts))
        return self._work([pending], staging, outputs)

    def all_to_all_single(
        self, output: Tensor, input: Tensor, output_splits: Any = None, input_splits: Any = None, opts: Any = None
    ) -> Work:
        """Sends the i-th piece (along dimension 0) of the input to rank i, and receives the output likewise."""
        staging = Staging()
        read, written = staging.read(input), staging.write(output)
        inputs, outputs = self._pieces("input", read, input_splits), self._pieces("output", written, output_splits)
        limit = self._limit(opts, opts if isinstance(opts, timedelta) else None)
        pending = self.transport.all_to_all(outputs, inputs, limit, _is_async(opts))
        return self._work([pending], staging, [output])

    def _pieces(self, what: str, tensor: Tensor, splits: Sequence[int] | None) -> list[Tensor]:
        rows = tensor.size(0) if tensor.dim() > 0 else 1
        if not splits:
            if rows % self._ranks:
                raise ValueError(f"all_to_all: {rows} rows of the {what} do not divide by {self._ranks} ranks")
            splits = [rows // self._ranks] * self._ranks
        if len(splits) != self._ranks or sum(splits) != rows or min(splits) < 0:
            raise ValueError(
                f"all_to_all: {what} split sizes {list(splits)} must be {self._ranks} numbers from 0 on that add up to "
                f"its {rows} rows"
            )
        return list(tensor.split(list(splits)))

    def barrier(self, opts: Any = None, timeout: timedelta | None = None) -> Work:  # type: ignore[override] # one for both
        """Waits for every rank."""
        limit = self._limit(opts, opts if isinstance(opts, timedelta) else timeout)
        return self._work([self.transport.barrier(limit, _is_async(opts))], Staging(), [])

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """A barrier whose error names the ranks that did not come; always all of them."""
        self.transport.barrier(self._limit(None, timeout), False)

    def send(self, tensors: Any, dst: int, tag: int = 0) -> Work:
        """Sends to a rank of the group."""
        (tensor,), staging = _listed(tensors), Staging()
        pending = self.transport.send(staging.read(tensor), dst, tag, self._limit(None), True)
        return self._work([pending], staging, [])

    def recv(self, tensors: Any, src: int, tag: int = 0) -> Work:
        """Receives from a rank of the group."""
        return self._receive(_listed(tensors), src, tag)

    def recv_anysource(self, tensors: Any, tag: int = 0) -> Work:
        """Receives from whoever sends."""
        return self._receive(_listed(tensors), None, tag)

    def _receive(self, tensors: list[Tensor], peer: int | None, tag: int) -> Work:
        (tensor,), staging = tensors, Staging()
        pending = self.transport.receive(staging.write(tensor), peer, tag, self._limit(None), True)
        return self._work([pending], staging, [tensor])

    # The flat ones under their names before torch 2.13.
    _allgather_base: Any = all_gather_single
    allgather_into_tensor_coalesced: Any = all_gather_single_coalesced
    _reduce_scatter_base: Any = reduce_scatter_single
    reduce_scatter_tensor_coalesced: Any = reduce_scatter_single_coalesced
    alltoall_base: Any = all_to_all_single

    # ---- checks ----

    def _check_flat(self, op: str, whole: Tensor, block: Tensor) -> None:
        if whole.numel() != block.numel() * self._ranks or whole.dtype != block.dtype:
            raise ValueError(
                f"{op}: a tensor of {whole.numel()} elements ({whole.dtype}) for blocks of {block.numel()} "
                f"({block.dtype}): it must have {self._ranks} x {block.numel()} elements of the same dtype"
            )

    def _check_blocks(self, op: str, what: str, blocks: Sequence[Tensor], model: Tensor) -> None:
        if len(blocks) != self._ranks:
            raise ValueError(f"{op}: {len(blocks)} {what}s for {self._ranks} ranks: one for each")
        for number, block in enumerate(blocks):
            if block.numel() != model.numel() or block.dtype != model.dtype:
                raise ValueError(
                    f"{op}: {what} {number} has {block.numel()} elements ({block.dtype}), expected {model.numel()} "
                    f"({model.dtype}): all must be of one size and dtype"
                )


@functools.cache
def _alive() -> weakref.WeakSet[ShmGroup]:
    """Groups that were not left; at exit they are, so that no thread works on memory the interpreter gives back."""
    groups: weakref.WeakSet[ShmGroup] = weakref.WeakSet()

    def leave_all() -> None:
        for group in list(groups):
            group.close()

    atexit.register(leave_all)
    return groups


def _listed(tensors: Any) -> list[Tensor]:
    """One tensor, or a list of them, as a list."""
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _flat(tensors: Any) -> list[Tensor]:
    """A list of tensors that torch may have put into a list."""
    return [inner for each in tensors for inner in _listed(each)]


def _is_async(opts: Any) -> bool:
    """False only where torch says that the caller waits at once."""
    return bool(getattr(opts, "asyncOp", True))


def _root(opts: Any) -> int:
    return int(getattr(opts, "rootRank", opts or 0))


def _reduction(opts: Any) -> Any:
    """The reduction, from torch's options or given as such; a sum by default."""
    chosen = getattr(opts, "reduceOp", opts)
    return dist.ReduceOp.SUM if chosen is None else chosen
