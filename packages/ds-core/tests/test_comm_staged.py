"""Collectives staged through the host, over tensors that only copies can reach: the numbers of gloo on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch.ops import aten

from ds_core import comm
from ds_core.accelerator import Accelerator
from ds_core.comm import staged
from ds_core.comm.backends import choose_backend
from ds_core.comm.discovery import Placement
from ds_core.errors import CommError
from ds_core.testing import run_ranks

ALONE = Placement(0, 1, 0, 1, "127.0.0.1", 29500, "a test")


class Boxed(torch.Tensor):
    """A tensor of a pretended device. What it holds is reached by copies only; any other op is an error."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Boxed:
        made: Boxed = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="meta")
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.detach.default:
            return cls(args[0].held)
        if func is aten._to_copy.default and (kwargs or {}).get("device") == torch.device("cpu"):
            return args[0].held.clone()
        if func is aten.copy_.default:
            args[0].held.copy_(args[1])
            return args[0]
        raise AssertionError(f"{func} on a tensor of the device")


class Elsewhere(Accelerator):
    """A device torch knows no backend for."""

    name: ClassVar[str] = "elsewhere"
    device_type: ClassVar[str] = "meta"


def host(rank: int, rows: int = 1) -> torch.Tensor:
    return torch.arange(3.0 * rows) + 100 * rank


Put = Callable[[torch.Tensor], torch.Tensor]
Case = Callable[[Put, Any, int, int], list[torch.Tensor]]


def all_reduce(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    tensor = put(host(rank))
    comm.all_reduce(tensor, group=group)
    return [tensor]


def all_reduce_coalesced(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    tensors = [put(host(rank)), put(host(rank, 2))]
    comm.all_reduce_coalesced(tensors, group=group)
    return tensors


def broadcast(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    tensor = put(host(rank))
    comm.broadcast(tensor, src=1, group=group)
    return [tensor]


def reduce(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    tensor = put(host(rank))
    comm.reduce(tensor, dst=1, group=group)
    return [tensor] if rank == 1 else []


def all_gather(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    outputs = [put(torch.zeros(3)) for _ in range(size)]
    comm.all_gather(outputs, put(host(rank)), group=group)
    return outputs


def all_gather_flat(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    output = put(torch.zeros(3 * size))
    comm.all_gather_into_tensor(output, put(host(rank)), group=group)
    return [output]


def gather(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    outputs = [put(torch.zeros(3)) for _ in range(size)] if rank == 0 else []
    comm.gather(put(host(rank)), outputs or None, dst=0, group=group)
    return outputs


def scatter(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    output = put(torch.zeros(3))
    comm.scatter(output, [put(host(each)) for each in range(size)] if rank == 1 else None, src=1, group=group)
    return [output]


def reduce_scatter(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    output = put(torch.zeros(3))
    comm.reduce_scatter(output, [put(host(rank + each)) for each in range(size)], group=group)
    return [output]


def reduce_scatter_flat(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    output = put(torch.zeros(3))
    comm.reduce_scatter_tensor(output, put(host(rank, size)), group=group)
    return [output]


def all_to_all(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    outputs = [put(torch.zeros(3)) for _ in range(size)]
    comm.all_to_all(outputs, [put(host(rank + each)) for each in range(size)], group=group)
    return outputs


def all_to_all_flat(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    output = put(torch.zeros(3 * size))
    comm.all_to_all_single(output, put(host(rank, size)), group=group)
    return [output]


def uneven(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    incoming = [rank + 1] * size
    output = put(torch.zeros(sum(incoming)))
    sent = put(torch.arange(float(sum(range(1, size + 1)))))
    comm.all_to_all_single(output, sent, incoming, list(range(1, size + 1)), group=group)
    return [output]


def send(put: Put, group: Any, rank: int, size: int) -> list[torch.Tensor]:
    tensor = put(host(rank))
    if rank == 0:
        comm.send(tensor, 1, group=group)
    elif rank == 1:
        comm.recv(tensor, 0, group=group)
    return [tensor]


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        all_reduce,
        all_reduce_coalesced,
        broadcast,
        reduce,
        all_gather,
        all_gather_flat,
        gather,
        scatter,
        reduce_scatter,
        reduce_scatter_flat,
        all_to_all,
        all_to_all_flat,
        uneven,
        send,
    )
}


def both_ways(name: str) -> bool:
    """Whether the case gives the same with device tensors, and with host tensors on the same group, as on gloo."""
    group = dist.new_group(backend=staged.register("meta"))
    rank, size = comm.get_rank(), comm.get_world_size()
    expected = CASES[name](lambda tensor: tensor, None, rank, size)
    mixed = CASES[name](lambda tensor: tensor, group, rank, size)
    found = [tensor.held for tensor in CASES[name](Boxed, group, rank, size)]  # type: ignore[attr-defined]
    pairs = [*zip(expected, found, strict=True), *zip(expected, mixed, strict=True)]
    return all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize("name", CASES)
def test_a_staged_collective_gives_what_gloo_gives_on_the_host(name: str) -> None:
    assert run_ranks(both_ways, 3, name) == [True] * 3


def asynchronous() -> tuple[list[float], list[float], list[float]]:
    group = dist.new_group(backend=staged.register("meta"))
    tensor = Boxed(torch.full((2,), comm.get_rank() + 1.0))
    handle = comm.all_reduce(tensor, group=group, async_op=True)
    before = tensor.held.tolist()
    handle.wait()
    after = tensor.held.tolist()
    handle.wait()
    future = dist.all_reduce(tensor, group=group, async_op=True).get_future()
    return before, after, future.value()[0].held.tolist()


def test_the_result_is_on_the_device_once_waited_for() -> None:
    for rank, (before, after, later) in enumerate(run_ranks(asynchronous, 2)):
        assert before == [rank + 1.0] * 2
        assert after == [3.0] * 2
        assert later == [6.0] * 2


def objects_and_barrier() -> list[Any]:
    group = dist.new_group(backend=staged.register("meta"))
    comm.barrier(group)
    everyone: list[Any] = [None] * comm.get_world_size()
    comm.all_gather_object(everyone, {"rank": comm.get_rank()}, group=group)
    return everyone


def test_objects_travel_as_on_gloo() -> None:
    assert run_ranks(objects_and_barrier, 2) == [[{"rank": 0}, {"rank": 1}]] * 2


def started() -> tuple[str, list[float], str]:
    comm.init_distributed(accelerator=Elsewhere())
    tensor = Boxed(torch.ones(2))
    comm.all_reduce(tensor)
    group = comm.new_group([0])
    return dist.get_backend(), tensor.held.tolist(), dist.get_backend(group)


def test_a_device_without_a_backend_gets_this_one_and_so_do_its_groups() -> None:
    assert run_ranks(started, 1, init=False) == [("host_staged", [1.0, 1.0], "host_staged")]


@pytest.mark.parametrize(("requested", "environ"), [(None, {}), ("gloo", {}), (None, {"DS_COMM_BACKEND": "gloo"})])
def test_gloo_for_such_a_device_means_this_one(requested: str | None, environ: dict[str, str]) -> None:
    assert choose_backend(requested, environ, ALONE, Elsewhere()) == "host_staged"


def refused() -> str:
    with pytest.raises(CommError) as caught:
        comm.init_distributed(accelerator=Elsewhere())
    return str(caught.value)


def test_a_group_that_cannot_serve_the_device_is_refused_with_what_to_do() -> None:
    (message,) = run_ranks(refused, 1)
    assert "(backend gloo) takes no tensors of device 'meta'" in message
    assert "DS_ACCELERATOR=elsewhere" in message
