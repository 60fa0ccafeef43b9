"""rotary, gated activations and softmax against plain torch in double precision, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from ds_core import ops
from ds_core.errors import OpError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}


def leaf(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def compare(ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """Values and gradients, `theirs` in double precision."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    tolerance = TOLERANCE[inputs[0].dtype]
    y, want = ours(*inputs), theirs(*exact)
    assert y.dtype == inputs[0].dtype
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    found = torch.autograd.grad(y, inputs, dy)
    expected = torch.autograd.grad(want, exact, dy.double())
    for got, right, given in zip(found, expected, inputs, strict=True):
        assert got.dtype == given.dtype
        torch.testing.assert_close(got.double(), right, rtol=4 * tolerance, atol=4 * tolerance)


def turned(x: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotation as a multiplication of complex numbers; `angles` [tokens, pairs], x [batch, tokens, heads, dim]."""
    part, rest = x[..., : 2 * angles.shape[-1]], x[..., 2 * angles.shape[-1] :]
    pairs = part.unflatten(-1, (-1, 2)) if interleaved else torch.stack(part.chunk(2, -1), -1)
    spun = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(()).double(), angles.unsqueeze(-2))
    )
    return torch.cat((spun.flatten(-2) if interleaved else torch.cat(spun.unbind(-1), -1), rest), -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs_as_complex_numbers_do(dtype: torch.dtype, interleaved: bool) -> None:
    cos, sin = ops.rotary_tables(12, 64)
    positions = torch.tensor([5, 0, 63, 7, 7])
    angles = positions.double().unsqueeze(-1) * 10_000.0 ** (-torch.arange(0, 12, 2).double() / 12)
    compare(
        lambda x: ops.rotary(x, cos, sin, positions, interleaved),
        lambda x: turned(x, angles, interleaved),
        leaf(2, 5, 3, 16, dtype=dtype),
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_and_its_inverse_give_the_tensor_back(interleaved: bool) -> None:
    cos, sin = ops.rotary_tables(8, 10)
    x, positions = torch.randn(2, 4, 3, 8), torch.randint(0, 10, (2, 4))
    y = ops.rotary(x, cos, sin, positions, interleaved)
    torch.testing.assert_close(ops.rotary(y, cos, sin, positions, interleaved, inverse=True), x)


def test_rotary_in_place_writes_only_what_it_turns() -> None:
    cos, sin = ops.rotary_tables(4, 10)
    wide = torch.randn(2, 3, 5, 12)
    before, x = wide.clone(), wide.transpose(1, 2)[..., 2:10]  # heads before tokens, in the middle of each row
    want = ops.rotary(x, cos, sin, torch.arange(5))
    assert ops.rotary_(x, cos, sin, torch.arange(5)) is x
    assert torch.equal(x, want)
    before.transpose(1, 2)[..., 2:6] = want[..., :4]
    assert torch.equal(wide, before)


def test_a_position_outside_of_the_tables_is_named_and_nothing_is_written() -> None:
    cos, sin = ops.rotary_tables(8, 10)
    x = torch.ones(4, 1, 8)
    for bad in (10, -1, 2**40):
        with pytest.raises(OpError, match=rf"positions\[2\] is {bad}; allowed: 0 to 9"):
            ops.rotary_(x, cos, sin, torch.tensor([0, 9, bad, 1]))
    assert (x == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(ACTIVATIONS))
def test_gated_activations_are_torchs(kind: str, dtype: torch.dtype) -> None:
    gate, up = leaf(3, 5, 70, dtype=dtype), leaf(3, 5, 70, dtype=dtype, seed=1)
    compare(lambda g, u: ops.gated_activation(g, u, kind), lambda g, u: ACTIVATIONS[kind](g) * u, gate, up)


@pytest.mark.parametrize("kind", list(ACTIVATIONS))
def test_a_packed_gated_activation_is_that_of_its_halves(kind: str) -> None:
    x = leaf(4, 6, 64)
    gate, up = x.detach().chunk(2, -1)
    assert torch.equal(ops.gated_activation_packed(x, kind), ops.gated_activation(gate, up, kind))
    compare(
        lambda x: ops.gated_activation_packed(x, kind),
        lambda x: ACTIVATIONS[kind](x[..., :32]) * x[..., 32:],
        x,
    )


def test_halves_of_a_tensor_are_read_where_they_are() -> None:
    x = torch.randn(5, 64)
    assert torch.equal(
        ops.gated_activation(*x.chunk(2, -1)), ops.gated_activation(x[:, :32].clone(), x[:, 32:].clone())
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_is_torchs(dtype: torch.dtype) -> None:
    compare(lambda x: ops.softmax(x, scale=0.7), lambda x: (x * 0.7).softmax(-1), leaf(2, 3, 5, 33, dtype=dtype))


def test_masked_softmax_is_that_of_attention() -> None:
    mask = torch.randn(2, 1, 5, 33)
    lengths = torch.tensor([33, 20])
    seen = (torch.arange(33) < lengths.view(-1, 1, 1, 1)) & (torch.arange(33) <= torch.arange(5).unsqueeze(-1) + 28)
    compare(
        lambda x: ops.softmax(x, mask, lengths, scale=0.5, causal=True),
        lambda x: (x * 0.5 + mask.double()).masked_fill(~seen, -torch.inf).softmax(-1),
        leaf(2, 3, 5, 33),
    )


def test_a_row_that_sees_nothing_is_zero_and_so_is_its_gradient() -> None:
    x = leaf(2, 3, 4)
    y = ops.softmax(x, lengths=torch.tensor([0, 2]), causal=True)
    assert (y[0] == 0).all() and (y[1, :, 2:] == 0).all()
    torch.testing.assert_close(y[1].sum(-1), torch.ones(3))
    (dx,) = torch.autograd.grad(y.square().sum(), [x])
    assert (dx[0] == 0).all() and dx.isfinite().all() and dx[1].abs().sum() > 0
    assert (ops.softmax(torch.full((2, 5), -torch.inf)) == 0).all()
    assert ops.softmax(torch.tensor([0.0, torch.nan, -torch.inf])).isnan().all()


def test_compiled_as_one_graph() -> None:
    cos, sin = ops.rotary_tables(8, 10)

    def block(x: torch.Tensor) -> torch.Tensor:
        y = ops.rotary(x, cos, sin, torch.arange(4))
        return ops.softmax(ops.gated_activation_packed(y), causal=True)

    x = leaf(2, 4, 3, 8)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    y, want = compiled(x), block(x)
    assert torch.equal(y, want)
    torch.testing.assert_close(*(torch.autograd.grad(t.square().sum(), [x])[0] for t in (y, want)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: ops.rotary(t.view(-1), t, t, t), r"x must be \[..., tokens, heads, head_dim\], got shape \(24,\)"),
        (
            lambda t: ops.rotary(t, *ops.rotary_tables(6, 5), torch.arange(2)),
            "the tables turn 6 elements of a head, and a head has 4",
        ),
        (
            lambda t: ops.rotary(t, *ops.rotary_tables(4, 5), torch.arange(3)),
            r"positions must have shape \(2,\) or \(2,\), the tokens of x, got \(3,\)",
        ),
        (
            lambda t: ops.rotary(t, *ops.rotary_tables(4, 5), torch.arange(2).int()),
            "positions must be int64, got int32",
        ),
        (lambda t: ops.rotary_tables(5, 3), "rotary_dim must be even and 2 or more, got 5"),
        (lambda t: ops.rotary_(t.requires_grad_(), t, t, t), "x requires a gradient, and writing over it has none"),
        (lambda t: ops.gated_activation(t, t, "swish"), "kind must be silu, gelu, gelu_tanh, relu, got 'swish'"),
        (lambda t: ops.gated_activation(t, t[:1]), r"up must have shape \(2, 3, 4\) \(the shape of gate\)"),
        (lambda t: ops.gated_activation(t, t.half()), "up must be float32 like gate, got float16"),
        (lambda t: ops.gated_activation_packed(t[..., :3]), r"last dimension of x must be even, got shape \(2, 3, 3\)"),
        (lambda t: ops.softmax(t, t[..., :2]), r"mask must expand to the shape of x, \(2, 3, 4\), got \(2, 3, 2\)"),
        (lambda t: ops.softmax(t, lengths=torch.ones(3).long()), r"lengths must have shape \(2,\)"),
        (lambda t: ops.softmax(t[0], lengths=torch.ones(3).long(), causal=True), "need a dimension before the queries"),
        (lambda t: ops.softmax(t, t.clone().requires_grad_()), "mask requires a gradient, which this op does not give"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[[torch.Tensor], Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        call(torch.zeros(2, 3, 4))
