"""Level 2: what memory figures say, and copies between the host and the device in every form core makes them."""

from __future__ import annotations

import gc
import io

from ds_core.accelerator.contract import Capability
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS"]

MEMORY = Group("memory", level=2)
COPIES = Group("copies", level=2)
GROUPS = (MEMORY, COPIES)

COUNTED = Needs(capabilities=(Capability.ALLOCATOR_STATS,))
BIG_BYTES = 64 << 20
SLACK = 0.1
"""Allocators round, and the host's figure is that of the whole process."""


def _allocated(kit: Kit) -> int:
    gc.collect()
    kit.accelerator.synchronize()
    kit.accelerator.empty_cache()
    found = kit.accelerator.memory().allocated_bytes
    kit.expect(found is not None, "allocated bytes, which ALLOCATOR_STATS claims", found)
    return int(found or 0)


def _big(kit: Kit, nbytes: int = BIG_BYTES) -> torch.Tensor:
    made = torch.empty(nbytes // 4, device=kit.device)
    made.fill_(1)
    kit.accelerator.synchronize()
    return made


@MEMORY.case("memory().allocated_bytes rises by what a tensor takes, and falls when it is gone", COUNTED)
def allocated_rises_and_falls(kit: Kit) -> None:
    before = _allocated(kit)
    made = _big(kit)
    during = _allocated(kit)
    kit.expect(
        during - before >= (1 - SLACK) * BIG_BYTES, f"about {BIG_BYTES} bytes more with a tensor", during - before
    )
    del made
    after = _allocated(kit)
    kit.expect(during - after >= (1 - SLACK) * BIG_BYTES, f"about {BIG_BYTES} bytes less without it", during - after)


@MEMORY.case("memory().peak_bytes is the highest since reset_peak_memory(), which answers True", COUNTED)
def peak_is_since_its_reset(kit: Kit) -> None:
    if not kit.accelerator.reset_peak_memory():
        kit.lacks("platform", "a peak that can be reset", "reset_peak_memory() answers False here")
    before = _allocated(kit)
    made = _big(kit)
    del made
    found = kit.accelerator.memory().peak_bytes
    kit.expect(found is not None, "peak bytes", found)
    kit.expect((found or 0) - before >= (1 - SLACK) * BIG_BYTES, f"{BIG_BYTES} above", (found or 0) - before)
    _allocated(kit)
    kit.accelerator.reset_peak_memory()
    lowered = kit.accelerator.memory().peak_bytes or 0
    kit.expect((found or 0) - lowered >= (1 - SLACK) * BIG_BYTES, "a lower peak after reset_peak_memory()", lowered)


@MEMORY.case("memory().total_bytes is what the device has, and more than is allocated", COUNTED)
def total_is_more_than_allocated(kit: Kit) -> None:
    held = torch.ones(10, device=kit.device)
    found = kit.accelerator.memory()
    kit.expect(held.nbytes == 40, "40 bytes", held.nbytes)
    kit.expect((found.total_bytes or 0) >= (found.allocated_bytes or 0) > 0, "total of at least allocated", found)


@MEMORY.case("storage.resize_(0) gives the memory back, which is how ZeRO frees a gathered parameter", COUNTED)
def resize_to_nothing_frees(kit: Kit) -> None:
    if not kit.accelerator.has(Capability.STORAGE_ALIASING):
        kit.lacks("capability", Capability.STORAGE_ALIASING.value, "the device does not claim storage aliasing")
    made = _big(kit)
    during = _allocated(kit)
    made.untyped_storage().resize_(0)
    after = _allocated(kit)
    kit.expect(during - after >= (1 - SLACK) * BIG_BYTES, f"about {BIG_BYTES} bytes less", during - after)
    made.untyped_storage().resize_(BIG_BYTES)
    made.fill_(2)
    kit.expect(float(made[-1].cpu()) == 2.0, "the tensor to be usable again", float(made[-1].cpu()))


@MEMORY.case("empty_cache() may be called at any time and loses no tensor")
def empty_cache_loses_nothing(kit: Kit) -> None:
    kept = torch.arange(1000.0, device=kit.device)
    torch.ones(1 << 20, device=kit.device)
    kit.accelerator.empty_cache()
    kit.expect_same(kept, torch.arange(1000.0), "a tensor that is held")


@MEMORY.case("more memory than there is raises an error that names it, and the device works on", COUNTED)
def too_much_is_an_error(kit: Kit) -> None:
    if kit.accelerator.device_type == "cpu":
        kit.lacks("platform", "a limit of memory", "the host promises more memory than it has")
    total = kit.accelerator.memory().total_bytes or 0
    try:
        made = torch.empty(2 * total + (1 << 40), dtype=torch.uint8, device=kit.device)
    except (RuntimeError, MemoryError) as error:
        kit.expect("memory" in str(error).lower() or "alloc" in str(error).lower(), "a message on memory", str(error))
    else:
        kit.expect(False, "an error", f"a tensor of {made.nbytes} bytes on a device of {total}")
    kit.expect(torch.ones(2, device=kit.device).sum().item() == 2.0, "the device to work on", "wrong sum")


def _round_trip(kit: Kit, host: torch.Tensor, what: str) -> None:
    kit.expect_same(kit.accelerator.to_host(kit.accelerator.to_device(host)), host, what)


@COPIES.case("to_device and to_host keep values, shape and dtype of any layout and size")
def round_trips(kit: Kit) -> None:
    base = torch.arange(210.0).view(5, 6, 7)
    _round_trip(kit, base, "contiguous")
    _round_trip(kit, base.transpose(0, 2), "transposed")
    _round_trip(kit, base[:, ::2, 1:], "strided")
    _round_trip(kit, base[2:3, 1], "a slice")
    _round_trip(kit, torch.empty(0, 3), "nothing")
    _round_trip(kit, torch.tensor(2.5), "a scalar")
    _round_trip(kit, torch.tensor([float("nan"), float("inf"), -0.0]), "special values")


@COPIES.case("copy_ works in both directions and into parts of tensors")
def copy_in_place(kit: Kit) -> None:
    host, there = torch.arange(20.0), torch.zeros(20, device=kit.device)
    there[4:9].copy_(host[:5])
    back = torch.full((20,), -1.0)
    back[10:].copy_(there[:10])
    kit.accelerator.synchronize()
    kit.expect_same(back[10:], torch.tensor([0.0, 0, 0, 0, 0, 1, 2, 3, 4, 0]), "host, device, host")
    there.view(4, 5).t().copy_(host.view(5, 4))
    kit.expect_same(there.view(4, 5), host.view(5, 4).t(), "into a transposed view")


@COPIES.case("copy_ converts the dtype on its way", Needs(dtypes=("bfloat16",)))
def copy_converts(kit: Kit) -> None:
    host = torch.tensor([1.0, 1 / 3, 1e5, -2.7])
    there = torch.zeros(4, dtype=torch.bfloat16, device=kit.device)
    there.copy_(host)
    kit.expect_same(there, host.to(torch.bfloat16), "float32 to bfloat16")
    back = torch.zeros(4)
    back.copy_(there)
    kit.expect_same(back, host.to(torch.bfloat16).float(), "bfloat16 to float32")


@COPIES.case("a copy with non_blocking=True is whole after synchronize(), claimed ASYNC_COPY or not")
def non_blocking(kit: Kit) -> None:
    accelerator = kit.accelerator
    source = accelerator.pin(torch.arange(100_000.0))
    there = accelerator.to_device(source, non_blocking=True)
    accelerator.synchronize()
    back = accelerator.pin(torch.zeros(100_000))
    back.copy_(there, non_blocking=True)
    accelerator.synchronize()
    kit.expect_same(back, source, "there and back")


@COPIES.case("a host tensor may be changed once to_device returned, unless the copy was asked not to block")
def source_may_change(kit: Kit) -> None:
    host = torch.ones(1 << 18)
    there = kit.accelerator.to_device(host)
    if there is host:
        kit.lacks("own", "a memory of its own", "the device's memory is the host's: nothing is copied")
    host.zero_()
    kit.expect(float(there.sum().cpu()) == float(1 << 18), "the values of before", float(there.sum().cpu()))


@COPIES.case(
    "torch.save and torch.load with map_location move tensors between the device and the host, as storages",
    Needs(capabilities=(Capability.STORAGE_ALIASING,)),
)
def saved_and_loaded(kit: Kit) -> None:
    buffer = io.BytesIO()
    torch.save({"x": torch.arange(6.0, device=kit.device)}, buffer)
    for place in ("cpu", kit.device):
        buffer.seek(0)
        loaded = torch.load(buffer, map_location=place, weights_only=True)["x"]
        kit.expect(loaded.device == torch.device(place), f"a tensor on {place}", loaded.device)
        kit.expect_same(loaded, torch.arange(6.0), "what was saved")
