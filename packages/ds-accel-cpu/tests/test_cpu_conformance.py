"""Every op at every level this machine runs: against the references, between levels, and for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ds_accel_cpu import plugin
from ds_accel_cpu.isa import load_level, usable_levels
from ds_accel_cpu.launching import cpu_ops
from ds_core import ops
from ds_core.ops.calls import KernelOps
from ds_core.ops.case import Exactness, OpCase
from ds_core.plugins import load_ref
from ds_core.testing import op_cases

SERVED = {impl.op: impl.supports for impl in plugin.ds_ops()}
LEVELS = usable_levels()
HYPER: dict[str, Any] = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.05, "step": 3}
ROUNDS_ONCE = torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def kernels(level: str) -> KernelOps:
    return cpu_ops(load_level(level))


def served_cases(name: str) -> list[OpCase]:
    """The conformance cases that the kernels do not leave to the reference."""
    supports = None if SERVED[name] is None else load_ref(SERVED[name])
    found = op_cases.cases(name)
    return [case for case in found if supports is None or supports(**case.tensors, **case.scalars) is None]


@pytest.fixture
def threads() -> Iterator[None]:
    """Leaves torch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", list(SERVED))
def test_every_case_agrees_with_the_reference(level: str, name: str) -> None:
    if name == "adam_" and not ROUNDS_ONCE:
        pytest.skip("torch was told to run without fma, so its own lerp and addcmul round twice")
    kernel = getattr(kernels(level), name)
    for case in served_cases(name):
        op_cases.check_kernel(name, case, kernel, "cpu")


@pytest.mark.parametrize("name", list(SERVED))
def test_levels_give_the_same_bits(name: str) -> None:
    every = [getattr(kernels(level), name) for level in LEVELS]
    for case in served_cases(name):
        calls = [op_cases.build(name, case) for _ in every]
        results = [
            (
                *op_cases.as_tuple(kernel(**call.tensors, **call.scalars)),
                *(t for t in call.tensors.values() if t is not None),
            )
            for kernel, call in zip(every, calls, strict=True)
        ]
        for level, result in zip(LEVELS[1:], results[1:], strict=True):
            for got, want in zip(result, results[0], strict=True):
                op_cases.compare(got, want, case.levels, f"{name}, {case.name}: {level} and {LEVELS[0]}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("beta2", "g", "v", "once", "twice"),
    [
        (0.802711, "0x1.f322e4p-11", "0x1.3eeb54p+0", "0x1.000002p+0", "0x1.000004p+0"),
        (0.541924, "0x1.7a3e46p-12", "0x1.d86416p+0", "0x1.000002p+0", "0x1.000000p+0"),
        (0.937366, "0x1.995c82p-8", "0x1.111b10p+0", "0x1.00002ap+0", "0x1.000028p+0"),
        (0.599058, "0x1.9ff8c6p-8", "0x1.ab566ep+0", "0x1.00010ep+0", "0x1.000110p+0"),
    ],
)
def test_fused_multiply_add_rounds_once_also_where_double_precision_rounds_twice(
    level: str, beta2: float, g: str, v: str, once: str, twice: str
) -> None:
    # The second moment is fma(w * g, g, v * beta2) with v * beta2 = 1: the product is half a unit and less than a hair.
    grad, moment = torch.full((33,), float.fromhex(g)), torch.full((33,), float.fromhex(v))
    product = ((1 - beta2) * grad).double() * grad.double()
    assert (product + (moment * beta2).double()).float()[0].item() == float.fromhex(twice)
    p, m = torch.zeros(33), torch.zeros(33)
    kernels(level).adam_(p, grad, m, moment, **{**HYPER, "beta2": beta2})
    assert moment.unique().tolist() == [float.fromhex(once)]


def every_kind_of_float() -> torch.Tensor:
    """Each exponent and sign, with mantissas at and around ties of bfloat16 and float16; mixed, then in order."""
    tails = [0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x18000, 0x7FF000, 0x7FFFFF]
    bits = torch.arange(-256, 256)[:, None] * 2**23 + torch.tensor(tails)
    bits = bits.view(-1)[torch.randperm(bits.numel(), generator=torch.Generator().manual_seed(0))].to(torch.int32)
    return torch.cat([bits, bits.sort().values]).view(torch.float32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_kind_of_float_rounds_as_in_torch(level: str, dtype: torch.dtype) -> None:
    # A step of nothing: what comes out of adam_ is the parameter, rounded into the copy.
    p = every_kind_of_float()
    want, copy = p.clone(), torch.empty_like(p, dtype=dtype)
    g, m, v = (torch.zeros_like(p) for _ in range(3))
    kernels(level).adam_(p, g, m, v, copy, **{**HYPER, "lr": 0.0, "weight_decay": 0.0})
    numbers = ~want.isnan()
    assert torch.equal(copy[numbers].view(torch.int16), want.to(dtype)[numbers].view(torch.int16))
    assert copy[~numbers].isnan().all()


def adam_call(ops: KernelOps, **more: Any) -> list[torch.Tensor]:
    numel = 300_007
    generator = torch.Generator().manual_seed(0)
    p, g, m, v = (torch.randn(numel, generator=generator) for _ in range(4))
    tensors = [p.bfloat16(), g, m, v.square(), torch.zeros(numel, dtype=torch.float16)]
    ops.adam_(*tensors, **HYPER, **more)
    return tensors


def other_optimizers_call(ops: KernelOps) -> list[torch.Tensor]:
    numel = 300_007
    generator = torch.Generator().manual_seed(0)
    p, g, m, v = (torch.randn(numel, generator=generator) for _ in range(4))
    lamb = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1, "step": 2}
    bounds = [0, 10, 16, 200_000, 200_008, 200_009, 200_016, numel]
    tensors = [p, g, m, v.square(), p.half()]
    sums = ops.lamb_moments_(*tensors[:4], bounds, **lamb)
    ops.lamb_apply_(p, m, tensors[3], sums[:, 0].float(), bounds, tensors[4], lr=0.01, **lamb)
    ops.adagrad_(p, g, tensors[3], lr=1e-2, eps=1e-8, weight_decay=0.1, step=1)
    ops.lion_(p, g, m, lr=1e-2, beta1=0.9, beta2=0.99, weight_decay=0.1)
    ops.sgd_(p, g, m, lr=1e-2, momentum=0.9, weight_decay=0.1)
    return [*tensors, sums]


def norm_call(ops: KernelOps) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(3001, 100, generator=generator) for _ in range(2))
    w, b = (torch.randn(100, generator=generator) for _ in range(2))
    y, rstd = ops.rms_norm_forward(x, w, 1e-6)
    z, mean, rstd2 = ops.layer_norm_forward(x, w, b, 1e-6)
    return [
        y,
        rstd,
        z,
        mean,
        rstd2,
        *ops.rms_norm_backward(dy, x, w, rstd),
        *ops.layer_norm_backward(dy, x, w, mean, rstd2),
    ]


def reduction_and_quantization_call(ops: KernelOps) -> list[torch.Tensor]:
    x = torch.randn(700_001, generator=torch.Generator().manual_seed(0))
    result = [ops.sum_of_squares(x), ops.sum_of_squares(x.half())]
    for format, scaling, group_size in (
        ("int8", "symmetric", 48),
        ("int4", "asymmetric", 5000),
        ("e3m2", "power_of_two", 32),
    ):
        q, scales, zeros = ops.quantize(x, format, group_size, scaling, rounding_seed=3)
        zero_points = zeros if scaling == "asymmetric" else None
        again = ops.dequantize(q, scales, zero_points, format, group_size, x.shape, x.dtype)
        result += [q, scales, zeros, again]
    return result


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("level", LEVELS)
def test_results_do_not_depend_on_the_number_of_threads(level: str) -> None:
    ops = kernels(level)
    results = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        results.append(
            adam_call(ops)
            + adam_call(ops, rounding_seed=7, rounding_offset=2**32 - 150_000)
            + other_optimizers_call(ops)
            + norm_call(ops)
            + reduction_and_quantization_call(ops)
        )
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def elements(case: OpCase) -> int:
    return sum(torch.Size(spec.shape).numel() for spec in case.tensors.values() if spec is not None)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", list(SERVED))
def test_the_largest_cases_give_the_same_bits_for_any_number_of_threads(name: str) -> None:
    kernel = getattr(kernels(LEVELS[0]), name)
    for case in sorted(served_cases(name), key=elements)[-3:]:
        results = []
        for count in (1, 4):
            torch.set_num_threads(count)
            call = op_cases.build(name, case)
            found = op_cases.as_tuple(kernel(**call.tensors, **call.scalars))
            results.append((*found, *(t for t in call.tensors.values() if t is not None)))
        for one, four in zip(*results, strict=True):
            op_cases.compare(four, one, Exactness(ulps=0), f"{name}, {case.name}: 4 threads and 1")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("level", LEVELS)
def test_a_copy_too_large_for_the_caches_is_written_in_full(level: str) -> None:
    torch.set_num_threads(2)
    numel, ahead = 4_500_001, 3
    p, g, m, v = (torch.full((numel,), x) for x in (1.0, 0.1, 0.0, 0.0))
    p += torch.arange(numel) * 1e-6
    wide = torch.full((ahead + numel + ahead,), -1.0, dtype=torch.bfloat16)
    kernels(level).adam_(p, g, m, v, wide[ahead : ahead + numel], **HYPER)
    assert torch.equal(wide[ahead : ahead + numel], p.bfloat16())
    assert (wide[:ahead] == -1).all() and (wide[ahead + numel :] == -1).all()


def test_a_level_that_is_not_here_is_skipped_with_its_reason() -> None:
    from ds_accel_cpu import _binding

    for level in _binding.levels():
        assert level.usable or level.reason.startswith("lacks ")
        assert level.usable == (level.name in LEVELS)


def test_weights_of_small_floats_are_refused_and_not_read_as_integers() -> None:
    weight = ops.pack_weight(torch.randn(16, 64), "e4m3fn", 64)
    call = (torch.randn(2, 64), weight.codes, weight.scales, None, None, 8, 64, 16, "e4m3fn")
    with pytest.raises(RuntimeError, match="the dtypes are not served"):
        kernels(LEVELS[0]).linear_weight_only(*call)
