"""Level 1: each ability of `Capability`. Claimed, it must work; not claimed, core's default takes its place."""

from __future__ import annotations

from ds_core.accelerator.contract import Capability, HostEvent
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Broken, Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS"]

ABILITIES = Group("abilities", level=1)
DEFAULTS = Group("defaults", level=1)
GROUPS = (ABILITIES, DEFAULTS)


def _claims(capability: Capability) -> Needs:
    return Needs(capabilities=(capability,))


def _not_claimed(kit: Kit, capability: Capability) -> None:
    if kit.accelerator.has(capability):
        kit.lacks("own", "core's default", f"the device claims {capability.value}, so core's default is not used")


@ABILITIES.case(
    "STREAMS: stream() is a new stream, and work inside use_stream(stream) is done in it", _claims(Capability.STREAMS)
)
def streams(kit: Kit) -> None:
    accelerator = kit.accelerator
    stream = accelerator.stream()
    kit.expect(stream is not None, "a stream", stream)
    kit.expect(accelerator.current_stream() is not None, "a current stream", accelerator.current_stream())
    x = torch.ones(1000, device=kit.device)
    accelerator.synchronize()
    with accelerator.use_stream(stream):
        y = x * 3
    accelerator.synchronize()
    kit.expect(bool((y.cpu() == 3).all()), "the product, after synchronize()", y.cpu()[:4].tolist())


@ABILITIES.case("EVENTS: event() records on the device and tells the time between two", _claims(Capability.EVENTS))
def events(kit: Kit) -> None:
    first, second = kit.accelerator.event(), kit.accelerator.event()
    kit.expect(not isinstance(first, HostEvent), "the device's own event", type(first))
    first.record()
    x = torch.ones(64, 64, device=kit.device)
    for _ in range(5):
        x = x @ x / 64
    second.record()
    second.synchronize()
    elapsed_ms = first.elapsed_time(second)
    kit.expect(0.0 <= elapsed_ms < 60_000, "milliseconds of 0 or more", elapsed_ms)


@ABILITIES.case("PINNED_MEMORY: pin() is a page-locked copy with the same values", _claims(Capability.PINNED_MEMORY))
def pinned_memory(kit: Kit) -> None:
    host = torch.arange(1000.0)
    pinned = kit.accelerator.pin(host)
    kit.expect(pinned.device.type == "cpu", "a host tensor", pinned.device)
    kit.expect(kit.accelerator.is_pinned(pinned), "a page-locked tensor", kit.accelerator.is_pinned(pinned))
    kit.expect(not kit.accelerator.is_pinned(host), "an ordinary tensor as it was", kit.accelerator.is_pinned(host))
    kit.expect_same(pinned, host, "the pinned copy")
    kit.expect_same(kit.accelerator.to_device(pinned), host, "a copy of pinned memory on the device")


@ABILITIES.case(
    "ASYNC_COPY: a copy with non_blocking=True is whole after synchronize()", _claims(Capability.ASYNC_COPY)
)
def async_copy(kit: Kit) -> None:
    accelerator, host = kit.accelerator, torch.arange(1 << 18, dtype=torch.float32)
    there = accelerator.to_device(accelerator.pin(host), non_blocking=True)
    back = accelerator.to_host(there + 1, non_blocking=True)
    accelerator.synchronize()
    kit.expect_same(back, host + 1, "there and back")


@ABILITIES.case(
    "ALLOCATOR_STATS: memory() knows what is allocated, the peak, and the total", _claims(Capability.ALLOCATOR_STATS)
)
def allocator_stats(kit: Kit) -> None:
    kept = torch.ones(1000, device=kit.device)
    found = kit.accelerator.memory()
    kit.expect(found.allocated_bytes is not None and found.allocated_bytes >= kept.nbytes, "allocated bytes", found)
    kit.expect(found.peak_bytes is not None and found.peak_bytes >= kept.nbytes, "peak bytes", found)
    kit.expect(found.total_bytes is not None and found.total_bytes > 0, "total bytes", found)


@ABILITIES.case("DATA_PTR: data_ptr() is an address; views are offsets of it", _claims(Capability.DATA_PTR))
def data_ptr(kit: Kit) -> None:
    x, y = torch.zeros(16, device=kit.device), torch.zeros(16, device=kit.device)
    kit.expect(x.data_ptr() != 0 and y.data_ptr() != 0, "addresses that are not 0", (x.data_ptr(), y.data_ptr()))
    kit.expect(x.data_ptr() != y.data_ptr(), "an address for each tensor", x.data_ptr())
    offset = x[3:].data_ptr() - x.data_ptr()
    kit.expect(offset == 3 * x.element_size(), "x[3:] 12 bytes behind x", offset)


@ABILITIES.case(
    "STORAGE_ALIASING: views share their storage with the tensor they are of", _claims(Capability.STORAGE_ALIASING)
)
def storage_aliasing(kit: Kit) -> None:
    flat = torch.zeros(10, device=kit.device)
    other = torch.empty(0, device=kit.device).set_(flat.untyped_storage(), 2, (3,), (1,))
    other.fill_(5)
    kit.expect_same(flat, torch.tensor([0.0, 0, 5, 5, 5, 0, 0, 0, 0, 0]), "what a tensor over the same storage wrote")


@ABILITIES.case("COLLECTIVES: comm_backend() takes tensors of this device itself", _claims(Capability.COLLECTIVES))
def collectives(kit: Kit) -> None:
    import torch.distributed as dist

    from ds_core.comm.staged import BACKEND
    from ds_core.plugins import manager

    name, device_type = kit.accelerator.comm_backend(), kit.accelerator.device_type
    offered = {p.item.name: set(p.item.device_types) for p in manager().collect("ds_comm_backends")}
    served = offered.get(name) or set(dist.Backend.backend_capability.get(name, ()))
    kit.expect(
        name != BACKEND and device_type in served, f"a backend for {device_type}", f"{name} for {sorted(served)}"
    )


@ABILITIES.case(
    "COMPILE: compile_backend() names a torch.compile backend, and what it compiles computes",
    _claims(Capability.COMPILE),
)
def compile_backend(kit: Kit) -> None:
    name = kit.accelerator.compile_backend()
    kit.expect(bool(name), "the name of a backend", name)
    known = torch._dynamo.list_backends(exclude_tags=())
    kit.expect(name in known, f"one of {', '.join(known)}", name)


@ABILITIES.case("GRAPHS: graph() captures work, and replay() does it again", _claims(Capability.GRAPHS))
def graphs(kit: Kit) -> None:
    accelerator = kit.accelerator
    stream = accelerator.stream()
    x = torch.ones(64, device=kit.device)
    with accelerator.use_stream(stream):
        for _ in range(3):  # what is made at a first call must not be captured
            y = x * 2 + 1
    accelerator.synchronize()
    graph = accelerator.graph()
    kit.expect(graph is not None, "a graph", graph)
    with accelerator.use_stream(stream), graph:
        y = x * 2 + 1
    x.fill_(5)
    graph.replay()
    accelerator.synchronize()
    kit.expect_same(y, torch.full((64,), 11.0), "what was captured, replayed on other values")


@ABILITIES.case("ASYNC_IO: async_io() moves host tensors to and from files", _claims(Capability.ASYNC_IO))
def async_io(kit: Kit) -> None:
    from ds_core.config.aio import AioSection

    engine = kit.accelerator.async_io(AioSection())
    if engine is None:
        kit.lacks("platform", "an engine for files", "async_io() answers None here: core's threads do the work")
    try:
        values, path = torch.arange(4096, dtype=torch.float32), kit.folder / "tensor"
        engine.write(values, path, 0).wait()
        found = torch.zeros_like(values)
        engine.read(found, path, 0).wait()
        kit.expect_same(found, values, "what was written and read")
    finally:
        engine.close()


@DEFAULTS.case("without STREAMS stream() is None, and use_stream(None) runs the work in order")
def no_stream(kit: Kit) -> None:
    _not_claimed(kit, Capability.STREAMS)
    stream = kit.accelerator.stream()
    kit.expect(stream is None, "None", stream)
    kit.expect(kit.accelerator.current_stream() is None, "no current stream", kit.accelerator.current_stream())
    with kit.accelerator.use_stream(stream):
        y = torch.ones(4, device=kit.device) * 2
    kit.expect(y.cpu().tolist() == [2.0] * 4, "twos", y.cpu().tolist())


@DEFAULTS.case("without EVENTS event() is of the host's clock")
def host_events(kit: Kit) -> None:
    _not_claimed(kit, Capability.EVENTS)
    first, second = kit.accelerator.event(), kit.accelerator.event()
    first.record()
    second.record()
    second.synchronize()
    kit.expect(first.elapsed_time(second) >= 0.0, "milliseconds of 0 or more", first.elapsed_time(second))


@DEFAULTS.case("without PINNED_MEMORY pin() gives the tensor itself")
def unpinned(kit: Kit) -> None:
    _not_claimed(kit, Capability.PINNED_MEMORY)
    host = torch.arange(8.0)
    kit.expect(kit.accelerator.pin(host) is host, "the same tensor", "another")
    kit.expect(not kit.accelerator.is_pinned(host), "an ordinary tensor", kit.accelerator.is_pinned(host))


@DEFAULTS.case("without ALLOCATOR_STATS reset_peak_memory() answers False")
def no_figures(kit: Kit) -> None:
    _not_claimed(kit, Capability.ALLOCATOR_STATS)
    kit.expect(kit.accelerator.reset_peak_memory() is False, "False", kit.accelerator.reset_peak_memory())


@DEFAULTS.case("without GRAPHS graph() is None")
def no_graph(kit: Kit) -> None:
    _not_claimed(kit, Capability.GRAPHS)
    kit.expect(kit.accelerator.graph() is None, "None", kit.accelerator.graph())


@DEFAULTS.case("without COMPILE compile_backend() is None")
def no_compiler(kit: Kit) -> None:
    _not_claimed(kit, Capability.COMPILE)
    kit.expect(kit.accelerator.compile_backend() is None, "None", kit.accelerator.compile_backend())


@DEFAULTS.case("a copy to where the tensor is gives the tensor itself; to_host and to_device are inverse")
def copies(kit: Kit) -> None:
    host = torch.arange(12.0).view(3, 4)
    there = kit.accelerator.to_device(host)
    kit.expect(there.device.type == kit.accelerator.device_type, f"a tensor on {kit.device}", there.device)
    kit.expect(kit.accelerator.to_device(there) is there, "the same tensor", "another")
    kit.expect(kit.accelerator.to_host(host) is host, "the same tensor", "another")
    kit.expect_same(kit.accelerator.to_host(there), host, "there and back")
    mixed = kit.accelerator.to_device(host.t())
    kit.expect_same(mixed, host.t(), "a transposed tensor")


@DEFAULTS.case("what is not served is refused in words: an unrecorded HostEvent raises and says to record it")
def errors_say_what_to_do(kit: Kit) -> None:
    from ds_core.errors import AcceleratorError

    try:
        HostEvent().elapsed_time(HostEvent())
    except AcceleratorError as error:
        kit.expect("record()" in str(error), "a message that says what to call", str(error))
        return
    raise Broken("an AcceleratorError", "no error")
