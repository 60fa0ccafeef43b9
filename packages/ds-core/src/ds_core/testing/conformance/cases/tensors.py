"""Level 2: the tensor and storage semantics that flat buffers, ZeRO and checkpoints stand on."""

from __future__ import annotations

from ds_core.accelerator.contract import Capability
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS"]

TENSORS = Group("tensors", level=2)
STORAGE = Group("storage", level=2)
GROUPS = (TENSORS, STORAGE)

ALIASING = Needs(capabilities=(Capability.STORAGE_ALIASING,))


def _parameter(kit: Kit, numel: int = 6) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.arange(float(numel), device=kit.device))


@TENSORS.case(
    "parameter.data = tensor changes what the Parameter object holds, and nothing else about it; core does it by "
    "ds_core.placeholder.assign, which takes along what tensors written in Python hold"
)
def data_is_swapped(kit: Kit) -> None:
    from ds_core.placeholder import assign

    parameter = _parameter(kit)
    name = id(parameter)
    assign(parameter, torch.full((6,), 7.0, device=kit.device))
    kit.expect(id(parameter) == name and parameter.requires_grad, "the same trainable Parameter", "another")
    kit.expect_same(parameter, torch.full((6,), 7.0), "the parameter")
    (parameter * 2).sum().backward()
    assert parameter.grad is not None
    kit.expect_same(parameter.grad, torch.full((6,), 2.0), "its gradient")


@TENSORS.case("parameters that are views of one flat buffer see what is written to the buffer, and the reverse")
def views_of_a_flat_buffer(kit: Kit) -> None:
    from ds_core.placeholder import assign

    flat = torch.zeros(10, device=kit.device)
    weight, bias = _parameter(kit), _parameter(kit, 4)
    for parameter, part in ((weight, flat[:6].view(2, 3)), (bias, flat[6:])):
        assign(parameter, part)
    flat.fill_(3)
    kit.expect_same(weight, torch.full((2, 3), 3.0), "a parameter after the buffer was written")
    with torch.no_grad():
        bias.add_(1)
    kit.expect_same(flat, torch.tensor([3.0] * 6 + [4.0] * 4), "the buffer after a parameter was written")


@TENSORS.case("gradients accumulate into a .grad that is a view of a flat buffer")
def gradients_in_a_flat_buffer(kit: Kit) -> None:
    parameter, flat = _parameter(kit), torch.zeros(8, device=kit.device)
    parameter.grad = flat[1:7]
    for _ in range(2):
        (parameter * 3).sum().backward()
    kit.expect_same(flat, torch.tensor([0.0, 6, 6, 6, 6, 6, 6, 0]), "the buffer after two backward passes")


@TENSORS.case("hooks run when a gradient is accumulated (post-accumulate), with the gradient in place")
def post_accumulate_hooks(kit: Kit) -> None:
    parameter, seen = _parameter(kit), []

    def hook(of: torch.Tensor) -> None:
        assert of.grad is not None
        seen.append(of.grad.cpu())
        of.grad = None

    parameter.register_post_accumulate_grad_hook(hook)
    (parameter * 2).sum().backward()
    kit.expect(len(seen) == 1, "one call", len(seen))
    kit.expect_same(seen[0], torch.full((6,), 2.0), "the gradient in the hook")
    kit.expect(parameter.grad is None, "no gradient, as the hook left it", parameter.grad)


@TENSORS.case("hooks of tensors and modules run forward and backward, and may replace what passes through")
def module_hooks(kit: Kit) -> None:
    layer, order = torch.nn.Linear(3, 3, bias=False).to(kit.device), []
    layer.register_forward_pre_hook(lambda module, args: order.append("before"))
    layer.register_forward_hook(lambda module, args, output: output * 2)
    layer.register_full_backward_hook(lambda module, grads, outputs: order.append("backward"))
    x = torch.ones(2, 3, device=kit.device, requires_grad=True)
    x.register_hook(lambda grad: grad * 10)
    out = layer(x)
    kit.expect_close(out, 2 * x @ layer.weight.t(), "the output that the hook replaced", 1e-5)
    out.sum().backward()
    assert x.grad is not None
    kit.expect(order == ["before", "backward"], "both hooks, in order", order)
    kit.expect_close(x.grad, 20 * layer.weight.sum(0).expand(2, 3), "the gradient that the hook replaced", 1e-5)


@TENSORS.case("saved_tensors_hooks replace what backward keeps, as offload of activations does")
def saved_tensor_hooks(kit: Kit) -> None:
    x, packed = torch.ones(4, device=kit.device, requires_grad=True), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor.shape)
        return kit.accelerator.to_host(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda host: kit.accelerator.to_device(host)):
        y = (x * x).sum()
    y.backward()
    assert x.grad is not None
    kit.expect(bool(packed), "tensors handed to the pack hook", packed)
    kit.expect_same(x.grad, torch.full((4,), 2.0), "the gradient")


@TENSORS.case("as_strided, expand with stride 0, narrow, unfold and view_as address the same memory")
def strided_views(kit: Kit) -> None:
    x = torch.arange(12.0, device=kit.device)
    host = torch.arange(12.0)
    kit.expect_same(x.as_strided((3, 3), (2, 1), 1), host.as_strided((3, 3), (2, 1), 1), "as_strided")
    one = torch.full((), 4.0, device=kit.device)
    kit.expect_same(one.as_strided((2, 3), (0, 0)), torch.full((2, 3), 4.0), "one element under a shape")
    kit.expect_same(x.view(3, 4).narrow(1, 1, 2).t(), host.view(3, 4).narrow(1, 1, 2).t(), "narrow")
    kit.expect_same(x.unfold(0, 3, 2), host.unfold(0, 3, 2), "unfold")
    x.view(3, 4)[:, 1].fill_(-1)
    kit.expect(x.cpu()[[1, 5, 9]].tolist() == [-1.0] * 3, "what a view wrote", x.cpu().tolist())


@TENSORS.case("view(dtype) reads the same bytes as another dtype", Needs(dtypes=("uint8", "int32")))
def view_as_another_dtype(kit: Kit) -> None:
    host = torch.tensor([1.0, -2.0, 3.5])
    there = kit.accelerator.to_device(host)
    kit.expect_same(there.view(torch.int32), host.view(torch.int32), "float32 as int32")
    kit.expect_same(there.view(torch.uint8), host.view(torch.uint8), "float32 as bytes")


@TENSORS.case("Module.to_empty and torch.device as a context make modules on the device")
def modules_are_made_there(kit: Kit) -> None:
    with kit.device:
        made = torch.nn.Linear(3, 2)
    kit.expect(made.weight.device == kit.device, f"a weight on {kit.device}", made.weight.device)
    with torch.device("meta"):
        planned = torch.nn.Linear(3, 2)
    moved = planned.to_empty(device=kit.device)
    kit.expect(moved.weight.device == kit.device, f"a weight on {kit.device}", moved.weight.device)
    with torch.no_grad():
        moved.weight.fill_(1)
    kit.expect(float(moved.weight.sum().cpu()) == 6.0, "six ones", float(moved.weight.sum().cpu()))


@TENSORS.case(
    "a tensor on another device than its partner is an error of words, or is brought over; never a wrong number"
)
def strays_are_refused(kit: Kit) -> None:
    if kit.accelerator.device_type == "cpu":
        kit.lacks("own", "a device apart from the host", "the device is the host")
    try:
        found = torch.ones(3, device=kit.device) + torch.arange(3.0)
    except RuntimeError as error:
        kit.expect("device" in str(error).lower(), "a message on devices", str(error))
        return
    kit.expect_same(found, torch.ones(3) + torch.arange(3.0), "a sum of tensors on two devices")
    kit.note("a host tensor beside one of the device is brought over without a word")


@STORAGE.case("tensor.set_(storage, offset, size, stride) makes the tensor one over that memory", ALIASING)
def set_to_a_storage(kit: Kit) -> None:
    flat, view = torch.arange(10.0, device=kit.device), torch.empty(0, device=kit.device)
    view.set_(flat.untyped_storage(), 2, (2, 3), (3, 1))
    kit.expect_same(view, torch.arange(2.0, 8.0).view(2, 3), "the view")
    view.zero_()
    kit.expect_same(flat, torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0, 8, 9]), "the storage after the view was written")


@STORAGE.case("tensors of one storage have the same untyped_storage().data_ptr(); others have not", ALIASING)
def storages_are_told_apart(kit: Kit) -> None:
    x, y = torch.zeros(8, device=kit.device), torch.zeros(8, device=kit.device)
    same = x[2:].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    kit.expect(same, "a view with the storage of its base", "another storage")
    other = x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
    kit.expect(other, "a storage for each tensor", "the same storage for two")
    kit.expect(x.untyped_storage().nbytes() >= 32, "32 bytes", x.untyped_storage().nbytes())


@STORAGE.case("storage.resize_(0) and back leaves every view usable, which ZeRO-3 does at each gather", ALIASING)
def resize_and_back(kit: Kit) -> None:
    flat = torch.arange(12.0, device=kit.device)
    first, second = flat[:6].view(2, 3), flat[6:]
    storage = flat.untyped_storage()
    for round_ in range(3):
        storage.resize_(0)
        kit.expect(storage.nbytes() == 0, "no bytes", storage.nbytes())
        storage.resize_(48)
        flat.copy_(torch.arange(12.0) + round_)
        kit.expect_same(first, (torch.arange(6.0) + round_).view(2, 3), "a view after the storage came back")
        kit.expect_same(second, torch.arange(6.0, 12.0) + round_, "another")


@STORAGE.case("a tensor saved for backward may lose its storage and have it back before backward runs", ALIASING)
def backward_over_a_resized_storage(kit: Kit) -> None:
    weight = torch.full((4,), 3.0, device=kit.device)
    x = torch.ones(4, device=kit.device, requires_grad=True)
    y = (x * weight).sum()
    storage = weight.untyped_storage()
    nbytes = storage.nbytes()
    storage.resize_(0)
    storage.resize_(nbytes)
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(weight):  # type: ignore[attr-defined]
        weight.fill_(3)
    y.backward()
    assert x.grad is not None
    kit.expect_same(x.grad, torch.full((4,), 3.0), "the gradient")
