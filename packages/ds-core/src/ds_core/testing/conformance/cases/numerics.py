"""Level 4: what models are made of, per dtype: results and gradients against the host's in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["BOUNDS", "GROUPS"]

NUMERICS = Group("numerics", level=4)
AUTOCAST = Group("autocast", level=4)
TORCH_OPTIMIZERS = Group("torch_optimizers", level=4)
GROUPS = (NUMERICS, AUTOCAST, TORCH_OPTIMIZERS)

BOUNDS: Mapping[str, float] = {"float64": 1e-10, "float32": 2e-4, "float16": 8e-3, "bfloat16": 6e-2}
"""Allowed error by dtype, relative to the largest magnitude of a result.

float32 leaves room for sums in any order, not for matrix units that round their inputs to fewer bits, which torch has
off unless it is asked. The 16-bit bounds are eight units in the last place.
"""

Function = Callable[..., "torch.Tensor"]
Shapes = tuple[tuple[int, ...], ...]


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _embedding(weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.embedding(torch.tensor([[1, 2, 2], [0, 4, 1]], device=weight.device), weight)


def _cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    targets = torch.tensor([1, 0, -100, 5, 2], device=logits.device)
    return torch.nn.functional.cross_entropy(logits, targets)


def _indexed(x: torch.Tensor) -> torch.Tensor:
    return x[torch.tensor([0, 2, 2, 4], device=x.device)][:, ::2]


def _scattered(x: torch.Tensor) -> torch.Tensor:
    at = torch.tensor([3, 0, 3, 1, 0], device=x.device)
    return torch.zeros(4, 8, dtype=x.dtype, device=x.device).index_add(0, at, x)


FUNCTIONS: Mapping[str, tuple[Function, Shapes]] = {
    "matmul": (lambda a, b: a @ b, ((33, 47), (47, 29))),
    "batched_matmul": (lambda a, b: torch.bmm(a, b), ((3, 5, 16), (3, 16, 7))),
    "linear": (lambda x, w, b: torch.nn.functional.linear(x, w, b), ((4, 5, 24), (13, 24), (13,))),
    "elementwise": (lambda a, b: (a * b - a / (b.abs() + 1)).tanh() + a.exp() * 0.1, ((17, 9), (17, 9))),
    "broadcast": (lambda a, b: a * b + b, ((6, 1, 5), (4, 5))),
    "sum": (lambda x: x.sum(-1) + x.sum(0).sum(), ((7, 31),)),
    "mean_and_variance": (lambda x: x.mean(1) + x.var(1), ((9, 40),)),
    "maximum": (lambda x: x.amax(-1) + x.amin(0).sum(), ((8, 15),)),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), ((6, 33),)),
    "cumulative_sum": (lambda x: x.cumsum(-1), ((5, 20),)),
    "softmax": (lambda x: x.softmax(-1), ((6, 41),)),
    "log_softmax": (lambda x: x.log_softmax(-1), ((6, 41),)),
    "layer_norm": (lambda x, w, b: torch.nn.functional.layer_norm(x, (24,), w, b), ((5, 24), (24,), (24,))),
    "rms_norm": (lambda x, w: torch.nn.functional.rms_norm(x, (24,), w, 1e-5), ((5, 24), (24,))),
    "gelu": (lambda x: torch.nn.functional.gelu(x), ((5, 24),)),
    "silu": (lambda x: torch.nn.functional.silu(x), ((5, 24),)),
    "attention": (_attention, ((2, 3, 9, 8), (2, 3, 9, 8), (2, 3, 9, 8))),
    "embedding": (_embedding, ((5, 16),)),
    "cross_entropy": (_cross_entropy, ((5, 11),)),
    "indexing": (_indexed, ((5, 8),)),
    "index_add": (_scattered, ((5, 8),)),
    "cat_and_split": (lambda a, b: torch.cat([a, b], 1).split(5, 1)[1] * 2, ((4, 6), (4, 7))),
    "where_and_clamp": (lambda a, b: torch.where(a > 0, a, b).clamp(-0.5, 1.5), ((9, 9), (9, 9))),
    "transposes": (lambda x: (x.transpose(0, 2).reshape(12, -1) * 1.5).t().contiguous(), ((3, 5, 12),)),
    "convolution": (lambda x, w: torch.nn.functional.conv2d(x, w, padding=1), ((2, 3, 8, 8), (4, 3, 3, 3))),
}
"""Functions of floating-point tensors with the shapes they are called with."""


def _inputs(shapes: Shapes, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _run(run: Function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result, and the gradients of a weighted sum of it."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    result = run(*leaves)
    # Of both signs: the gradient of softmax is zero for weights that are all the same, and rounding alone near there.
    weights = (1.7 * torch.arange(result.numel(), dtype=torch.float64)).cos().view(result.shape)
    result.backward(weights.to(result.dtype).to(result.device))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _against_the_host(kit: Kit, name: str) -> None:
    function, _, kind = name.partition(".")
    run, shapes = FUNCTIONS[function]
    dtype: torch.dtype = getattr(torch, kind)
    host = _inputs(shapes, dtype)
    found = _run(run, [kit.accelerator.to_device(value) for value in host])
    wanted = _run(run, [value.double() for value in host])
    kit.expect(found[0].device.type == kit.accelerator.device_type, "a result on the device", found[0].device)
    kit.expect(found[0].dtype == dtype, f"a result of {dtype}", found[0].dtype)
    kit.expect(len(found) == len(wanted), f"{len(wanted) - 1} gradients", len(found) - 1)
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        what = "the result" if index == 0 else f"the gradient of argument {index - 1}"
        kit.expect_close(ours, theirs, f"{function} in {kind}: {what}", BOUNDS[kind])


NUMERICS.each(
    "results and gradients are those of the host in float64, within the bound of the dtype",
    [f"{function}.{kind}" for function in FUNCTIONS for kind in BOUNDS],
    _against_the_host,
    lambda name: Needs(dtypes=(name.rpartition(".")[2],)),
)


@NUMERICS.case("the same calls give the same bits each time")
def deterministic(kit: Kit) -> None:
    for function in ("matmul", "softmax", "layer_norm", "sum", "attention", "cross_entropy"):
        run, shapes = FUNCTIONS[function]
        inputs = [kit.accelerator.to_device(value) for value in _inputs(shapes, torch.float32)]
        for ours, theirs in zip(_run(run, inputs), _run(run, inputs), strict=True):
            kit.expect_same(ours, theirs, f"{function}, run twice")


@NUMERICS.case("NaN and infinity pass through and are found by isfinite, which skips steps that overflow")
def special_values(kit: Kit) -> None:
    host = torch.tensor([1.0, float("inf"), float("-inf"), float("nan"), 0.0, 3e38])
    there = kit.accelerator.to_device(host)
    kit.expect_same(there.isfinite(), host.isfinite(), "isfinite")
    kit.expect_same(there * 10, host * 10, "a product that overflows")
    kit.expect(bool((there.sum() != there.sum()).cpu()), "a NaN as the sum", float(there.sum().cpu()))


@NUMERICS.case(
    "index and comparison results are int64 and bool as on the host: argmax, topk, sort, nonzero",
    Needs(dtypes=("int64", "bool")),
)
def indices(kit: Kit) -> None:
    host = torch.randperm(60, generator=torch.Generator().manual_seed(1)).float().view(6, 10)
    there = kit.accelerator.to_device(host)
    kit.expect_same(there.argmax(-1), host.argmax(-1), "argmax")
    for ours, theirs in zip(there.topk(3), host.topk(3), strict=True):
        kit.expect_same(ours, theirs, "topk")
    for ours, theirs in zip(there.sort(-1), host.sort(-1), strict=True):
        kit.expect_same(ours, theirs, "sort")
    kit.expect_same((there > 30).nonzero(), (host > 30).nonzero(), "nonzero")
    kit.expect_same((there > 30).cumsum(-1), (host > 30).cumsum(-1), "cumsum of bool")


def _autocast(kit: Kit, kind: str) -> None:
    device_type: str = kit.accelerator.device_type
    dtype: torch.dtype = getattr(torch, kind)
    if dtype not in kit.accelerator.autocast_dtypes():
        kit.lacks("dtype", f"autocast to {kind}", f"autocast_dtypes() of {kit.accelerator.name} does not list {kind}")
    layer = torch.nn.Linear(16, 16).to(kit.device)
    x = torch.linspace(-1, 1, 64, device=kit.device).view(4, 16)
    with torch.autocast(device_type, dtype=dtype):
        y = layer(x)
    kit.expect(y.dtype == dtype, f"a linear layer in {dtype}", y.dtype)
    y.float().softmax(-1)[:, 0].sum().backward()
    assert layer.weight.grad is not None
    kit.expect(layer.weight.grad.dtype == torch.float32, "a gradient of torch.float32", layer.weight.grad.dtype)
    wanted = torch.nn.functional.linear(x.cpu().double(), layer.weight.detach().cpu().double(), None)
    kit.expect_close(y.float() - layer.bias, wanted, "the linear layer", BOUNDS[kind])


AUTOCAST.each(
    "torch.autocast runs matrix products in the low dtype; gradients have the parameters' dtype",
    ["float16", "bfloat16"],
    _autocast,
    lambda name: Needs(dtypes=(name,)),
)


def _torch_optimizer(kit: Kit, name: str) -> None:
    kind, _, how = name.partition(".")
    start = torch.randn(33, 5, generator=torch.Generator().manual_seed(0))
    grads = torch.randn(3, 33, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for device in (kit.device, torch.device("cpu")):
        parameter = torch.nn.Parameter(start.clone().to(device))
        make: Any = getattr(torch.optim, kind)
        optimizer = make([parameter], lr=0.05, weight_decay=0.1, foreach=how == "foreach")
        for grad in grads:
            parameter.grad = grad.to(device)
            torch.nn.utils.clip_grad_norm_([parameter], 1.0, foreach=how == "foreach")
            optimizer.step()
            optimizer.zero_grad()
        found.append(parameter.detach())
    kit.expect_close(found[0], found[1], f"parameters after three steps of {kind}", 1e-4)


TORCH_OPTIMIZERS.each(
    "torch's optimizers and clip_grad_norm_ give the numbers of the host, one by one and with foreach",
    [f"{kind}.{how}" for kind in ("AdamW", "SGD", "Adagrad") for how in ("single", "foreach")],
    _torch_optimizer,
    lambda name: Needs(),
)
