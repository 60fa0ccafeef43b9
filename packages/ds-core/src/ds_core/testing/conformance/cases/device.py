"""Level 1: the answers every accelerator must give of its devices."""

from __future__ import annotations

from collections.abc import Mapping

from ds_core.accelerator.contract import Accelerator, Capability, MemorySnapshot
from ds_core.errors import AcceleratorError
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Broken, Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS"]

DEVICE = Group("device", level=1)
GROUPS = (DEVICE,)


@DEVICE.case("the factory returns a ds_core.accelerator.Accelerator, without arguments", Needs(device=False))
def is_made(kit: Kit) -> None:
    unusable = kit.bench.unusable()
    if kit.bench.error is not None:
        raise Broken("an accelerator", f"{type(kit.bench.error).__name__}: {kit.bench.error}") from kit.bench.error
    if unusable is not None:
        kit.lacks(unusable.kind, unusable.missing, unusable.text)
    kit.expect(isinstance(kit.accelerator, Accelerator), "an Accelerator", type(kit.accelerator))


@DEVICE.case("name is the entry's name, device_type a torch device type, id 'wheel:name'")
def says_who_it_is(kit: Kit) -> None:
    accelerator = kit.accelerator
    kit.expect(accelerator.name == kit.entry.name, f"name {kit.entry.name!r}", accelerator.name)
    kit.expect(accelerator.id == kit.bench.target.id, f"id {kit.bench.target.id!r}", accelerator.id)
    try:
        torch.device(accelerator.device_type)
    except RuntimeError as error:
        raise Broken("a device type that torch knows once the accelerator is made", str(error)) from error


@DEVICE.case("capabilities is a set of Capability, and has() answers from it")
def capabilities_are_a_set(kit: Kit) -> None:
    claimed: frozenset[object] = kit.accelerator.capabilities
    strangers = [each for each in claimed if not isinstance(each, Capability)]
    kit.expect(not strangers, "members of ds_core.accelerator.Capability", strangers)
    for capability in Capability:
        kit.expect(
            kit.accelerator.has(capability) == (capability in claimed),
            f"has({capability.name}) as in capabilities",
            kit.accelerator.has(capability),
        )


@DEVICE.case("device_count() is at least 1 on a usable device and what the probe counted")
def count_is_the_probes(kit: Kit) -> None:
    count, probed = kit.accelerator.device_count(), kit.entry.is_available().device_count
    kit.expect(type(count) is int and count >= 1, "an int of at least 1", count)
    kit.expect(count == probed, f"{probed}, as the probe said", count)


@DEVICE.case("current_device() is the index of a device there is")
def current_is_one_of_them(kit: Kit) -> None:
    current = kit.accelerator.current_device()
    kit.expect(0 <= current < kit.accelerator.device_count(), "an index below device_count()", current)


@DEVICE.case("device(index) is a torch device of device_type; None means the current one")
def device_is_torchs(kit: Kit) -> None:
    accelerator = kit.accelerator
    for index in range(accelerator.device_count()):
        device = accelerator.device(index)
        kit.expect(device.type == accelerator.device_type, f"type {accelerator.device_type}", device)
        kit.expect(device.index in (index, None), f"index {index}", device)
    kit.expect(accelerator.device() == accelerator.device(accelerator.current_device()), "the current device", "other")


@DEVICE.case("a tensor made on device(index) is there, and says so")
def tensors_are_where_they_were_made(kit: Kit) -> None:
    for index in range(kit.accelerator.device_count()):
        wanted = kit.accelerator.device(index)
        made = torch.ones(3, device=wanted)
        kit.expect(made.device == wanted, f"a tensor on {wanted}", made.device)
        kit.expect(made.cpu().tolist() == [1.0] * 3, "ones", made.cpu().tolist())


@DEVICE.case("set_device(index) makes that device the current one")
def device_can_be_set(kit: Kit) -> None:
    accelerator, before = kit.accelerator, kit.accelerator.current_device()
    try:
        for index in range(accelerator.device_count()):
            accelerator.set_device(index)
            kit.expect(accelerator.current_device() == index, f"{index} to be current", accelerator.current_device())
            made = torch.ones(1, device=accelerator.device_type)
            kit.expect(made.device.index in (index, None), f"a new tensor on device {index}", made.device)
    finally:
        accelerator.set_device(before)


@DEVICE.case("tensors move between two devices with their values", Needs(devices=2))
def tensors_move_between_devices(kit: Kit) -> None:
    first = torch.arange(100.0).to(kit.accelerator.device(0))
    second = first.to(kit.accelerator.device(1))
    kit.expect(second.device == kit.accelerator.device(1), "a tensor on device 1", second.device)
    kit.expect_same(second, torch.arange(100.0), "the copy on device 1")


@DEVICE.case("set_device refuses an index there is not with AcceleratorError, which names the index and what there is")
def absent_device_is_refused(kit: Kit) -> None:
    absent = kit.accelerator.device_count()
    try:
        kit.accelerator.set_device(absent)
    except AcceleratorError as error:
        kit.expect(str(absent) in str(error), f"a message that names {absent}", str(error))
        kit.expect(kit.accelerator.name in str(error), f"a message that names {kit.accelerator.name}", str(error))
    except Exception as error:
        raise Broken("an AcceleratorError", f"{type(error).__name__}: {error}") from error
    else:
        raise Broken("an AcceleratorError", "no error")


@DEVICE.case("a negative index is refused with AcceleratorError")
def negative_device_is_refused(kit: Kit) -> None:
    try:
        kit.accelerator.set_device(-1)
    except AcceleratorError:
        return
    except Exception as error:
        raise Broken("an AcceleratorError", f"{type(error).__name__}: {error}") from error
    raise Broken("an AcceleratorError", "no error")


@DEVICE.case("properties() is a mapping of texts and names the product")
def properties_are_texts(kit: Kit) -> None:
    properties = kit.accelerator.properties()
    kit.expect(isinstance(properties, Mapping), "a mapping", type(properties))
    strangers = {key: value for key, value in properties.items() if type(key) is not str or type(value) is not str}
    kit.expect(not strangers, "texts", strangers)
    kit.expect(bool(properties.get("name")), "a product name under 'name'", dict(properties))


@DEVICE.case("synchronize() returns, with and without an index, also with work under way")
def synchronize_returns(kit: Kit) -> None:
    x = torch.ones(64, 64, device=kit.device)
    for _ in range(10):
        x = x @ x / 64
    kit.accelerator.synchronize()
    for index in range(kit.accelerator.device_count()):
        kit.accelerator.synchronize(index)
    kit.expect(float(x.cpu()[0, 0]) == 1.0, "1.0", float(x.cpu()[0, 0]))


@DEVICE.case("prepare() may be called for every engine, any number of times")
def prepare_may_be_repeated(kit: Kit) -> None:
    kit.accelerator.prepare()
    kit.accelerator.prepare()


@DEVICE.case("dtypes() lists what the device computes in; float32 is among them")
def dtypes_list_float32(kit: Kit) -> None:
    listed: frozenset[object] = kit.accelerator.dtypes()
    strangers = [each for each in listed if not isinstance(each, torch.dtype)]
    kit.expect(not strangers, "torch dtypes", strangers)
    kit.expect(torch.float32 in listed, "torch.float32", sorted(map(str, listed)))


@DEVICE.case("every dtype of dtypes() can be made, computed in and brought to the host")
def listed_dtypes_work(kit: Kit) -> None:
    broken = []
    for dtype in sorted(kit.accelerator.dtypes(), key=str):
        wanted = torch.tensor([0, 1, 1, 0]).to(dtype)
        try:
            x = kit.accelerator.to_device(wanted)
            found = (x | x if dtype is torch.bool else x + x - x).cpu()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            broken.append(f"{dtype}: {error}")
            continue
        if found.dtype != dtype or not torch.equal(found, wanted):
            broken.append(f"{dtype}: {found.tolist()} instead of {wanted.tolist()}")
    kit.expect(not broken, "every listed dtype to work", "; ".join(broken))


@DEVICE.case("comm_backend() names a torch.distributed backend; 'gloo' where the device has none of its own")
def comm_backend_is_a_name(kit: Kit) -> None:
    name = kit.accelerator.comm_backend()
    kit.expect(type(name) is str and name == name.lower() and bool(name), "a lower-case name", name)


@DEVICE.case("memory() is a MemorySnapshot; a figure that is not known is None")
def memory_is_a_snapshot(kit: Kit) -> None:
    for index in (None, *range(kit.accelerator.device_count())):
        found = kit.accelerator.memory(index)
        kit.expect(isinstance(found, MemorySnapshot), "a MemorySnapshot", type(found))
        for value in (found.allocated_bytes, found.peak_bytes, found.total_bytes, found.reserved_bytes):
            kit.expect(value is None or (type(value) is int and value >= 0), "bytes or None", found)
