"""Optimizers by name: selection among plugins, translation of DeepSpeed's parameters, and errors that help."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from ds_core.errors import ConfigError, MissingWheelError, ModelError, PluginConflictError
from ds_core.hooks import OptimizerEntry
from ds_core.optim import create, is_elementwise
from ds_core.optim.registry import ENTRIES


@dataclasses.dataclass(frozen=True)
class FakeRecord:
    id: str


@dataclasses.dataclass(frozen=True)
class FakeProvided:
    item: OptimizerEntry
    record: FakeRecord


class FakeManager:
    """Stands for the plugin manager: core's own entries and what a test adds."""

    def __init__(self, *extra: tuple[str, OptimizerEntry]) -> None:
        core = [FakeProvided(entry, FakeRecord("ds-core:builtin")) for entry in ENTRIES]
        self.provided = core + [FakeProvided(entry, FakeRecord(plugin)) for plugin, entry in extra]

    def collect(self, hook: str) -> list[FakeProvided]:
        assert hook == "ds_optimizers"
        return self.provided


class NativeAdamW(torch.optim.SGD):
    """A plugin's optimizer."""


def native_adamw(param_groups: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return NativeAdamW(param_groups, lr=lr)


HERE = __name__
MANAGER: Any = FakeManager()


def params(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes or ((3, 4), (5,))]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def built(name: str, given: Any = None, **wanted: Any) -> torch.optim.Optimizer:
    return create(name, params() if given is None else given, wanted, manager=MANAGER).optimizer


def after_steps(optimizer: torch.optim.Optimizer, steps: int = 3) -> list[torch.Tensor]:
    for _ in range(steps):
        optimizer.step()
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_listed_name_builds_and_updates(entry: OptimizerEntry) -> None:
    before = params()
    optimizer, chosen = create(entry.name.upper(), (p for p in params()), {"lr": 0.1}, manager=MANAGER)
    assert chosen is entry
    changed = after_steps(optimizer)
    moved = {tuple(p.shape): p for p in changed}
    assert all(not torch.equal(moved[tuple(p.shape)], p) for p in before)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.elementwise], ids=lambda entry: entry.name)
def test_elementwise_means_a_flat_shard_gives_the_same_numbers(entry: OptimizerEntry) -> None:
    whole, flat = params((3, 4)), params((3, 4))
    shards = [torch.nn.Parameter(part.clone()) for part in flat[0].detach().flatten().split(7)]
    assert flat[0].grad is not None
    for shard, grad in zip(shards, flat[0].grad.flatten().split(7), strict=True):
        shard.grad = grad.clone()
    expected = after_steps(built(entry.name, whole, lr=0.1))[0].flatten()
    assert torch.equal(torch.cat(after_steps(built(entry.name, shards, lr=0.1))), expected)


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_what_is_not_elementwise_says_so(name: str) -> None:
    assert not create(name, params(), {"lr": 0.1}, manager=MANAGER).entry.elementwise


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_fused_kernel_is_used_where_there_is_one(name: str, dtype: torch.dtype) -> None:
    optimizer = create(name, params(dtype=dtype), {"lr": 0.1}, manager=MANAGER).optimizer
    assert optimizer.param_groups[0]["fused"] is True
    optimizer.step()


@pytest.mark.parametrize("choice", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
def test_a_config_that_chooses_the_kernel_is_obeyed(choice: dict[str, bool]) -> None:
    group = built("AdamW", lr=0.1, **choice).param_groups[0]
    assert not group["fused"]
    assert all(group[key] == value for key, value in choice.items())


def test_adam_decouples_weight_decay_as_deepspeed_does_by_default() -> None:
    expected = after_steps(torch.optim.AdamW(params(), lr=0.1, weight_decay=0.3, fused=True))
    coupled = after_steps(torch.optim.Adam(params(), lr=0.1, weight_decay=0.3, fused=True))
    got = after_steps(built("Adam", lr=0.1, weight_decay=0.3))
    off = after_steps(built("Adam", lr=0.1, weight_decay=0.3, adam_w_mode=False))
    assert all(map(torch.equal, got, expected))
    assert all(map(torch.equal, off, coupled))
    assert not torch.equal(got[0], off[0])


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_weight_decay_left_out_is_zero(name: str) -> None:
    assert built(name, lr=0.1).param_groups[0]["weight_decay"] == 0.0


def test_adamw_cannot_be_coupled() -> None:
    with pytest.raises(ConfigError, match="use type Adam with false"):
        built("AdamW", adam_w_mode=False)


def test_bias_correction_off_is_refused_by_torch() -> None:
    assert type(built("AdamW", bias_correction=True)) is torch.optim.AdamW
    with pytest.raises(ConfigError, match=r"optimizer\.params\.bias_correction can not be false"):
        built("AdamW", bias_correction=False)


def test_fp32_states_are_refused_when_the_parameters_that_step_are_not_fp32() -> None:
    low = create("AdamW", params(dtype=torch.bfloat16), {"fp32_optimizer_states": True}, manager=MANAGER).optimizer
    with pytest.raises(ConfigError, match=r"fp32_optimizer_states cannot be true.*bfloat16"):
        low.step()
    masters = create("AdamW", params(dtype=torch.bfloat16), {"fp32_optimizer_states": True}, manager=MANAGER).optimizer
    masters.param_groups[0]["params"] = params()
    masters.step()
    assert {state["exp_avg"].dtype for state in masters.state.values()} == {torch.float32}


def test_json_lists_become_the_tuples_torch_wants() -> None:
    assert built("AdamW", betas=[0.8, 0.99], lr=1).param_groups[0]["betas"] == (0.8, 0.99)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("AdamW", {"lr": "1e-3"}, r"optimizer\.params\.lr of AdamW must be a number.*got '1e-3'"),
        ("AdamW", {"lr": True}, r"lr of AdamW must be a number"),
        ("AdamW", {"betas": [0.9]}, r"betas of AdamW must be a list of 2 values"),
        ("AdamW", {"lr": float("nan")}, r"lr of AdamW must be a number"),
        ("AdamW", {"amsgrad": 1}, r"amsgrad of AdamW must be true or false, got 1"),
        ("AdamW", {"lr": -1.0}, r"optimizer\.params of AdamW: Invalid learning rate: -1\.0"),
        ("AdamW", {"wieght_decay": 0.1}, r"wieght_decay is not a parameter of AdamW\. Did you mean 'weight_decay'\?"),
        ("Adam", {"adam_w_mode": "yes"}, r"adam_w_mode of Adam must be true or false, got 'yes'"),
        ("AdamW", {"torch_adam": 1}, r"torch_adam must be true or false, got 1"),
        ("SGD", {"torch_adam": True}, r"torch_adam is not a parameter of SGD.*Allowed: .*momentum"),
        ("SGD", {"betas": [0.9, 0.99]}, r"betas is not a parameter of SGD"),
        ("SGD", {"nesterov": True}, r"optimizer\.params of SGD: Nesterov momentum"),
        ("Muon", {"ns_steps": 0}, r"ns_steps of Muon must be from 1 to 99, got 0"),
        ("Muon", {"ns_method": "cubic"}, r"ns_method of Muon must be one of 'gram', 'standard', got 'cubic'"),
        ("AdamW", {"max_grad_norm": 1.0}, r"max_grad_norm .*set gradient_clipping at the top level"),
        ("AdamW", {"legacy_fusion": True}, r"legacy_fusion .*Remove it"),
    ],
)
def test_wrong_parameters_are_named(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create(name, params(), given, manager=MANAGER)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("OneBitAdam", MissingWheelError, r"ds-onebit.*not released yet.*pip install ds-onebit"),
        ("zerooneadam", MissingWheelError, r"'ZeroOneAdam' comes with the wheel ds-onebit"),
        ("OneBitLamb", MissingWheelError, "ds-onebit"),
        ("MuAdam", ConfigError, r"package mup .*optimizer="),
        ("LBFGS", ConfigError, "evaluates the loss several times"),
        ("SparseAdam", ConfigError, "sparse gradients only"),
        ("AdmaW", ConfigError, r"'AdmaW' is not known\. Did you mean 'AdamW'\? Installed: ASGD, Adadelta"),
    ],
)
def test_names_that_cannot_be_had_say_why(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create(name, params(), {}, manager=MANAGER)


def test_a_torch_class_that_is_not_listed_is_built_but_not_taken_for_elementwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fancy(torch.optim.SGD):
        pass

    monkeypatch.setattr(torch.optim, "Fancy", Fancy, raising=False)
    optimizer, entry = create("fancy", params(), {}, manager=MANAGER)
    assert type(optimizer) is Fancy
    assert not entry.elementwise


def native(device_types: tuple[str, ...], priority: int) -> OptimizerEntry:
    return OptimizerEntry("AdamW", f"{HERE}:native_adamw", device_types, priority)


def test_the_highest_priority_on_the_device_wins() -> None:
    manager: Any = FakeManager(("ds-accel-x:x", native(("cpu",), 10)))
    assert isinstance(create("adamw", params(), {}, "cpu", manager).optimizer, NativeAdamW)
    assert type(create("adamw", params(), {}, "xpu", manager).optimizer) is torch.optim.AdamW
    forced = create("adamw", params(), {"torch_adam": True}, "cpu", manager).optimizer
    assert type(forced) is torch.optim.AdamW
    with pytest.raises(ConfigError, match=r"betas is not a parameter of AdamW.*Allowed: lr\."):
        create("adamw", params(), {"betas": [0.9, 0.99]}, "cpu", manager)


def test_equal_priorities_are_a_conflict_that_names_both() -> None:
    manager: Any = FakeManager(("one:a", native(("cpu",), 10)), ("two:b", native((), 10)))
    with pytest.raises(PluginConflictError, match=r"one:a .* and two:b .*DS_PLUGINS_DISABLE=two:b"):
        create("AdamW", params(), {}, "cpu", manager)
    assert type(create("SGD", params(), {}, "cpu", manager).optimizer) is torch.optim.SGD


def test_a_name_without_an_implementation_for_the_device_says_which_it_serves() -> None:
    entry = OptimizerEntry("Special", f"{HERE}:native_adamw", ("xpu",))
    manager: Any = FakeManager(("one:a", entry))
    with pytest.raises(ConfigError, match=r"no implementation for device type 'cpu'; installed ones serve xpu"):
        create("special", params(), {}, "cpu", manager)


def test_nothing_to_optimize_is_an_error() -> None:
    nothing: list[list[Any]] = [[], [{"params": []}]]
    for given in nothing:
        with pytest.raises(ModelError, match="no parameters"):
            create("AdamW", given, {}, manager=MANAGER)
    with pytest.raises(ModelError, match="takes tensors"):
        create("AdamW", ["weight"], {}, manager=MANAGER)


def test_groups_and_names_are_kept_and_the_callers_lists_are_left_alone() -> None:
    first, second = params()
    given = [{"params": [("a", first)], "lr": 0.5}, {"params": (x for x in [("b", second)]), "weight_decay": 0.1}]
    optimizer = create("AdamW", given, {"lr": 0.1}, manager=MANAGER).optimizer
    assert [(g["lr"], g["weight_decay"], g["param_names"]) for g in optimizer.param_groups] == [
        (0.5, 0.0, ["a"]),
        (0.1, 0.1, ["b"]),
    ]
    assert given[0] == {"params": [("a", first)], "lr": 0.5}


def test_is_elementwise_knows_exactly_torchs_own_classes() -> None:
    class Mine(torch.optim.AdamW):
        pass

    assert is_elementwise(torch.optim.RMSprop(params())) is True
    assert is_elementwise(torch.optim.Adafactor(params())) is False
    assert is_elementwise(Mine(params())) is None


def test_an_optimizer_that_takes_flat_runs_is_elementwise() -> None:
    class Flat(torch.optim.AdamW):
        def step_flat(self, updates: Any, *, grad_factor: Any = None, rounding_seed: int = -1) -> None: ...

    assert is_elementwise(Flat(params())) is True


def test_the_installed_plugins_are_used_by_default() -> None:
    assert type(create("RMSprop", params(), {"lr": 0.1}).optimizer) is torch.optim.RMSprop
