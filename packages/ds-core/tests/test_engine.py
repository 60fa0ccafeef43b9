"""The engine in one process: the numbers of a hand-written loop, in every way it can be driven."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import ds_core
from ds_core.errors import ConfigError, DataError, EngineError, ModelError

STEPS = 4


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 3))


def batches(count: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 7, generator=generator) for _ in range(count)]


def config(**changes):
    base = {
        "train_micro_batch_size_per_gpu": 5,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "torch_adam": True}},
        "gradient_clipping": 0.0,
    }
    return {**base, **changes}


def engine_for(model: nn.Module, **changes):
    return ds_core.initialize(model=model, config=config(**changes))[0]


def hand_written(accumulation: int = 1, clip: float = 0.0, losses: int = 1) -> tuple[nn.Module, float]:
    model, norm = make_model(), 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    data = iter(batches(STEPS * accumulation))
    for _ in range(STEPS):
        for _ in range(accumulation):
            out = model(next(data))
            for power in range(losses):
                ((out ** (2 + power)).mean() / accumulation).backward(retain_graph=power + 1 < losses)
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
        optimizer.step()
        optimizer.zero_grad()
    return model, norm


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), (_, b) in zip(left.named_parameters(), right.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("plain_backward", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_parameters_equal_a_hand_written_loop_bit_for_bit(accumulation, plain_backward):
    # A plain loss.backward() is scaled where gradients enter the module instead of at the loss; the two round alike
    # when the factor is a power of two.
    expected, norm = hand_written(accumulation)
    model = make_model()
    engine = engine_for(model, gradient_accumulation_steps=accumulation)
    for x in batches(STEPS * accumulation):
        loss = (engine(x) ** 2).mean()
        if plain_backward:
            loss.backward()
        else:
            engine.backward(loss)
        engine.step()
    if plain_backward and accumulation == 3:
        for a, b in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    else:
        assert_same(model, expected)
    assert engine.global_steps == STEPS
    assert engine.micro_steps == STEPS * accumulation
    assert engine.global_samples == STEPS * accumulation * 5
    assert engine.get_global_grad_norm() == pytest.approx(norm, rel=1e-6)


def test_several_losses_and_backwards_in_a_step_add_up():
    expected, _ = hand_written(accumulation=2, losses=3)
    model = make_model()
    engine = engine_for(model, gradient_accumulation_steps=2)
    for x in batches(STEPS * 2):
        out = engine(x)
        for power in range(3):
            engine.backward((out ** (2 + power)).mean(), retain_graph=power < 2)
        engine.step()
    assert_same(model, expected)


def test_clipping_scales_the_update_as_torch_does():
    expected, norm = hand_written(clip=0.05)
    model = make_model()
    engine = engine_for(model, gradient_clipping=0.05)
    for x in batches(STEPS):
        engine.backward((engine(x) ** 2).mean())
        engine.step()
    assert engine.get_global_grad_norm() == pytest.approx(norm, rel=1e-6)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-7)


def test_train_batch_runs_all_micro_batches_and_returns_the_mean_loss():
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.inner(x) ** 2).mean()}

    expected, _ = hand_written(accumulation=2)
    model = WithLoss()
    engine = engine_for(model, gradient_accumulation_steps=2)
    data = iter(batches(STEPS * 2))
    first = engine.train_batch(data)
    reference = make_model()
    assert first.item() == pytest.approx(sum((reference(x) ** 2).mean().item() for x in batches(2)) / 2, rel=1e-6)
    for _ in range(STEPS - 1):
        engine.train_batch(data)
    assert_same(model.inner, expected)
    with pytest.raises(DataError, match="ended inside a step"):
        engine.train_batch(data)


def test_eval_batch_changes_nothing():
    model = nn.Sequential(nn.Linear(7, 3), nn.Dropout(0.5))
    engine = engine_for(_Loss(model))
    before = [p.clone() for p in model.parameters()]
    a, b = engine.eval_batch(itertools.repeat(batches(1)[0])), engine.eval_batch(itertools.repeat(batches(1)[0]))
    assert a.item() == b.item()
    assert not a.requires_grad
    assert engine.module.training
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


class _Loss(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.inner(x) ** 2).mean()


def test_unused_parameter_is_left_alone_and_keeps_its_step_count():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.always, self.sometimes = nn.Linear(7, 7), nn.Linear(7, 7)

        def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
            return self.sometimes(self.always(x)) if both else self.always(x)

    expected, model = Sometimes(), Sometimes()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    for native in (True, False):
        model, expected = Sometimes(), Sometimes()
        optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
        params = {"lr": 1e-2, "weight_decay": 0.1, **({} if native else {"torch_adam": True})}
        engine = engine_for(model, optimizer={"type": "AdamW", "params": params})
        for index, x in enumerate(batches(5)):
            both = index in (1, 4)
            (expected(x, both) ** 2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            engine.backward((engine(x, both) ** 2).mean())
            engine.step()
        for a, b in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0 if not native else 1e-6)


def test_a_caller_s_optimizer_stays_the_same_object_over_the_same_parameters():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine, handle, _, _ = ds_core.initialize(model=model, optimizer=optimizer, config=config(optimizer=None))
    assert handle.optimizer is optimizer
    own = {id(p) for p in model.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == own
    engine.backward((engine(batches(1)[0]) ** 2).mean())
    engine.step()
    assert engine.was_step_applied()
    assert engine.get_mom() == [0.9]


def test_an_optimizer_may_be_a_callable_and_a_scheduler_too():
    model = make_model()
    engine, handle, _, scheduler = ds_core.initialize(
        model=model,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        lr_scheduler=lambda opt: torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5),
        config=config(optimizer=None),
    )
    rates = []
    for x in batches(3):
        rates.append(engine.get_lr()[0])
        engine.backward((engine(x) ** 2).mean())
        engine.step()
    assert rates == [1.0, 0.5, 0.25]
    assert scheduler.get_last_lr() == [0.125]
    assert handle.param_groups[0]["lr"] == 0.125


def test_parameter_groups_keep_their_own_hyperparameters():
    model = make_model()
    groups = [{"params": [model[0].weight], "lr": 0.5}, {"params": [model[0].bias, *model[2].parameters()]}]
    engine = ds_core.initialize(
        model=model, model_parameters=groups, config=config(optimizer={"type": "SGD", "params": {"lr": 0.1}})
    )[0]
    expected = make_model()
    plain = torch.optim.SGD(
        [{"params": [expected[0].weight], "lr": 0.5}, {"params": [expected[0].bias, *expected[2].parameters()]}], lr=0.1
    )
    for x in batches(2):
        engine.backward((engine(x) ** 2).mean())
        engine.step()
        (expected(x) ** 2).mean().backward()
        plain.step()
        plain.zero_grad()
    assert engine.get_lr() == [0.5, 0.1]
    assert_same(model, expected)


def test_frozen_parameters_do_not_move_and_tied_ones_move_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.embed, self.middle, self.head = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 7)
            self.head.weight = self.embed.weight
            self.middle.weight.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.embed(x)))

    model, expected = Tied(), Tied()
    optimizer = torch.optim.AdamW(
        [p for p in expected.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0, fused=True
    )
    engine = engine_for(model, optimizer={"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}})
    for x in batches(3):
        engine.backward((engine(x) ** 2).mean())
        engine.step()
        (expected(x) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(model, expected)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.middle.weight, Tied().middle.weight)


def test_parameters_outside_the_optimizer_do_not_pile_up_gradients():
    model = make_model()
    engine = ds_core.initialize(model=model, model_parameters=model[2].parameters(), config=config())[0]
    for x in batches(2):
        engine.backward((engine(x) ** 2).mean())
        assert model[0].weight.grad is not None
        engine.step()
        assert model[0].weight.grad is None
    assert torch.equal(model[0].weight, make_model()[0].weight)


def test_boundary_can_be_set_by_hand_and_unmanaged_steps_always_update():
    engine = engine_for(make_model(), gradient_accumulation_steps=3)
    assert not engine.is_gradient_accumulation_boundary()
    engine.set_gradient_accumulation_boundary(True)
    engine.backward((engine(batches(1)[0]) ** 2).mean())
    engine.step()
    assert engine.global_steps == 1
    free = engine_for(make_model(), gradient_accumulation_steps=3, managed_gradient_accumulation=False)
    free.backward((free(batches(1)[0]) ** 2).mean(), scale_wrt_gas=False)
    free.step()
    assert free.global_steps == 1


def test_no_sync_refuses_a_step_inside_and_nesting():
    engine = engine_for(make_model())
    with engine.no_sync():
        engine.backward((engine(batches(1)[0]) ** 2).mean())
        with pytest.raises(EngineError, match=r"inside engine.no_sync"):
            engine.step()
        with pytest.raises(EngineError, match="not re-entrant"), engine.no_sync():
            pass
    engine.step()
    assert engine.global_steps == 1


def test_set_train_batch_size_changes_accumulation_only_between_steps():
    engine = engine_for(make_model(), gradient_accumulation_steps=2)
    engine.set_train_batch_size(15)
    assert engine.get_batch_info() == (15, 5, 3)
    engine.backward((engine(batches(1)[0]) ** 2).mean())
    engine.step()
    with pytest.raises(EngineError, match="after 1 of 3 micro-batches"):
        engine.set_train_batch_size(5)
    with pytest.raises(ConfigError):
        engine_for(make_model()).set_train_batch_size(7)


def test_not_finite_gradients_leave_parameters_unchanged_and_name_the_culprit(caplog):
    model = make_model()
    engine = engine_for(model)
    before = [p.clone() for p in model.parameters()]
    engine.backward((engine(batches(1)[0]) ** 2).mean() * math.nan)
    with caplog.at_level("WARNING"):
        engine.step()
    assert not engine.was_step_applied()
    assert engine.skipped_steps == 1
    assert "0.weight" in caplog.text
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    engine.backward((engine(batches(1)[0]) ** 2).mean())
    engine.step()
    assert engine.was_step_applied()


def test_attributes_of_the_module_show_through():
    model = make_model()
    model.answer = 42
    engine = engine_for(model)
    assert engine.answer == 42
    with pytest.raises(AttributeError):
        _ = engine.no_such_attribute


def test_accessors_answer_from_the_config():
    engine = engine_for(make_model(), steps_per_print=7)
    assert engine.steps_per_print() == 7
    assert engine.optimizer_name() == "AdamW"
    assert engine.zero_optimization_stage() == 0
    assert not engine.zero_optimization()
    assert not engine.fp16_enabled()


def test_destroy_removes_every_hook():
    model = make_model()
    engine = engine_for(model)
    engine.destroy()
    (model(batches(1)[0]) ** 2).mean().backward()
    assert all(p.grad is not None and p.grad.data_ptr() != 0 for p in model.parameters())
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_bad_calls_have_one_clear_message():
    engine = engine_for(make_model())
    out = engine(batches(1)[0])
    with pytest.raises(EngineError, match=r"scalar loss, got shape \(5, 3\)"):
        engine.backward(out)
    with pytest.raises(EngineError, match="without a graph"):
        engine.backward(out.detach().mean())
    with pytest.raises(ModelError, match="no parameters"):
        ds_core.initialize(model=nn.ReLU(), config=config())
    with pytest.raises(ModelError, match=r"must be a torch.nn.Module, got int"):
        ds_core.initialize(model=3, config=config())
    stranger = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(ModelError, match="not a parameter of the model"):
        ds_core.initialize(model=make_model(), optimizer=stranger, config=config(optimizer=None))
    with pytest.raises(ConfigError, match="given 2 times"):
        ds_core.initialize(model=make_model(), config=config(), config_params=config())
    with pytest.raises(ConfigError, match="needs a config"):
        ds_core.initialize(model=make_model())
    with pytest.raises(EngineError, match="needs an optimizer"):
        ds_core.initialize(model=make_model(), config=config(optimizer=None))[0].step()


def test_parameters_over_the_same_memory_are_refused():
    model = make_model()
    model.copy = nn.Linear(7, 13)
    model.copy.weight = nn.Parameter(model[0].weight.data)
    with pytest.raises(ModelError, match="different Parameter objects over the same memory"):
        engine_for(model)
