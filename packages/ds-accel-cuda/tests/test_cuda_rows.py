"""Kernels over rows, emulated, where the conformance cases do not reach: odd lengths, alignment, infinities, NaNs.

Lengths are chosen around what threads hold: a warp 512 to 1,024 elements, a block some thousands, longer rows are read
again. Every comparison is with the op's reference, on tensors of a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_accel_cuda.libraries import emulated
from ds_core.errors import OpError
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.case import Exactness
from ds_core.ops.table import op
from ds_core.testing.op_cases import as_tuple, compare

OPS = KernelOps(emulated(), HostLauncher())
LENGTHS = (1, 1023, 1025, 2050, 8200, 40_000)
DTYPES = (torch.float32, torch.bfloat16)
INF, NAN = float("inf"), float("nan")
ROWS = {
    "inf": [1.0, INF, 2.0, -1.0],
    "minus_inf": [1.0, -INF, 2.0, -1.0],
    "both_infinities": [INF, -INF, 2.0, -1.0],
    "nan": [1.0, NAN, 2.0, -1.0],
    "nan_and_inf": [INF, NAN, 2.0, -1.0],
    "only_minus_inf": [-INF] * 4,
    "only_nan": [NAN] * 4,
    "only_inf": [INF] * 4,
    "squares_overflow": [1e30, 2e30, -1e30, 1.0],
}


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values one element into a storage."""
    return torch.cat((tensor.new_zeros(1), tensor.reshape(-1)))[1:].view(tensor.shape)


def agree(name: str, arguments: list[Any], bound: Exactness) -> tuple[torch.Tensor, ...]:
    """The outputs of the kernel, which are those of the reference within the bound, as the arguments then are."""
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    wanted = as_tuple(op(name).definition().reference(*copies))
    found = as_tuple(getattr(OPS, name)(*arguments))
    for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
        compare(got, want, bound, f"{name}: output {index}")
    for index, (got, want) in enumerate(zip(arguments, copies, strict=True)):
        if isinstance(got, torch.Tensor):
            compare(got, want, bound, f"{name}: argument {index}")
    return found


def calls(x: torch.Tensor) -> dict[str, tuple[list[Any], Exactness]]:
    """Arguments of every op of rows, for rows x [rows, columns], and the bound of the op's cases."""
    rows, columns = x.shape
    weight, bias, dy = normal(columns), normal(columns, scale=0.1), normal(rows, columns, dtype=x.dtype, scale=0.1)
    rstd, mean = normal(rows).square() + 0.1, normal(rows, scale=0.1)
    target = torch.arange(rows) * 7919 % columns
    forward, backward = Exactness(ulps=1, relative=2e-6), Exactness(ulps=2, relative=2e-5)
    loss = Exactness(ulps=8, relative=3e-6)
    options = [-100, 0.1 if columns > 1 else 0.0, 1e-3]  # with one column, smoothing leaves what float32 cancels
    return {
        "rms_norm_forward": ([x, weight, 1e-6], forward),
        "rms_norm_backward": ([dy, x, weight, rstd], backward),
        "add_rms_norm_forward": ([x, dy, weight, 1e-6], forward),
        "add_rms_norm_backward": ([dy, x, x, weight, rstd], backward),
        "layer_norm_forward": ([x, weight, bias, 1e-5], forward),
        "layer_norm_backward": ([dy, x, weight, mean, rstd], backward),
        "add_layer_norm_forward": ([x, dy, weight, None, 1e-5], forward),
        "add_layer_norm_backward": ([dy, None, x, weight, mean, rstd], backward),
        "softmax_forward": ([x, bias, None, 0.7, False], Exactness(ulps=8, relative=2e-6)),
        "softmax_backward": ([dy, x.float().softmax(-1).to(x.dtype), 0.7], Exactness(ulps=4, relative=1e-5)),
        "cross_entropy_forward": ([x, target, *options], loss),
        "cross_entropy_backward": ([mean, x, target, rstd * 9, *options], Exactness(ulps=8, relative=1e-5)),
        "cross_entropy_": ([x, target, 0.4, *options], loss),
    }


NAMES = sorted(calls(normal(1, 1)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_any_length_agree_with_the_reference(name: str, columns: int, dtype: torch.dtype) -> None:
    agree(name, *calls(normal(3, columns, dtype=dtype))[name])


@pytest.mark.parametrize("name", [name for name in NAMES if "norm_backward" in name])
def test_gradients_of_weights_add_up_more_rows_than_there_are_parts(name: str) -> None:
    agree(name, *calls(normal(9001, 24))[name])


@pytest.mark.parametrize("name", [name for name in NAMES if "norm_backward" in name])
def test_gradients_of_weights_are_zero_without_rows(name: str) -> None:
    found = agree(name, *calls(normal(0, 40_000))[name])
    assert not any(gradient.any() for gradient in found[1:])


@pytest.mark.parametrize("columns", [40, 4000, 20_000])
@pytest.mark.parametrize("name", NAMES)
def test_alignment_does_not_change_a_bit(name: str, columns: int) -> None:
    results = []
    for place in (torch.clone, unaligned):
        arguments = [place(a) if isinstance(a, torch.Tensor) else a for a in calls(normal(3, columns))[name][0]]
        results.append((*as_tuple(getattr(OPS, name)(*arguments)), *arguments))
    for aligned, moved in zip(*results, strict=True):
        if isinstance(aligned, torch.Tensor):
            assert torch.equal(aligned, moved)


@pytest.mark.parametrize("name", [name for name in NAMES if "norm_backward" not in name])
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(name: str) -> None:
    few, many = (calls(normal(9, 1300)[:rows].contiguous())[name][0] for rows in (2, 9))
    for index, argument in enumerate(few):  # arguments by row are those of the first two of nine
        if isinstance(argument, torch.Tensor) and argument.shape[0] == 2:
            few[index] = many[index][:2].clone()
    found, among = (as_tuple(getattr(OPS, name)(*arguments)) for arguments in (few, many))
    for alone, beside in zip(found, among, strict=True):
        assert torch.equal(alone, beside[:2])


@pytest.mark.parametrize("columns", [4, 1300, 40_000])
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize(
    "name", ["softmax_forward", "cross_entropy_forward", "cross_entropy_", "rms_norm_forward", "layer_norm_forward"]
)
def test_infinities_and_nans_go_where_the_reference_has_them(name: str, row: str, columns: int) -> None:
    x = normal(3, columns)
    x[1] = torch.tensor(ROWS[row]).repeat(columns // 4)
    agree(name, *calls(x)[name])


@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e20, -1e20, 88.5, -88.5, -103.0, 0.0, -0.0])
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu"])
def test_gates_at_the_ends_of_their_range_agree_with_the_reference(kind: str, value: float) -> None:
    gate, up, dy = torch.tensor([value, 1.0, -2.0]), torch.tensor([0.5, 3.0, 2.0]), torch.tensor([1.0, -2.0, 0.3])
    bound = Exactness(ulps=4, relative=1e-6)
    agree("gated_activation", [gate, up, kind], bound)
    agree("gated_activation_backward", [dy, gate, up, kind], bound)


@pytest.mark.parametrize("columns", [1, 7, 8, 1023, 4104])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_halves_of_rows_of_any_length_agree_with_the_reference(columns: int, dtype: torch.dtype) -> None:
    x, dy, bound = normal(5, 2 * columns, dtype=dtype), normal(5, columns, dtype=dtype), Exactness(4, 1e-6)
    agree("gated_activation_packed", [x, "silu"], bound)
    agree("gated_activation_packed_backward", [dy, x, "gelu_tanh"], bound)
    strided = normal(5, 2 * columns + 24, dtype=dtype)[:, : 2 * columns]
    agree("gated_activation_packed", [strided, "silu"], bound)


@pytest.mark.parametrize("columns", [100, 20_000])
def test_a_causal_row_of_lengths_and_mask_sees_what_the_reference_sees(columns: int) -> None:
    x, mask = normal(3, 4, columns), normal(3, 1, columns)
    lengths = torch.tensor([columns, columns // 2 + 1, 0])
    found = agree("softmax_forward", [x, mask, lengths, 0.5, True], Exactness(8, 2e-6))[0]
    assert not found[2].any()


# --- heads turned where they lie ---


def rotary_arguments(heads: int = 4, dim: int = 64, half: int = 32) -> tuple[torch.Tensor, ...]:
    tokens = torch.randint(0, 30, (2, 5), generator=torch.Generator().manual_seed(1))
    return normal(2, 5, 3 * heads, dim), normal(30, half), normal(30, half).neg(), tokens


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "half"), [(64, 32), (64, 20), (36, 18), (130, 65)])
def test_queries_within_a_packed_tensor_are_turned_and_their_neighbours_left(
    dim: int, half: int, interleaved: bool
) -> None:
    packed, cos, sin, tokens = rotary_arguments(dim=dim, half=half)
    before, queries = packed.clone(), packed[:, :, 4:8]
    agree("rotary_", [queries, cos, sin, tokens, interleaved, False], Exactness())
    assert not torch.equal(packed[:, :, 4:8], before[:, :, 4:8])
    assert torch.equal(packed[:, :, :4], before[:, :, :4])
    assert torch.equal(packed[:, :, 8:], before[:, :, 8:])
    assert torch.equal(packed[..., 2 * half :], before[..., 2 * half :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_heads_whose_dense_part_is_strided_are_turned_into_a_dense_tensor(
    dtype: torch.dtype, interleaved: bool
) -> None:
    packed, cos, sin, tokens = rotary_arguments()
    keys = packed.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)[:, :, 3:7]
    (found,) = agree("rotary", [keys, cos, sin, tokens, interleaved, True], Exactness())
    assert found.is_contiguous()


# --- numbers of rows that are not there ---


def rotary_call(bad: int) -> Callable[[], object]:
    packed, cos, sin, tokens = rotary_arguments()
    tokens[1, 3] = bad
    return lambda: OPS.rotary(packed, cos, sin, tokens, False, False)


def loss_call(name: str, bad: int) -> Callable[[], object]:
    arguments = calls(normal(5, 300))[name][0]
    target = next(a for a in arguments if isinstance(a, torch.Tensor) and a.dtype == torch.int64)
    target[3] = bad
    return lambda: getattr(OPS, name)(*arguments)


@pytest.mark.parametrize("bad", [-1, 300, 2**62, -(2**62)])
@pytest.mark.parametrize("name", ["rotary", "cross_entropy_forward", "cross_entropy_backward", "cross_entropy_"])
def test_an_index_out_of_range_is_an_error(name: str, bad: int) -> None:
    call = rotary_call(bad) if name == "rotary" else loss_call(name, bad)
    with pytest.raises(OpError, match=rf"(positions|target)\[.*3\] is {bad}; allowed"):
        call()
