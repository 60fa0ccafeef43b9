from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_core.errors import ConfigError, EngineError, OpError
from ds_core.optim.flat import FlatUpdate, supports_flat
from ds_core.optim.op_adam import OpAdam

SHAPES = ((7,), (64, 33), (5, 4, 3))


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


@pytest.mark.parametrize("adamw", [True, False])
def test_ten_steps_are_torchs(adamw: bool) -> None:
    ours, theirs = parameters(), parameters()
    run(OpAdam(ours, lr=1e-2, weight_decay=0.1, adamw=adamw), ours, range(10))
    kind = torch.optim.AdamW if adamw else torch.optim.Adam
    run(kind(theirs, lr=1e-2, weight_decay=0.1), theirs, range(10))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_states_are_named_and_shaped_as_torchs() -> None:
    params = parameters()
    optimizer = OpAdam(params)
    run(optimizer, params, range(3))
    state = optimizer.state_dict()["state"][1]
    assert sorted(state) == ["exp_avg", "exp_avg_sq", "step"]
    assert state["exp_avg"].shape == (64, 33) and float(state["step"]) == 3.0


@pytest.mark.parametrize("make", [OpAdam, torch.optim.AdamW])
def test_a_state_dict_of_ours_or_torchs_continues_the_run(make: Any) -> None:
    first = parameters()
    begun = make(first, lr=1e-2)
    run(begun, first, range(4))
    second = parameters()
    for param, value in zip(second, first, strict=True):
        param.data.copy_(value.data)
    resumed = OpAdam(second, lr=0.5)
    resumed.load_state_dict(begun.state_dict())
    run(begun, first, range(4, 8))
    run(resumed, second, range(4, 8))
    for got, want in zip(second, first, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fp32_states", [True, False])
def test_state_dtypes_survive_saving_and_loading(fp32_states: bool) -> None:
    params = parameters(torch.bfloat16)
    optimizer = OpAdam(params, fp32_states=fp32_states)
    run(optimizer, params, range(2))
    again = OpAdam(parameters(torch.bfloat16), fp32_states=fp32_states)
    again.load_state_dict(optimizer.state_dict())
    wanted = torch.float32 if fp32_states else torch.bfloat16
    for before, after in zip(params, again.param_groups[0]["params"], strict=True):
        assert again.state[after]["exp_avg"].dtype == wanted
        assert torch.equal(again.state[after]["exp_avg_sq"], optimizer.state[before]["exp_avg_sq"])
        assert again.state[after]["exp_avg"].data_ptr() != optimizer.state[before]["exp_avg"].data_ptr()


def test_parameters_without_gradient_are_left_alone() -> None:
    params = parameters()
    optimizer = OpAdam(params)
    give_gradients(params, 0)
    params[1].grad = None
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before) and params[1] not in optimizer.state


def test_parameters_and_gradients_with_other_strides() -> None:
    plain = torch.nn.Parameter(torch.randn(6, 9, generator=torch.Generator().manual_seed(0)))
    turned = torch.nn.Parameter(plain.detach().t().contiguous().t())
    grad = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    plain.grad, turned.grad = grad.clone(), grad.t().contiguous().t()
    for param in (plain, turned):
        OpAdam([param], lr=0.1).step()
    assert torch.equal(plain, turned) and not turned.is_contiguous()


def test_the_closures_loss_is_returned_with_grad_enabled() -> None:
    (param,) = params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = OpAdam(params, lr=0.1)

    def closure() -> torch.Tensor:
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (param < 1).all()


def test_a_schedule_moves_the_rate_and_a_tensor_serves_as_one() -> None:
    ours, theirs = parameters(), parameters()
    first, second = OpAdam(ours, lr=torch.tensor(1e-2)), torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0)
    for step in range(3):
        for optimizer, params in ((first, ours), (second, theirs)):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            run(optimizer, params, range(step, step + 1))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amsgrad": True}, "amsgrad of Adam must be false"),
        ({"lr": -1.0}, r"lr of Adam must be 0 or more, got -1\.0"),
        ({"betas": (0.9, 1.0)}, r"betas of Adam must be two numbers in \[0, 1\)"),
        ({"eps": -1e-8}, "eps of Adam must be 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay of Adam must be 0 or more"),
    ],
)
def test_hyperparameters_out_of_range_are_refused_also_in_a_group(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpAdam(parameters(), **wrong)
    with pytest.raises(ConfigError, match=message):
        OpAdam([{"params": parameters(), **wrong}])


def test_sparse_gradients_are_refused() -> None:
    table = torch.nn.Embedding(10, 4, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(EngineError, match=r"takes dense gradients, got torch\.sparse_coo"):
        OpAdam(table.parameters()).step()


# --- flat runs


def flat_parameter(numel: int = 100) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(numel, generator=torch.Generator().manual_seed(0)))


def runs_of(param: torch.nn.Parameter, grad: torch.Tensor, copy: torch.Tensor | None, *cuts: int) -> list[FlatUpdate]:
    bounds = list(zip((0, *cuts), (*cuts, param.numel()), strict=True))
    return [
        FlatUpdate(param.data[a:b], grad[a:b], None if copy is None else copy[a:b], a, 0, 0, step=1) for a, b in bounds
    ]


def test_it_serves_flat_runs() -> None:
    assert supports_flat(OpAdam(parameters()))


@pytest.mark.parametrize("seed", [-1, 5])
def test_cut_into_runs_with_low_precision_gradients_and_copies(seed: int) -> None:
    grad = torch.randn(100, generator=torch.Generator().manual_seed(1)).bfloat16()
    results = []
    for cuts in ((), (30, 31)):
        param = flat_parameter()
        param.data = param.data.bfloat16()
        copy = torch.zeros(100, dtype=torch.float16)
        optimizer = OpAdam([param], lr=1e-2)
        optimizer.step_flat(runs_of(param, grad, copy, *cuts), grad_factor=torch.tensor(0.25), rounding_seed=seed)
        state = optimizer.state[param]
        assert float(state["step"]) == 1.0
        results.append((param.detach(), state["exp_avg"], state["exp_avg_sq"], copy))
    for whole, cut in zip(*results, strict=True):
        assert torch.equal(whole, cut)
    torch.testing.assert_close(results[0][1], 0.1 * 0.25 * grad.float(), rtol=1e-5, atol=0)


def test_flat_runs_equal_step_on_the_same_gradient() -> None:
    grad = torch.randn(100, generator=torch.Generator().manual_seed(1))
    by_step, by_runs = flat_parameter(), flat_parameter()
    by_step.grad = grad
    first, second = OpAdam([by_step], lr=1e-2), OpAdam([by_runs], lr=1e-2)
    first.step()
    second.step_flat(runs_of(by_runs, grad, None, 17))
    assert torch.equal(by_step, by_runs)


def test_each_run_counts_its_own_steps() -> None:
    param = flat_parameter()
    optimizer = OpAdam([param], lr=1e-2)
    grad = torch.ones(100)
    early, late = runs_of(param, grad, None, 50)
    optimizer.step_flat([early, late._replace(step=1000)])
    moved = flat_parameter().detach() - param.detach()
    assert float(optimizer.state[param]["step"]) == 1000.0
    # 0.1 / (1 - 0.9 ** step) over sqrt(0.001 / (1 - 0.999 ** step)): 1 at step 1, 2.5 at step 1000
    assert moved[:50].mean().item() == pytest.approx(1e-2, rel=1e-3)
    assert moved[50:].mean().item() == pytest.approx(2.514e-2, rel=1e-2)


def test_parameters_draw_different_random_bits() -> None:
    params = [torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = OpAdam(params, lr=1e-3)
    grad = torch.ones(1000)
    optimizer.step_flat(
        [FlatUpdate(p.data, grad, None, 0, 0, index, 1) for index, p in enumerate(params)], rounding_seed=1
    )
    assert not torch.equal(params[0], params[1])


def test_a_run_outside_of_its_parameter_is_refused() -> None:
    param = flat_parameter()
    (update,) = runs_of(param, torch.ones(100), None)
    with pytest.raises(OpError, match="elements 1 to 101 does not lie within parameter 0 of group 0, which has 100"):
        OpAdam([param]).step_flat([update._replace(state_offset=1)])
