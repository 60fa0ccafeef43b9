"""Backward of a stage in two parts gives what one gives, and nothing of it twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ds_pipeline.runtime.backward import Ends, backward_inputs, backward_whole

WIDTH = 8


class Net(nn.Module):
    """Layers, a norm, attention, a reparametrised weight; `reused`: one layer is used twice."""

    def __init__(self, reused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))
        self.order = [0, 1, 0, 2] if reused else [0, 1, 2]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        for index in self.order:
            x = x + torch.tanh(self.linears[index](x))
        x = self.norm(x)
        x = x + self.attention(x, x, x)[0]
        return self.scaled(x), x.sum(-1), self.bias * 2  # the last does not depend on the input


def run(net: Net, backward: Callable[[Ends, list[torch.Tensor]], list[torch.Tensor]]) -> list[torch.Tensor]:
    """Gradients of the input and of every parameter."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, WIDTH, generator=generator, requires_grad=True)
    outputs = net(x)
    found = backward(Ends([x], outputs), [torch.randn(o.shape, generator=generator) for o in outputs])
    gradients = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    assert all(gradient is not None for gradient in gradients)
    return [*found, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("reused", [False, True])
def test_two_parts_are_the_whole_to_the_bit(reused: bool) -> None:
    net = Net(reused)

    def in_parts(ends: Ends, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        found, weights = backward_inputs(ends, gradients)
        assert all(parameter.grad is None for parameter in net.parameters())
        weights()
        return found

    whole = run(net, lambda ends, gradients: backward_whole(ends, gradients))
    parts = run(net, in_parts)
    assert all(torch.equal(one, two) for one, two in zip(whole, parts, strict=True))


def test_a_stage_without_inputs_does_all_in_the_second_part() -> None:
    linear = nn.Linear(WIDTH, WIDTH)
    found, weights = backward_inputs(Ends([], [linear(torch.ones(1, WIDTH)).sum()]), [None])
    assert found == []
    assert linear.weight.grad is None
    weights()
    assert torch.equal(linear.weight.grad, torch.ones(WIDTH, WIDTH))


def test_an_input_that_is_not_used_gets_zeros() -> None:
    used, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    for backward in (backward_whole, lambda ends, gradients: backward_inputs(ends, gradients)[0]):
        found = backward(Ends([used, unused], [(used * 2).sum()]), [None])
        assert [gradient.tolist() for gradient in found] == [[2.0] * 3, [0.0] * 2]


class Counted(torch.autograd.Function):
    """The identity; counts its backward passes."""

    calls = 0

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        Counted.calls += 1
        return gradient


def test_what_leads_to_the_inputs_runs_once() -> None:
    linears = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    x = y = torch.randn(4, WIDTH, requires_grad=True)
    for linear in linears:
        y = Counted.apply(linear(y))
    Counted.calls = 0
    _, weights = backward_inputs(Ends([x], [y]), [torch.ones_like(y)])
    weights()
    assert Counted.calls == 3
