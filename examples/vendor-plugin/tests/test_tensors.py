from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

Case = tuple[Callable[..., Tensor], list[tuple[int, ...]]]


def embedding(weight: Tensor) -> Tensor:
    return functional.embedding(torch.tensor([[1, 2], [2, 0]], device=weight.device), weight)


def cross_entropy(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), torch.arange(5, device=logits.device))


CASES: dict[str, Case] = {
    "linear": (functional.linear, [(2, 5, 8), (3, 8), (3,)]),
    "layer_norm": (lambda x, w, b: functional.layer_norm(x, (8,), w, b), [(5, 8), (8,), (8,)]),
    "rms_norm": (lambda x, w: functional.rms_norm(x, (8,), w), [(5, 8), (8,)]),
    "attention": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        [(2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8)],
    ),
    "embedding": (embedding, [(5, 8)]),
    "cross_entropy": (cross_entropy, [(5, 8)]),
    "gelu": (functional.gelu, [(5, 8)]),
    "silu": (functional.silu, [(5, 8)]),
    "softmax": (lambda x: functional.softmax(x, -1), [(5, 8)]),
    "convolution": (lambda x, w: functional.conv2d(x, w, padding=1), [(1, 3, 6, 6), (4, 3, 3, 3)]),
    "views": (lambda x: x.t().contiguous().view(-1)[3:7].unfold(0, 2, 1), [(5, 8)]),
    "sort": (lambda x: torch.cat([x, x], 1).cumsum(0).sort(-1).values, [(5, 8)]),
    "indexing": (lambda x: x[torch.tensor([0, 2, 2])][:, ::2], [(5, 8)]),
    "checkpoint": (lambda x: torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False), [(5, 8)]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_the_host(name: str, dtype: torch.dtype) -> None:
    run, shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    host = [value.clone().requires_grad_() for value in values]
    device = [value.to("openbox").requires_grad_() for value in values]
    expected, found = run(*host), run(*device)
    assert found.device.type == "openbox"
    assert torch.equal(expected, found.cpu())
    expected.float().square().sum().backward()
    found.float().square().sum().backward()
    for left, right in zip(host, device, strict=True):
        assert right.grad.device.type == "openbox"
        assert torch.equal(left.grad, right.grad.cpu())


@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad], ids=lambda c: c.__name__)
def test_optimizers_give_the_numbers_of_the_host(make: type[torch.optim.Optimizer], how: dict[str, bool]) -> None:
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", "openbox"):
        parameter = start.to(device, copy=True).requires_grad_()
        optimizer = make([parameter], lr=0.1, **how)
        for _ in range(3):
            parameter.square().sum().backward()
            torch.nn.utils.clip_grad_norm_([parameter], 0.5)
            optimizer.step()
            optimizer.zero_grad()
        found.append(parameter.detach().cpu())
    assert torch.equal(*found)


def test_in_place_and_out_write_the_tensor_they_were_given() -> None:
    x = torch.zeros(4, device="openbox")
    address = x.data_ptr()
    x[1:3].add_(1).mul_(5)
    torch.add(x, 1, out=x)
    assert x.data_ptr() == address
    assert x.tolist() == [1, 6, 6, 1]
    grown = torch.empty(0, device="openbox")
    torch.add(x, 1, out=grown)
    assert grown.tolist() == [2, 7, 7, 2]


STRAY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mm": torch.mm,
    "cat": lambda a, b: torch.cat([a, b]),
    "addcmul_": lambda a, b: a.addcmul_(a, b),
    "embedding": lambda a, b: functional.embedding(b.long(), a),
    "linear": functional.linear,
}


@pytest.mark.parametrize("other", ["cpu", "openbox:1"])
@pytest.mark.parametrize("name", STRAY)
def test_a_tensor_left_elsewhere_is_an_error_as_on_real_devices(name: str, other: str) -> None:
    with pytest.raises(RuntimeError, match="xpected all tensors to be on"):
        STRAY[name](torch.ones(3, 3, device="openbox:0"), torch.ones(3, 3, device=other))


def test_random_numbers_come_from_the_device_and_are_the_hosts() -> None:
    torch.manual_seed(3)
    drawn = [torch.randn(5, device="openbox"), torch.rand(4, device="openbox")]
    torch.manual_seed(3)
    assert torch.equal(drawn[0].cpu(), torch.randn(5))
    assert torch.equal(drawn[1].cpu(), torch.rand(4))


def test_drawing_on_the_device_leaves_the_host_generator_alone() -> None:
    before = torch.get_rng_state()
    torch.nn.functional.dropout(torch.ones(100, device="openbox"), 0.5)
    torch.randperm(10, device="openbox")
    assert torch.equal(before, torch.get_rng_state())


def test_the_state_of_the_generator_comes_back() -> None:
    from ds_core.accelerator import select

    accelerator = select("openbox")
    state = accelerator.rng_state()
    first = torch.rand(3, device="openbox")
    accelerator.set_rng_state(state)
    assert torch.equal(first.cpu(), torch.rand(3, device="openbox").cpu())


def test_autocast_lowers_matrix_products() -> None:
    x = torch.ones(3, 3, device="openbox", requires_grad=True)
    with torch.autocast("openbox", dtype=torch.bfloat16):
        y = functional.linear(x, x)
        assert y.dtype == torch.bfloat16
        assert torch.softmax(x, -1).dtype == torch.float32
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_tensors_are_saved_and_loaded() -> None:
    buffer = io.BytesIO()
    torch.save(torch.arange(4, device="openbox"), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded.device.type == "openbox"
    assert loaded.tolist() == [0, 1, 2, 3]
