from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError
from ds_core.ops import table
from ds_core.ops.case import Exactness
from ds_core.ops.rounding import mix32, random_bits, round_stochastically
from ds_core.testing import op_cases

REFERENCE = table.op("adam_").definition().reference
HYPER: dict[str, Any] = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.05, "step": 1}


def tensors(numel: int, param: torch.dtype = torch.float32, state: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(numel)
    p, g, m, v = (torch.randn(numel, generator=generator) for _ in range(4))
    return [p.to(param), g, (m * 0.1).to(state), (v * 0.1).square().to(state)]


def test_it_is_the_formula_in_double_precision() -> None:
    p, g, m, v = tensors(1000)
    wide_p, wide_g, wide_m, wide_v = (t.double() for t in (p, g, m, v))
    hyper = {**HYPER, "step": 5}
    wide_p = wide_p * (1 - 1e-2 * 0.05)
    wide_m = 0.9 * wide_m + 0.1 * wide_g
    wide_v = 0.99 * wide_v + 0.01 * wide_g**2
    wide_p -= 1e-2 * (wide_m / (1 - 0.9**5)) / ((wide_v / (1 - 0.99**5)).sqrt() + 1e-8)
    REFERENCE(p, g, m, v, **hyper)
    for got, want in ((p, wide_p), (m, wide_m), (v, wide_v)):
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("adamw", [True, False])
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch rounds without fma"
)
def test_it_is_bit_equal_to_the_vectorized_part_of_torchs_fused_optimizer(adamw: bool) -> None:
    numel = 64 * 100  # no remainder: torch's scalar loop for the last few elements rounds differently
    p, _, m, v = tensors(numel)
    m.zero_(), v.zero_()
    theirs = torch.nn.Parameter(p.clone())
    kind = torch.optim.AdamW if adamw else torch.optim.Adam
    optimizer = kind([theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.05, fused=True)
    for step in range(1, 6):
        g = torch.randn(numel, generator=torch.Generator().manual_seed(step))
        theirs.grad = g.clone()
        optimizer.step()
        REFERENCE(p, g, m, v, **{**HYPER, "step": step}, adamw=adamw)
        state = optimizer.state[theirs]
        assert torch.equal(m, state["exp_avg"]) and torch.equal(v, state["exp_avg_sq"])
        assert torch.equal(p, theirs.detach())


def test_the_reference_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tensors(1000, torch.bfloat16), tensors(1000, torch.bfloat16)
    REFERENCE(*whole, **HYPER, rounding_seed=3)
    monkeypatch.setattr("ds_core.ops._flat_update.CHUNK", 77)
    REFERENCE(*cut, **HYPER, rounding_seed=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize("seed", [-1, 11])
def test_pieces_with_their_offset_give_what_the_whole_gives(seed: int) -> None:
    whole, pieces = tensors(1000, torch.bfloat16), tensors(1000, torch.bfloat16)
    ops.adam_(*whole, **HYPER, rounding_seed=seed)
    for start, stop in ((0, 333), (333, 334), (334, 1000)):
        ops.adam_(*(t[start:stop] for t in pieces), **HYPER, rounding_seed=seed, rounding_offset=start)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_the_copy_is_the_rounded_parameter_and_nothing_else_changes() -> None:
    plain, copied = tensors(1000), tensors(1000)
    copy = torch.empty(1000, dtype=torch.bfloat16)
    ops.adam_(*plain, **HYPER)
    ops.adam_(*copied, copy, **HYPER)
    assert all(torch.equal(a, b) for a, b in zip(plain, copied, strict=True))
    assert torch.equal(copy, plain[0].bfloat16())


def test_a_factor_is_a_scaled_gradient() -> None:
    scaled, factored = tensors(1000), tensors(1000)
    scaled[1] *= torch.tensor(1 / 3)
    ops.adam_(*scaled, **HYPER)
    ops.adam_(*factored, **HYPER, grad_factor=torch.tensor(1 / 3))
    assert torch.equal(scaled[0], factored[0]) and torch.equal(scaled[2], factored[2])


def test_zero_elements_are_fine() -> None:
    ops.adam_(*tensors(0), **HYPER)


def test_it_runs_on_parameters_that_require_grad_and_under_the_dispatcher() -> None:
    direct, dispatched = tensors(100), tensors(100)
    ops.adam_(torch.nn.Parameter(direct[0]), *direct[1:], **HYPER)
    torch.ops.ds.adam_(*dispatched, **HYPER)
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))


def test_opcheck() -> None:
    p, g, m, v = tensors(37)
    args = (p, g, m, v, torch.empty(37, dtype=torch.bfloat16))
    torch.library.opcheck(torch.ops.ds.adam_.default, args, {**HYPER, "grad_factor": torch.tensor(0.5)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"param": torch.zeros(2, 5)}, r"param must be 1-D, got shape \(2, 5\)"),
        ({"param": torch.zeros(20)[::2]}, r"param must be contiguous, got strides \(2,\)"),
        ({"grad": torch.zeros(9)}, r"grad must have 10 elements like param, got 9"),
        ({"grad": torch.zeros(10, dtype=torch.float64)}, r"grad must be float32, bfloat16, float16, got float64"),
        ({"exp_avg": torch.zeros(10, device="meta")}, r"exp_avg must be on cpu like param, got meta"),
        (
            {"exp_avg_sq": torch.zeros(10, dtype=torch.bfloat16)},
            r"exp_avg_sq must be float32 like exp_avg, got bfloat16",
        ),
        ({"copy_out": torch.zeros(11)}, r"copy_out must have 10 elements like param, got 11"),
        ({"grad_factor": torch.zeros(1)}, r"0-dim float32 tensor, got float32 of shape \(1,\)"),
        ({"step": 0}, r"step must be 1 or more .* got 0"),
        ({"beta2": 1.0}, r"beta1 and beta2 must be in \[0, 1\), got 0\.9 and 1\.0"),
        ({"rounding_offset": -1}, r"rounding_offset must be 0 or more, got -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(10) for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
    for call in (ops.adam_, torch.ops.ds.adam_):
        if change.get("exp_avg") is not None and call is not ops.adam_:
            continue  # the dispatcher refuses tensors on several devices by itself
        with pytest.raises(OpError, match=message):
            call(**{**arguments, **HYPER, **change})


# --- stochastic rounding


def test_mix32_is_a_bijection_on_a_sample_and_known_at_a_point() -> None:
    x = torch.arange(200_000, dtype=torch.int64)
    assert mix32(x).unique().numel() == x.numel()
    assert int(mix32(torch.tensor([1]))[0]) == 1753845952


def test_random_bits_depend_on_seed_stream_and_position_only() -> None:
    device = torch.device("cpu")
    whole = random_bits(7, 1, 0, 1000, device)
    assert torch.equal(whole[300:400], random_bits(7, 1, 300, 100, device))
    for other in (random_bits(8, 1, 0, 1000, device), random_bits(7, 2, 0, 1000, device)):
        assert (whole == other).sum() < 3
    assert abs(whole.double().mean().item() / 2**32 - 0.5) < 0.04


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.bfloat16, 1.0 + 2**-10),
        (torch.bfloat16, -3.3e-39),
        (torch.float16, 1.0 + 2**-13),
        (torch.float16, -1234.567),
        (torch.float16, 3.1e-7),
        (torch.float16, 1e-8),
    ],
)
def test_it_rounds_to_a_neighbour_and_is_right_on_average(dtype: torch.dtype, value: float) -> None:
    numel = 200_000
    x = torch.full((numel,), value)
    rounded = round_stochastically(x, dtype, random_bits(5, 0, 0, numel, torch.device("cpu"))).double()
    found = rounded.unique()
    assert found.numel() == 2 and found.min() <= x[0].double() <= found.max()
    step = (found.max() - found.min()).item()
    assert abs(rounded.mean().item() - x[0].double().item()) < 5 * step / math.sqrt(numel)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_representable_is_kept(dtype: torch.dtype) -> None:
    bits = torch.arange(2**16).to(torch.int16)
    exact = bits.view(dtype)
    random = random_bits(1, 0, 0, exact.numel(), torch.device("cpu"))
    kept = round_stochastically(exact.float(), dtype, random)
    op_cases.compare(kept, exact, Exactness(), "kept")


def test_a_tiny_update_survives_on_average_where_rounding_to_nearest_loses_it() -> None:
    def moved(seed: int) -> float:
        param = torch.ones(50_000, dtype=torch.bfloat16)
        zeros = torch.zeros(50_000)
        ops.adam_(
            param, zeros + 1, zeros.clone(), zeros.clone(), lr=1e-4, beta1=0.9, beta2=0.99, eps=1e-8,
            weight_decay=0.0, step=1, rounding_seed=seed,
        )  # fmt: skip
        return 1.0 - param.double().mean().item()

    assert moved(-1) == 0.0
    assert moved(3) == pytest.approx(1e-4, rel=0.2)
