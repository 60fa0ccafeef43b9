"""Random constructors: whatever they do to their tensors, and however it is replayed, the values are the plain ones."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from ds_zero.construct import Recording

SIZE = 24


def make(choose: random.Random, tensors: list[torch.Tensor]) -> None:
    kind = choose.randrange(5)
    if kind == 0:
        tensors.append(torch.randn(4, 6))
    elif kind == 1:
        tensors.append(torch.empty(4, 6).zero_())
    elif kind == 2:
        tensors.append(torch.rand(6, 4).t())
    elif kind == 3:
        tensors.append(torch.arange(SIZE, dtype=torch.float32).reshape(4, 6))
    else:
        tensors.append(torch.tensor([[float(i + j) for i in range(6)] for j in range(4)]))


def look(choose: random.Random, tensors: list[torch.Tensor]) -> torch.Tensor:
    """A tensor or a view of one; always two-dimensional."""
    tensor = choose.choice(tensors)
    kind = choose.randrange(5)
    if kind == 0:
        return tensor[1:3]
    if kind == 1:
        return tensor[:, ::2]
    if kind == 2:
        return tensor.t()
    return tensor


def write(choose: random.Random, tensors: list[torch.Tensor]) -> None:
    target, source = look(choose, tensors), look(choose, tensors)
    kind = choose.randrange(8)
    if kind == 0:
        target.normal_()
    elif kind == 1:
        target.uniform_(-1, 1)
    elif kind == 2:
        target.fill_(choose.random())
    elif kind == 3 and target.shape == source.shape:
        target.copy_(source.clone())
    elif kind == 4:
        target.mul_(0.5)
    elif kind == 5:
        target.add_(source.mean())
    elif kind == 6:
        tensors.append(target + source.sum() if target.shape == (4, 6) else torch.ones(4, 6) * source.max())
    else:
        target.bernoulli_(0.4)


def other(choose: random.Random, tensors: list[torch.Tensor], seen: list[float]) -> None:
    kind = choose.randrange(6)
    if kind == 0:
        seen.append(look(choose, tensors).sum().item())
    elif kind == 1:
        torch.manual_seed(choose.randrange(100))
    elif kind == 2 and len(tensors) > 2:
        tensors.pop(choose.randrange(len(tensors)))
    elif kind == 3:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(choose.randrange(100))
            write(choose, tensors)
    elif kind == 4:
        tensors[choose.randrange(len(tensors))] = choose.choice(tensors).clone()


class Program(nn.Module):
    """A constructor of random steps; what is left in the end becomes parameters, buffers and plain tensors."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        tensors: list[torch.Tensor] = []
        self.seen: list[float] = []
        make(choose, tensors)
        for _ in range(choose.randrange(5, 40)):
            kind = choose.random()
            if kind < 0.2:
                make(choose, tensors)
            elif kind < 0.85:
                write(choose, tensors)
            else:
                other(choose, tensors, self.seen)
        self.plain = tensors[2::3]
        for index, tensor in enumerate(tensors):
            if index % 3 == 0:
                self.register_parameter(f"p{index}", nn.Parameter(tensor))
            elif index % 3 == 1:
                self.register_buffer(f"b{index}", tensor)


@pytest.mark.parametrize("block", range(4))
def test_random_constructors_are_replayed_bit_for_bit(block):
    for seed in range(60 * block, 60 * block + 60):
        torch.manual_seed(1)
        expected = Program(seed)
        state = torch.get_rng_state()
        torch.manual_seed(1)
        with Recording() as recording:
            model = Program(seed)
        values = {parameter: value.clone() for parameter, value in recording.replay()}
        assert torch.equal(torch.get_rng_state(), state), seed
        assert model.seen == expected.seen, seed
        for name, parameter in expected.named_parameters():
            assert torch.equal(values[model.get_parameter(name)], parameter), (seed, name)
        for name, buffer in expected.named_buffers():
            assert torch.equal(model.get_buffer(name), buffer), (seed, name)
        assert all(map(torch.equal, model.plain, expected.plain)), seed
