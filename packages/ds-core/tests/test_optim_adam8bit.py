"""Adam with moments of a byte an element: the codes, the op, the optimizer, and how it trains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ds_core import ops
from ds_core.errors import ConfigError, OpError
from ds_core.ops._adam8bit import decode, encode, tree
from ds_core.optim.flat import FlatUpdate
from ds_core.optim.op_adam import OpAdam
from ds_core.optim.op_adam8bit import OpAdam8bit

# --- codes


@pytest.mark.parametrize("codes", [128, 256])
def test_a_tree_ascends_from_0_to_1_with_half_of_its_codes_in_the_uppermost_decade(codes: int) -> None:
    values = tree(codes)
    assert values[0] == 0 and values[-1] == 1 and (values.diff() > 0).all()
    decades = [int(((values > 10.0**-e * 0.1 * 1.0001) & (values <= 10.0**-e * 1.0001)).sum()) for e in range(6)]
    assert decades == [codes // 2 >> e for e in range(6)]


def test_codes_are_the_nearest() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) ** 5
    for signed, value in ((True, x), (False, x.abs())):
        codes, scales = encode(value, 256, signed=signed)
        found = decode(codes, scales, 256, signed=signed)
        scale = scales.repeat_interleave(256)[: x.numel()]
        grid = tree(128 if signed else 256)
        nearest = ((value.abs() / scale)[:, None] - grid).abs().amin(1)
        assert ((found.abs() - value.abs()).abs() <= nearest * scale * (1 + 1e-5) + scale * 1e-6).all()
        assert (found * value >= 0).all()


def test_decoded_values_encode_to_the_same_codes() -> None:
    x = torch.randn(9001, generator=torch.Generator().manual_seed(0)) ** 3
    for signed in (True, False):
        codes, scales = encode(x if signed else x.abs(), 2048, signed=signed)
        again, scales_again = encode(decode(codes, scales, 2048, signed=signed), 2048, signed=signed)
        assert torch.equal(codes, again) and torch.equal(scales, scales_again)


def test_the_largest_of_a_block_is_exact_and_one_outlier_spoils_one_block_only() -> None:
    x = torch.rand(1024, generator=torch.Generator().manual_seed(0)) + 0.5
    x[3] = 1e9
    found = decode(*encode(x, 256, signed=True), 256, signed=True)
    assert found[3] == x[3]
    torch.testing.assert_close(found[256:], x[256:], rtol=0.022, atol=0)  # half a step at a third of the largest


def test_what_is_not_finite_makes_its_block_nan_when_it_is_read() -> None:
    x = torch.ones(512)
    x[3] = float("inf")
    found = decode(*encode(x, 256, signed=True), 256, signed=True)
    assert found[:256].isnan().all() and torch.equal(found[256:], x[256:])


def test_blocks_of_subnormal_numbers_are_zero() -> None:
    codes, _ = encode(torch.full((256,), 1e-40), 256, signed=False)
    assert not codes.any()


# --- the op

HYPER: dict[str, Any] = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.05, "step": 1}


def test_the_first_step_is_adams() -> None:
    numel, generator = 5000, torch.Generator().manual_seed(0)
    p, g = (torch.randn(numel, generator=generator) for _ in range(2))
    ours, theirs = p.clone(), p.clone()
    codes = [torch.zeros(numel, dtype=torch.uint8) for _ in range(2)]
    ops.adam8bit_(ours, g, *codes, torch.zeros(3), torch.zeros(3), **HYPER)
    ops.adam_(theirs, g, torch.zeros(numel), torch.zeros(numel), **HYPER)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 1000}, "block_size must be one of 256, 512, 1024, 2048, 4096, got 1000"),
        ({"exp_avg": torch.zeros(5000)}, "exp_avg must be uint8, got float32"),
        ({"exp_avg_sq": torch.zeros(4999, dtype=torch.uint8)}, "exp_avg_sq must have 5000 elements, got 4999"),
        ({"exp_avg_scale": torch.zeros(2)}, "exp_avg_scale must have 3 elements, got 2"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    codes = {name: torch.zeros(5000, dtype=torch.uint8) for name in ("exp_avg", "exp_avg_sq")}
    scales = {name: torch.zeros(3) for name in ("exp_avg_scale", "exp_avg_sq_scale")}
    with pytest.raises(OpError, match=message):
        ops.adam8bit_(torch.zeros(5000), torch.zeros(5000), **{**codes, **scales, **HYPER, **change})


# --- the optimizer


def parameter(numel: int = 3000) -> nn.Parameter:
    return nn.Parameter(torch.randn(numel, generator=torch.Generator().manual_seed(0)))


def run(optimizer: torch.optim.Optimizer, param: nn.Parameter, steps: range) -> None:
    for step in steps:
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()


def test_states_take_two_bytes_an_element_and_eight_a_block() -> None:
    param = parameter(300_000)
    optimizer = OpAdam8bit([param], block_size=2048)
    run(optimizer, param, range(1))
    held = sum(value.nbytes for value in optimizer.state[param].values())
    assert held == 2 * 300_000 + 8 * 147 + 4  # and the step


def test_a_state_dict_continues_the_run_bit_for_bit() -> None:
    first, second = parameter(), parameter()
    begun, resumed = OpAdam8bit([first], lr=0.1), OpAdam8bit([second], lr=0.5)
    run(begun, first, range(3))
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    second.data.copy_(first.data)
    run(begun, first, range(3, 6))
    run(resumed, second, range(3, 6))
    assert torch.equal(first, second)


def test_float32_states_of_adam_are_taken_over() -> None:
    first, second = parameter(), parameter()
    begun, resumed = OpAdam([first]), OpAdam8bit([second])
    run(begun, first, range(3))
    resumed.load_state_dict(begun.state_dict())
    moment = resumed.unpack(second, "exp_avg", 0, second.numel())
    torch.testing.assert_close(moment, begun.state[first]["exp_avg"], rtol=0.5, atol=2e-3)
    assert float(resumed.state[second]["step"]) == 3


def test_states_in_blocks_of_another_size_are_refused() -> None:
    first = parameter()
    begun = OpAdam8bit([first], block_size=2048)
    run(begun, first, range(1))
    with pytest.raises(ConfigError, match="has 2 blocks, this optimizer's has 12: the block size must be"):
        OpAdam8bit([parameter()], block_size=256).load_state_dict(begun.state_dict())


@pytest.mark.parametrize("cuts", [(1024,), (100, 1500)], ids=["whole blocks", "within blocks"])
def test_flat_runs_equal_a_step_up_to_the_codes_of_shared_blocks(cuts: tuple[int, ...]) -> None:
    whole, flat = parameter(), parameter()
    first, second = OpAdam8bit([whole], lr=0.1, block_size=256), OpAdam8bit([flat], lr=0.1, block_size=256)
    for step in range(1, 4):
        whole.grad = torch.randn(3000, generator=torch.Generator().manual_seed(step))
        first.step()
        bounds = zip((0, *cuts), (*cuts, 3000), strict=True)
        second.step_flat([FlatUpdate(flat.data[a:b], whole.grad[a:b], None, a, 0, 0, step) for a, b in bounds])
    if cuts == (1024,):
        assert torch.equal(whole, flat)
    torch.testing.assert_close(flat, whole, rtol=0, atol=0.02)


def test_rollback_is_exact() -> None:
    param = parameter()
    optimizer = OpAdam8bit([param])
    run(optimizer, param, range(2))
    before = [param.detach().clone(), *(v.clone() for v in optimizer.state[param].values())]
    param.grad = torch.full_like(param, float("nan"))
    optimizer.step_subgroup(0)
    optimizer.rollback_subgroup(0)
    after = [param.detach(), *optimizer.state[param].values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_block_size_that_is_not_served_is_refused() -> None:
    with pytest.raises(ConfigError, match="state_block of Adam must be one of 256, 512"):
        OpAdam8bit([parameter()], block_size=100)


# --- training


class CharacterModel(nn.Module):
    """A small transformer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(128, 64)
        self.place = nn.Parameter(torch.randn(48, 64) * 0.02)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.block(self.embed(x) + self.place, src_mask=mask, is_causal=True))


def losses(make: Any, steps: int = 150) -> list[float]:
    model, generator = CharacterModel(), torch.Generator().manual_seed(0)
    text = torch.tensor(list(Path(__file__).read_bytes())).clamp(max=127)
    optimizer = make(model.parameters())
    found = []
    for _ in range(steps):
        starts = torch.randint(0, len(text) - 49, (16,), generator=generator)
        batch = torch.stack([text[s : s + 49] for s in starts])
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_it_trains_a_transformer_as_float32_states_do() -> None:
    ours = losses(lambda params: OpAdam8bit(params, lr=3e-3, block_size=256))
    theirs = losses(lambda params: OpAdam(params, lr=3e-3))
    ours_end, theirs_end = sum(ours[-10:]) / 10, sum(theirs[-10:]) / 10
    assert theirs_end < 0.7 * theirs[0]
    assert ours_end < theirs_end * 1.03
