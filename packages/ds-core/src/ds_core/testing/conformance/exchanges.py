"""Every collective of `ds_core.comm` with what it must give, on a rank: runs in the processes `together` starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from ds_core import comm
from ds_core.testing.conformance.together import accelerator_of

__all__ = ["EXCHANGES", "Exchanged", "exchange", "exchange_dtype", "subgroup"]

Put = Callable[[torch.Tensor], torch.Tensor]


class Exchanged(NamedTuple):
    """What a collective left on a rank, as host tensors, and what it should have."""

    found: list[torch.Tensor]
    wanted: list[torch.Tensor]


def _mine(rank: int, rows: int = 1) -> torch.Tensor:
    return torch.arange(3.0 * rows) + 100 * rank


def _sum(world: int, rows: int = 1) -> torch.Tensor:
    return torch.stack([_mine(rank, rows) for rank in range(world)]).sum(0)


def all_reduce(put: Put, rank: int, world: int) -> Exchanged:
    tensor = put(_mine(rank))
    comm.all_reduce(tensor)
    return Exchanged([tensor], [_sum(world)])


def all_reduce_maximum(put: Put, rank: int, world: int) -> Exchanged:
    tensor = put(_mine(rank))
    comm.all_reduce(tensor, op=comm.ReduceOp.MAX)
    return Exchanged([tensor], [_mine(world - 1)])


def all_reduce_later(put: Put, rank: int, world: int) -> Exchanged:
    tensor = put(_mine(rank))
    handle = comm.all_reduce(tensor, async_op=True)
    if handle is not None:
        handle.wait()
    return Exchanged([tensor], [_sum(world)])


def all_reduce_coalesced(put: Put, rank: int, world: int) -> Exchanged:
    tensors = [put(_mine(rank)), put(_mine(rank, 2))]
    comm.all_reduce_coalesced(tensors)
    return Exchanged(tensors, [_sum(world), _sum(world, 2)])


def broadcast(put: Put, rank: int, world: int) -> Exchanged:
    tensor = put(_mine(rank))
    comm.broadcast(tensor, src=1)
    return Exchanged([tensor], [_mine(1)])


def reduce(put: Put, rank: int, world: int) -> Exchanged:
    tensor = put(_mine(rank))
    comm.reduce(tensor, dst=1)
    return Exchanged([tensor] if rank == 1 else [], [_sum(world)] if rank == 1 else [])


def all_gather(put: Put, rank: int, world: int) -> Exchanged:
    outputs = [put(torch.zeros(3)) for _ in range(world)]
    comm.all_gather(outputs, put(_mine(rank)))
    return Exchanged(outputs, [_mine(each) for each in range(world)])


def all_gather_into_tensor(put: Put, rank: int, world: int) -> Exchanged:
    output = put(torch.zeros(3 * world))
    comm.all_gather_into_tensor(output, put(_mine(rank)))
    return Exchanged([output], [torch.cat([_mine(each) for each in range(world)])])


def gather(put: Put, rank: int, world: int) -> Exchanged:
    outputs = [put(torch.zeros(3)) for _ in range(world)] if rank == 0 else []
    comm.gather(put(_mine(rank)), outputs or None, dst=0)
    return Exchanged(outputs, [_mine(each) for each in range(world)] if rank == 0 else [])


def scatter(put: Put, rank: int, world: int) -> Exchanged:
    output = put(torch.zeros(3))
    comm.scatter(output, [put(_mine(each)) for each in range(world)] if rank == 1 else None, src=1)
    return Exchanged([output], [_mine(rank)])


def reduce_scatter(put: Put, rank: int, world: int) -> Exchanged:
    output = put(torch.zeros(3))
    comm.reduce_scatter(output, [put(_mine(rank + each)) for each in range(world)])
    return Exchanged([output], [torch.stack([_mine(other + rank) for other in range(world)]).sum(0)])


def reduce_scatter_tensor(put: Put, rank: int, world: int) -> Exchanged:
    output = put(torch.zeros(3))
    comm.reduce_scatter_tensor(output, put(_mine(rank, world)))
    return Exchanged([output], [_sum(world, world)[3 * rank : 3 * rank + 3]])


def all_to_all(put: Put, rank: int, world: int) -> Exchanged:
    outputs = [put(torch.zeros(3)) for _ in range(world)]
    comm.all_to_all(outputs, [put(_mine(rank + each)) for each in range(world)])
    return Exchanged(outputs, [_mine(each + rank) for each in range(world)])


def all_to_all_single(put: Put, rank: int, world: int) -> Exchanged:
    output = put(torch.zeros(3 * world))
    comm.all_to_all_single(output, put(_mine(rank, world)))
    return Exchanged([output], [torch.cat([_mine(each, world)[3 * rank : 3 * rank + 3] for each in range(world)])])


def all_to_all_uneven(put: Put, rank: int, world: int) -> Exchanged:
    outgoing, incoming = list(range(1, world + 1)), [rank + 1] * world
    output = put(torch.zeros(sum(incoming)))
    comm.all_to_all_single(output, put(torch.arange(float(sum(outgoing))) + 100 * rank), incoming, outgoing)
    first = sum(outgoing[:rank])
    pieces = [torch.arange(float(first), first + rank + 1) + 100 * each for each in range(world)]
    return Exchanged([output], [torch.cat(pieces)])


def send_and_receive(put: Put, rank: int, world: int) -> Exchanged:
    tensor = put(_mine(rank))
    if rank == 0:
        comm.send(tensor, 1)
    elif rank == 1:
        comm.recv(tensor, 0)
    return Exchanged([tensor], [_mine(0 if rank < 2 else rank)])


def barrier(put: Put, rank: int, world: int) -> Exchanged:
    comm.barrier()
    tensor = put(_mine(rank))
    return Exchanged([tensor], [_mine(rank)])


def nothing_and_scalars(put: Put, rank: int, world: int) -> Exchanged:
    empty, scalar = put(torch.zeros(0)), put(torch.tensor(rank + 1.0))
    comm.all_reduce(empty)
    comm.all_reduce(scalar)
    return Exchanged([empty, scalar], [torch.zeros(0), torch.tensor(world * (world + 1) / 2)])


def views(put: Put, rank: int, world: int) -> Exchanged:
    flat = put(torch.zeros(9) + rank)
    comm.all_reduce(flat[3:6])
    wanted = torch.zeros(9) + rank
    wanted[3:6] = world * (world - 1) / 2
    return Exchanged([flat], [wanted])


EXCHANGES: Mapping[str, Callable[[Put, int, int], Exchanged]] = {
    function.__name__: function
    for function in (
        all_reduce,
        all_reduce_maximum,
        all_reduce_later,
        all_reduce_coalesced,
        broadcast,
        reduce,
        all_gather,
        all_gather_into_tensor,
        gather,
        scatter,
        reduce_scatter,
        reduce_scatter_tensor,
        all_to_all,
        all_to_all_single,
        all_to_all_uneven,
        send_and_receive,
        barrier,
        nothing_and_scalars,
        views,
    )
}


def _start(id: str, backend: str | None) -> tuple[Put, int, int]:
    import os

    accelerator = accelerator_of(id, int(os.environ["RANK"]))
    if backend == "staged":
        from ds_core.comm import staged

        backend = staged.register(accelerator.device_type)
    comm.init_distributed(backend, accelerator=accelerator, verbose=False)
    return accelerator.to_device, comm.get_rank(), comm.get_world_size()


def _on_host(done: Exchanged) -> Exchanged:
    return Exchanged([tensor.detach().cpu() for tensor in done.found], done.wanted)


def exchange(id: str, backend: str | None, name: str) -> Exchanged:
    """One collective on this rank; `backend` None is the accelerator's, "staged" is core's through the host."""
    return _on_host(EXCHANGES[name](*_start(id, backend)))


def exchange_dtype(id: str, backend: str | None, kind: str) -> Exchanged:
    """all_reduce and all_gather_into_tensor of small whole numbers in another dtype."""
    put, rank, world = _start(id, backend)
    dtype: torch.dtype = getattr(torch, kind)
    tensor = put((torch.arange(5) + rank).to(dtype))
    gathered = put(torch.zeros(5 * world, dtype=dtype))
    comm.all_gather_into_tensor(gathered, tensor)
    comm.all_reduce(tensor)
    each = [(torch.arange(5) + other).to(dtype) for other in range(world)]
    return _on_host(Exchanged([gathered, tensor], [torch.cat(each), torch.stack(each).sum(0).to(dtype)]))


def subgroup(id: str, backend: str | None) -> Exchanged:
    """A collective of a group that is only the last rank, beside one of all."""
    put, rank, world = _start(id, backend)
    group = comm.new_group([world - 1])
    tensor = put(_mine(rank))
    if rank == world - 1:
        comm.all_reduce(tensor, group=group)
    comm.all_reduce(tensor)
    return _on_host(Exchanged([tensor], [_sum(world)]))
