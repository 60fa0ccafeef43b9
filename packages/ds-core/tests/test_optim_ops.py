"""Optimizers made of one op: they are torch's, in results, states, groups and schedules; and steps can be undone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_core.errors import ConfigError, EngineError
from ds_core.optim.flat import FlatUpdate, supports_flat
from ds_core.optim.op_adagrad import OpAdagrad
from ds_core.optim.op_adam import OpAdam
from ds_core.optim.op_base import OpOptimizer
from ds_core.optim.op_lion import OpLion
from ds_core.optim.op_sgd import OpSGD

SHAPES = ((7,), (64, 33), (5, 4, 3), ())
EVERY: list[Callable[..., OpOptimizer]] = [OpAdam, OpAdagrad, OpLion, OpSGD]
ids = [make.__name__ for make in EVERY]  # type: ignore[attr-defined]


def momentum(params: Any, **options: Any) -> OpSGD:
    return OpSGD(params, **{"momentum": 0.9, **options})


WITH_STATE = [OpAdam, OpAdagrad, OpLion, momentum]
with_state = pytest.mark.parametrize("make", WITH_STATE, ids=["OpAdam", "OpAdagrad", "OpLion", "OpSGD"])


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


PAIRS = [
    (OpSGD, torch.optim.SGD, {"lr": 0.1}),
    (OpSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    (OpSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (OpAdagrad, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1}),
    (OpAdagrad, torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5, "maximize": True}),
]


@pytest.mark.parametrize(("ours", "torchs", "options"), PAIRS)
def test_ten_steps_are_torchs(ours: Any, torchs: Any, options: dict[str, Any]) -> None:
    first, second = parameters(), parameters()
    run(ours(first, **options), first, range(10))
    run(torchs(second, **options), second, range(10))
    for got, want in zip(first, second, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("ours", "torchs", "options"), PAIRS)
@pytest.mark.parametrize("direction", ["from torch", "to torch", "to ours"])
def test_state_dicts_are_interchangeable_with_torchs(
    ours: Any, torchs: Any, options: dict[str, Any], direction: str
) -> None:
    make_first, make_second = {"from torch": (torchs, ours), "to torch": (ours, torchs), "to ours": (ours, ours)}[
        direction
    ]
    first = parameters()
    begun = make_first(first, **options)
    run(begun, first, range(3))
    second = parameters()
    for param, value in zip(second, first, strict=True):
        param.data.copy_(value.data)
    resumed = make_second(second, **{**options, "lr": 5.0})
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))  # torch's classes share what they are given
    run(begun, first, range(3, 6))
    run(resumed, second, range(3, 6))
    for got, want in zip(second, first, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@with_state
@pytest.mark.parametrize("fp32_states", [True, False])
def test_states_have_their_dtype_also_after_loading(make: Any, fp32_states: bool) -> None:
    params = parameters(torch.bfloat16)
    optimizer = make(params, fp32_states=fp32_states)
    run(optimizer, params, range(2))
    again = make(parameters(torch.bfloat16), fp32_states=fp32_states)
    again.load_state_dict(optimizer.state_dict())
    wanted = torch.float32 if fp32_states else torch.bfloat16
    for before, after in zip(params, again.param_groups[0]["params"], strict=True):
        for key in optimizer.state_names():
            assert again.state[after][key].dtype == wanted
            assert torch.equal(again.state[after][key], optimizer.state[before][key])


@pytest.mark.parametrize("make", EVERY, ids=ids)
def test_groups_added_later_schedules_and_closures_work_as_torchs(make: Any) -> None:
    late, (param, *_) = torch.nn.Parameter(torch.ones(3)), parameters()
    optimizer = make([param], lr=0.5)
    optimizer.add_param_group({"params": [late], "lr": 0.0})
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = param.square().sum() + late.square().sum()
        loss.backward()
        return loss

    before = param.detach().clone()
    assert optimizer.step(closure).requires_grad
    assert not torch.equal(param, before) and torch.equal(late, torch.ones(3))
    schedule.step()
    before = param.detach().clone()
    optimizer.step(closure)
    assert torch.equal(param, before)


@with_state
def test_flat_runs_equal_steps_on_whole_parameters(make: Any) -> None:
    whole, flat = (torch.nn.Parameter(torch.linspace(-1, 1, 101)) for _ in range(2))
    first, second = make([whole], lr=0.1), make([flat], lr=0.1)
    assert supports_flat(second)
    for step in range(1, 4):
        whole.grad = torch.sin(torch.arange(101.0) * step)
        first.step()
        bounds = ((0, 30), (30, 31), (31, 101))
        runs = [FlatUpdate(flat.data[a:b], whole.grad[a:b] * 8, None, a, 0, 0, step) for a, b in bounds]
        second.step_flat(runs, grad_factor=torch.tensor(1 / 8))
    assert torch.equal(whole, flat)


def test_a_schedule_may_follow_a_flat_step() -> None:
    flat = torch.nn.Parameter(torch.ones(4))
    optimizer = OpLion([flat], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step_flat([FlatUpdate(flat.data, torch.ones(4), None, 0, 0, 0, 1)])
    schedule.step()  # a warning, and so an error here, if torch believes that there was no step


# --- sparse gradients


def embedding(sparse: bool) -> torch.nn.Embedding:
    torch.manual_seed(0)
    return torch.nn.Embedding(20, 3, sparse=sparse)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad makes sparse tensors
def test_adagrad_takes_sparse_gradients_as_torchs_does() -> None:
    ours, theirs = embedding(True), embedding(True)
    first, second = OpAdagrad(ours.parameters(), lr=0.1), torch.optim.Adagrad(theirs.parameters(), lr=0.1)
    for rows in ([1, 2, 2, 7], [2, 19], []):
        for table, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            table(torch.tensor(rows, dtype=torch.long)).square().sum().backward()
            optimizer.step()
        assert ours.weight.grad is not None and ours.weight.grad.is_sparse
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(first.state[ours.weight]["sum"], second.state[theirs.weight]["sum"])


def test_adagrad_refuses_decay_with_sparse_gradients() -> None:
    table = embedding(True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(EngineError, match=r"weight_decay 0\.1 with a sparse gradient"):
        OpAdagrad(table.parameters(), weight_decay=0.1).step()


@pytest.mark.parametrize("make", [OpLion, OpSGD])
def test_others_refuse_sparse_gradients(make: Any) -> None:
    table = embedding(True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(EngineError, match=r"takes dense gradients, got torch\.sparse_coo"):
        make(table.parameters()).step()


# --- sub-groups


def snapshot(optimizer: OpOptimizer, params: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    found = [param.detach().clone() for param in params]
    for param in params:
        found += [value.clone() for _, value in sorted(optimizer.state.get(param, {}).items())]
    return found


def same_bits(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )


@with_state
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_rolled_back_step_never_was_not_even_after_an_overflow(
    make: Any, dtype: torch.dtype, steps_before: int
) -> None:
    params = parameters(dtype)
    optimizer = make(params, lr=0.1, weight_decay=0.1)
    run(optimizer, params, range(steps_before))
    before = snapshot(optimizer, params)
    for index, param in enumerate(params):
        param.grad = torch.full_like(param, float("inf"))
        optimizer.step_subgroup(index)
    assert not same_bits(snapshot(optimizer, params), before)
    for index in range(len(params)):
        optimizer.rollback_subgroup(index)
    assert same_bits(snapshot(optimizer, params), before)


@with_state
def test_sub_groups_stepped_one_by_one_are_a_step(make: Any) -> None:
    whole, parts = parameters(), parameters()
    first, second = make(whole, lr=0.1), make([{"params": parts[:2]}, {"params": parts[2:]}], lr=0.1)
    run(first, whole, range(1))
    for ours, theirs in zip(parts, whole, strict=True):
        ours.grad = theirs.grad
    for index in (3, 0, 2, 1):
        second.step_subgroup(index)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_undoing_costs_a_copy_until_it_is_given_up() -> None:
    (_, param, *_) = params = parameters()
    optimizer = OpAdam(params)
    run(optimizer, params, range(1))
    optimizer.step_subgroup(1)
    assert optimizer.journal.nbytes == 3 * param.nbytes + 4  # the parameter, two moments and the step
    optimizer.commit_subgroup()
    assert optimizer.journal.nbytes == 0
    with pytest.raises(EngineError, match="sub-group 1 has no update that can be rolled back"):
        optimizer.rollback_subgroup(1)


def test_a_step_is_undone_once_and_a_sub_group_must_exist() -> None:
    params = parameters()
    optimizer = OpSGD(params)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step_subgroup(0)
    optimizer.rollback_subgroup(0)
    with pytest.raises(EngineError, match="rolled back or committed already"):
        optimizer.rollback_subgroup(0)
    for wrong in (-1, 4):
        with pytest.raises(EngineError, match=f"no sub-group {wrong}: this optimizer updates 4 tensors"):
            optimizer.step_subgroup(wrong)


# --- ranges


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (OpLion, {"betas": (0.9, 1.0)}, r"betas of Lion must be two numbers in \[0, 1\)"),
        (OpLion, {"lr": -1.0}, r"lr of Lion must be 0 or more, got -1\.0"),
        (OpAdagrad, {"lr_decay": -1.0}, "lr_decay of Adagrad must be 0 or more"),
        (OpAdagrad, {"initial_accumulator_value": -1.0}, "initial_accumulator_value of Adagrad"),
        (OpSGD, {"momentum": -0.1}, "momentum of SGD must be 0 or more"),
        (OpSGD, {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    ],
)
def test_hyperparameters_out_of_range_are_refused_also_in_a_group(make: Any, wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(parameters(), **wrong)
    with pytest.raises(ConfigError, match=message):
        make([{"params": parameters(), **wrong}])
