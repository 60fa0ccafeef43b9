"""A grid of linears computes what one linear does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds_core.errors import ConfigError
from ds_zero.tiled import TiledLinear, TiledLinearReturnBias

IN, OUT = 23, 17
SPLITS = [(1, 1), (1, 4), (5, 1), (4, 3), (IN, OUT)]


def pair(in_splits, out_splits, bias=True, **settings):
    torch.manual_seed(0)
    linear = nn.Linear(IN, OUT, bias=bias)
    settings = {"in_splits": in_splits, "out_splits": out_splits, "init_linear": linear} | settings
    return linear, TiledLinear(IN, OUT, bias, **settings)


def assert_within_bound(found, linear, x):
    """The bound of TiledLinear's docstring."""
    eps = torch.finfo(x.dtype).eps
    size = x.abs() @ linear.weight.abs().t() + (0 if linear.bias is None else linear.bias.abs())
    assert ((found - linear(x)).abs() <= 2 * (IN + 1) * eps * size).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("in_splits", "out_splits"), SPLITS)
def test_forward_is_one_linear(in_splits, out_splits, bias):
    linear, tiled = pair(in_splits, out_splits, bias)
    x = torch.randn(2, 5, IN)
    found = tiled(x)
    assert found.shape == (2, 5, OUT)
    assert_within_bound(found, linear, x)


@pytest.mark.parametrize(("in_splits", "out_splits"), SPLITS)
def test_gradients_are_those_of_one_linear(in_splits, out_splits):
    """On whole numbers sums are exact in any order, so gradients are equal bit for bit."""
    linear, tiled = pair(in_splits, out_splits)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-4, 5, (OUT, IN)))
        linear.bias.copy_(torch.randint(-4, 5, (OUT,)))
    tiled.copy_params_from(linear)
    x = torch.randint(-4, 5, (6, IN)).float()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, one in zip((linear, tiled), inputs, strict=True):
        module(one).square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    rows = [torch.cat([tile.weight.grad for tile in row], dim=1) for row in tiled.tiles]
    assert torch.equal(torch.cat(rows), linear.weight.grad)
    assert torch.equal(torch.cat([row[-1].bias.grad for row in tiled.tiles]), linear.bias.grad)


def test_parts_differ_by_at_most_one_feature():
    _, tiled = pair(4, 3)
    assert [(tile.out_features, tile.in_features) for tile in tiled.tiles[0]] == [(6, 6), (6, 6), (6, 6), (6, 5)]
    assert [row[0].out_features for row in tiled.tiles] == [6, 6, 5]


def test_one_row_has_one_bias():
    _, tiled = pair(4, 3)
    assert [[tile.bias is not None for tile in row] for row in tiled.tiles] == [[False, False, False, True]] * 3


def test_a_split_input_gives_the_same():
    linear, tiled = pair(4, 3, input_is_already_split=True)
    x = torch.randn(5, IN)
    assert_within_bound(tiled(x.split(tiled.in_sizes, dim=-1)), linear, x)


def test_outputs_can_stay_apart():
    _, tiled = pair(4, 3, combine_out_splits=False)
    _, combined = pair(4, 3)
    x = torch.randn(5, IN)
    assert torch.equal(torch.cat(tiled(x), dim=-1), combined(x))


def test_extra_arguments_reach_every_tile():
    tiled = TiledLinear(IN, OUT, in_splits=2, out_splits=2, dtype=torch.float64)
    assert {parameter.dtype for parameter in tiled.parameters()} == {torch.float64}


class SkipBias(nn.Linear):
    """A linear that leaves its bias to the caller."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight), self.bias


@pytest.mark.parametrize(("in_splits", "out_splits"), SPLITS)
def test_a_bias_can_be_returned_instead_of_added(in_splits, out_splits):
    linear = nn.Linear(IN, OUT)
    tiled = TiledLinearReturnBias(
        IN, OUT, in_splits=in_splits, out_splits=out_splits, linear_cls=SkipBias, init_linear=linear
    )
    x = torch.randn(5, IN)
    output, bias = tiled(x)
    assert torch.equal(bias, linear.bias)
    assert_within_bound(output + bias, linear, x)


def test_returned_parts_stay_apart_with_their_biases():
    tiled = TiledLinearReturnBias(IN, OUT, out_splits=3, combine_out_splits=False, linear_cls=SkipBias)
    outputs, biases = tiled(torch.randn(5, IN))
    assert [part.shape[-1] for part in outputs] == [bias.numel() for bias in biases] == [6, 6, 5]


def test_without_a_bias_none_is_returned():
    tiled = TiledLinearReturnBias(IN, OUT, bias=False, in_splits=2, out_splits=3, linear_cls=SkipBias)
    assert tiled(torch.randn(5, IN))[1] is None


@pytest.mark.parametrize(("which", "value"), [("in", 0), ("in", IN + 1), ("out", -1), ("out", OUT + 1), ("out", 1.5)])
def test_splits_that_cannot_be_are_an_error(which, value):
    with pytest.raises(ConfigError, match=rf"{which}_splits must be a whole number from 1 to .*got {value}"):
        TiledLinear(IN, OUT, **{f"{which}_splits": value})


def test_a_linear_of_another_size_cannot_be_copied():
    with pytest.raises(ConfigError, match=r"shape \(17, 23\), got \(23, 17\)"):
        TiledLinear(IN, OUT, init_linear=nn.Linear(OUT, IN))


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_on_one_side_only_is_an_error(bias):
    with pytest.raises(ConfigError, match="make them agree"):
        TiledLinear(IN, OUT, bias, init_linear=nn.Linear(IN, OUT, bias=not bias))


@pytest.mark.parametrize("split", [True, False])
def test_an_input_of_the_wrong_kind_is_an_error(split):
    tiled = TiledLinear(IN, OUT, in_splits=2, input_is_already_split=split)
    x = torch.randn(5, IN)
    with pytest.raises(ConfigError, match="TiledLinear takes"):
        tiled(x if split else x.split(12, dim=-1))
