"""What spanning groups use of gloo: moving bytes between hosts, each call to its end. Reductions are not gloo's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    GatherOptions,
    PrefixStore,
    ProcessGroupGloo,
    ScatterOptions,
    Store,
    Work,
)

__all__ = ["GlooBytes", "GlooPending", "as_bytes"]

Tensor = torch.Tensor


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as a vector of bytes, so that every dtype can be moved."""
    return tensor.detach().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


class GlooBytes:
    """A gloo group that moves vectors of bytes. Every method but the two of messages waits for its end.

    Args:
        store: where the ranks meet.
        name: of this group in the store.
        rank: this process in the group.
        size: of the group.
        timeout: to connect.
    """

    def __init__(self, store: Store, name: str, rank: int, size: int, timeout: timedelta) -> None:
        prefixed = PrefixStore(name, store)
        gloo = ProcessGroupGloo(prefixed, rank, size, timeout=timeout)
        gloo._set_sequence_number_for_group()
        # Not the gloo backend itself: see StagedGroup in ds_core.comm.staged.
        self._group = dist.ProcessGroup(prefixed, rank, size)
        self._group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        self._group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        self._exchange: Any = getattr(self._group, "all_to_all_single", None) or self._group.alltoall_base
        self.rank: int = rank
        self.size: int = size

    def gather_all(self, output: Tensor, source: Tensor, timeout_s: float) -> None:
        """Every rank's `source` into `output`, one after the other."""
        if not source.numel():
            return
        blocks = list(output.view(self.size, -1).unbind(0))
        self._group.allgather([blocks], [source], _limited(AllgatherOptions(), timeout_s)).wait()

    def exchange(
        self, output: Tensor, source: Tensor, out_bytes: Sequence[int], in_bytes: Sequence[int], timeout_s: float
    ) -> None:
        """Consecutive pieces of `source` to the ranks, consecutive pieces of `output` from them."""
        options = _limited(AllToAllOptions(), timeout_s)
        self._exchange(output, source, list(out_bytes), list(in_bytes), options).wait()

    def broadcast(self, tensor: Tensor, root: int, timeout_s: float) -> None:
        """The root's bytes to all."""
        options = _limited(BroadcastOptions(), timeout_s)
        options.rootRank = root
        if tensor.numel():
            self._group.broadcast([tensor], options).wait()

    def gather(self, outputs: Sequence[Tensor], source: Tensor, root: int, timeout_s: float) -> None:
        """Every rank's bytes to the root."""
        options = _limited(GatherOptions(), timeout_s)
        options.rootRank = root
        if source.numel():
            self._group.gather([list(outputs)] if self.rank == root else [], [source], options).wait()

    def scatter(self, output: Tensor, inputs: Sequence[Tensor], root: int, timeout_s: float) -> None:
        """The root's bytes, a piece to each."""
        options = _limited(ScatterOptions(), timeout_s)
        options.rootRank = root
        if output.numel():
            self._group.scatter([output], [list(inputs)] if self.rank == root else [], options).wait()

    def barrier(self, timeout_s: float) -> None:
        """Ends when every rank has come."""
        self._group.barrier(_limited(BarrierOptions(), timeout_s)).wait()

    def send(self, tensor: Tensor, peer: int, tag: int) -> GlooPending:
        """A message to `peer`."""
        return GlooPending(self._group.send([tensor], peer, tag))

    def receive(self, tensor: Tensor, peer: int | None, tag: int) -> GlooPending:
        """A message from `peer`, None for anyone."""
        if peer is None:
            return GlooPending(self._group.recv_anysource([tensor], tag))
        return GlooPending(self._group.recv([tensor], peer, tag), peer)


def _limited(options: Any, timeout_s: float) -> Any:
    options.timeout = timedelta(seconds=timeout_s)
    return options


class GlooPending:
    """A message over gloo as `Pending`."""

    def __init__(self, work: Work, source: int = -1) -> None:
        self._work = work
        self._source = source
        self._is_over = False
        self.error: str = ""

    def wait(self, limit_s: float = -1.0) -> bool:
        """Waits; gloo ends the connection when the limit is over first, so that raises."""
        if self._is_over and not self.error:
            return True
        try:
            self._work.wait() if limit_s < 0 else self._work.wait(timedelta(seconds=limit_s))
        except RuntimeError as error:
            self.error = str(error)
            raise
        finally:
            self._is_over = True
        return True

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._is_over or self._work.is_completed()

    @property
    def source(self) -> int:
        """The sender."""
        return self._source if self._source >= 0 else self._work._source_rank()
