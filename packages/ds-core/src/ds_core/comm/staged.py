"""Collectives for a device that has no backend of its own: gloo does them in host memory.

Note [Staged collectives]
    torch's gloo takes tensors of the host only. A `StagedGroup` is a process group over gloo that also takes tensors
    of any other device: what a call reads is copied to the host when the call is issued, gloo works on host tensors,
    and what the call writes is copied to the device by `wait`. So an asynchronous call overlaps the exchange, not the
    copies, and its result is there when `wait` has returned, as with every backend. Host tensors go to gloo as they
    are. torch knows it as backend ``"host_staged"`` once `register` was called.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroupGloo, Store, Work

__all__ = ["BACKEND", "StagedGroup", "StagedWork", "is_served", "register"]

BACKEND = "host_staged"

Tensors = torch.Tensor | Sequence[Any]
"""A tensor, or tensors nested in lists as torch's process groups take them."""


def register(device_type: str) -> str:
    """Make the backend known to torch for this device type (further calls do nothing more); its name."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, StagedGroup, devices=["cpu", device_type])
    served = dist.Backend.backend_capability[BACKEND]
    if device_type not in served:
        served.append(device_type)
        dist.Backend.default_device_backend_map.setdefault(device_type, BACKEND)
    return BACKEND


def is_served(device_type: str, group: dist.ProcessGroup) -> bool:
    """Whether the group takes tensors of this device type."""
    return isinstance(group, StagedGroup) or device_type in {device.type for device in group._device_types}


class _Staging:
    """Host tensors that stand for the device tensors of one call."""

    def __init__(self) -> None:
        self.written: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.used: bool = False

    def read(self, tensors: Tensors) -> Any:
        """Host copies of tensors the call reads."""
        if not isinstance(tensors, torch.Tensor):
            return [self.read(each) for each in tensors]
        if tensors.device.type == "cpu":
            return tensors
        self.used = True
        return tensors.detach().to("cpu", memory_format=torch.contiguous_format)

    def write(self, tensors: Tensors) -> Any:
        """Room on the host for tensors the call writes."""
        if not isinstance(tensors, torch.Tensor):
            return [self.write(each) for each in tensors]
        if tensors.device.type == "cpu":
            return tensors
        self.used = True
        host = torch.empty(tensors.shape, dtype=tensors.dtype)
        self.written.append((tensors.detach(), host))
        return host

    def update(self, tensors: Tensors) -> Any:
        """Host copies of tensors the call reads and writes."""
        if not isinstance(tensors, torch.Tensor):
            return [self.update(each) for each in tensors]
        host = self.read(tensors)
        if host is not tensors:
            self.written.append((tensors.detach(), host))
        return host

    def bring_back(self) -> None:
        """Copies what was written to the device, once."""
        written, self.written = self.written, []
        for device, host in written:
            device.copy_(host)


class StagedWork(Work):
    """A staged collective under way; `wait` leaves its results on the device."""

    def __init__(self, work: Work, staging: _Staging) -> None:
        super().__init__()
        self._work = work
        self._staging = staging
        self._results: list[torch.Tensor] = [device for device, _ in staging.written]
        self._future: Any = None

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Waits for gloo, then copies the results to the device. A timeout of 0 is the group's own, as torch has it.

        Raises:
            RuntimeError: the collective failed; from gloo.
        """
        done = self._work.wait(timeout) if timeout else self._work.wait()
        self._staging.bring_back()
        return bool(done)

    def synchronize(self) -> None:
        """As `wait`."""
        self.wait()

    def is_completed(self) -> bool:
        """Whether gloo is done; the results still need `wait`."""
        return self._work.is_completed()

    def is_success(self) -> bool:
        """Whether it completed without an error."""
        return self._work.is_success()

    def exception(self) -> Any:
        """gloo's error, or None."""
        return self._work.exception()

    def result(self) -> list[torch.Tensor]:
        """The device tensors the call writes."""
        return self._results

    def source_rank(self) -> int:
        """The sender of a receive from any source."""
        return self._work.source_rank()

    def _source_rank(self) -> int:
        return self._work._source_rank()

    def get_future(self) -> Any:
        """A completed future of the results; waits for them first."""
        if self._future is None:
            self.wait()
            devices: set[Any] = {tensor.device for tensor in self._results}
            future: Any = torch.futures.Future(devices=[device for device in devices if device.index is not None])
            future.set_result(self._results)
            self._future = future
        return self._future


def _exchange(name: str) -> Any:
    """A method for a collective that torch calls as ``(outputs, inputs, options)``."""

    def method(self: StagedGroup, outputs: Tensors, inputs: Tensors, *rest: Any, **named: Any) -> Work:
        staging = _Staging()
        return self._run(name, staging, staging.write(outputs), staging.read(inputs), *rest, **named)

    method.__name__ = name
    return method


class StagedGroup(dist.ProcessGroup):
    """A process group for tensors of the host and of any device. See Note [Staged collectives].

    Args:
        store: where the ranks meet.
        rank: this process among them.
        size: how many they are.
        timeout: of every collective.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg] # the form torch has for subclasses
        gloo = ProcessGroupGloo(store, rank, size, timeout=timeout)
        gloo._set_sequence_number_for_group()
        # Not the gloo backend itself: names of collectives change between releases of torch, and a process group of
        # the same torch has the same ones.
        self._host = dist.ProcessGroup(store, rank, size)
        groups: tuple[dist.ProcessGroup, ...] = (self._host, self)
        for group in groups:
            group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
            group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)

    def getBackendName(self) -> str:
        """``"host_staged"``."""
        return BACKEND

    def _run(self, name: str, staging: _Staging, *args: Any, **named: Any) -> Work:
        work: Work = getattr(self._host, name)(*args, **named)
        return StagedWork(work, staging) if staging.used else work

    def _update(self, name: str, tensors: Tensors, *rest: Any, **named: Any) -> Work:
        staging = _Staging()
        return self._run(name, staging, staging.update(tensors), *rest, **named)

    def allreduce(self, tensors: Tensors, *rest: Any, **named: Any) -> Work:  # type: ignore[override] # any overload
        """Reduces in place over the group."""
        return self._update("allreduce", tensors, *rest, **named)

    def allreduce_coalesced(self, tensors: Tensors, *rest: Any, **named: Any) -> Work:
        """Reduces several tensors in place over the group."""
        return self._update("allreduce_coalesced", tensors, *rest, **named)

    def broadcast(self, tensors: Tensors, *rest: Any, **named: Any) -> Work:  # type: ignore[override] # any overload
        """Copies the root's tensors into everyone's."""
        staging = _Staging()
        host = staging.read(tensors) if _root(rest, named) == self.rank() else staging.write(tensors)
        return self._run("broadcast", staging, host, *rest, **named)

    def reduce(self, tensors: Tensors, *rest: Any, **named: Any) -> Work:  # type: ignore[override] # any overload
        """Reduces onto the root."""
        staging = _Staging()
        host = staging.update(tensors) if _root(rest, named) == self.rank() else staging.read(tensors)
        return self._run("reduce", staging, host, *rest, **named)

    def send(self, tensors: Tensors, *rest: Any, **named: Any) -> Work:
        """Sends to one rank."""
        staging = _Staging()
        return self._run("send", staging, staging.read(tensors), *rest, **named)

    def recv(self, tensors: Tensors, *rest: Any, **named: Any) -> Work:
        """Receives from one rank."""
        staging = _Staging()
        return self._run("recv", staging, staging.write(tensors), *rest, **named)

    def recv_anysource(self, tensors: Tensors, *rest: Any, **named: Any) -> Work:
        """Receives from whoever sends."""
        staging = _Staging()
        return self._run("recv_anysource", staging, staging.write(tensors), *rest, **named)

    def barrier(self, *rest: Any, **named: Any) -> Work:
        """Waits for every rank."""
        return self._run("barrier", _Staging(), *rest, **named)

    allgather = _exchange("allgather")
    allgather_coalesced = _exchange("allgather_coalesced")
    gather = _exchange("gather")
    scatter = _exchange("scatter")
    reduce_scatter = _exchange("reduce_scatter")
    alltoall = _exchange("alltoall")
    # The flat ones under the names of torch 2.13, and under those of earlier releases.
    all_gather_single = _exchange("all_gather_single")
    all_gather_single_coalesced = _exchange("all_gather_single_coalesced")
    reduce_scatter_single = _exchange("reduce_scatter_single")
    reduce_scatter_single_coalesced = _exchange("reduce_scatter_single_coalesced")
    all_to_all_single = _exchange("all_to_all_single")
    _allgather_base = _exchange("_allgather_base")
    allgather_into_tensor_coalesced = _exchange("allgather_into_tensor_coalesced")
    _reduce_scatter_base = _exchange("_reduce_scatter_base")
    reduce_scatter_tensor_coalesced = _exchange("reduce_scatter_tensor_coalesced")
    alltoall_base = _exchange("alltoall_base")


def _root(rest: tuple[Any, ...], named: dict[str, Any]) -> int:
    """The root's rank in the group, from the options or the number that follow the tensors."""
    chosen = rest[0] if rest else named.get("opts", named.get("root", 0))
    return int(getattr(chosen, "rootRank", chosen))
