"""Precision modes against a plain loop that keeps its own fp32 masters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ds_core
from ds_core.errors import ConfigError, NonFiniteError
from ds_core.parts.loss_scale import DynamicLossScaler


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 3))


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 7, generator=generator) for _ in range(count)]


def run(steps: int = 4, accumulation: int = 1, model: nn.Module | None = None, **changes):
    model = model if model is not None else make_model()
    optimizer = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}}
    base = {"train_micro_batch_size_per_gpu": 5, "gradient_accumulation_steps": accumulation, "optimizer": optimizer}
    engine = ds_core.initialize(model=model, config={**base, "gradient_clipping": 0.0, **changes})[0]
    for x in batches(steps * accumulation):
        loss = (engine(x.to(next(model.parameters()).dtype)).float() ** 2).mean()
        engine.backward(loss)
        engine.step()
    return engine, model


def masters_by_hand(dtype: torch.dtype, accumulate: torch.dtype, accumulation: int, scale: float = 1.0):
    """Low-precision weights, fp32 masters, gradients summed in `accumulate`."""
    model = make_model().to(dtype)
    masters = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-2, weight_decay=0.0, fused=True)
    data = iter(batches(4 * accumulation))
    for _ in range(4):
        sums = [torch.zeros_like(p, dtype=accumulate) for p in masters]
        for micro in range(accumulation):
            loss = (model(next(data).to(dtype)).float() ** 2).mean()
            (loss * (scale / accumulation)).backward()
            for total, p in zip(sums, model.parameters(), strict=True):
                total.copy_(p.grad.to(accumulate) if micro == 0 else total + p.grad)
                p.grad = None
        for master, total in zip(masters, sums, strict=True):
            master.grad = total.float() / scale
        optimizer.step()
        with torch.no_grad():
            for p, master in zip(model.parameters(), masters, strict=True):
                p.copy_(master)
    return model, masters


@pytest.mark.parametrize("accumulate", ["bf16", "fp32"])
def test_bf16_with_fp32_masters_equals_the_loop_bit_for_bit(accumulate):
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[accumulate]
    expected, masters = masters_by_hand(torch.bfloat16, dtype, accumulation=2)
    engine, model = run(accumulation=2, bf16={"enabled": True}, data_types={"grad_accum_dtype": accumulate})
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b)
    for group, master in zip(engine.optimizer.param_groups[0]["params"], masters, strict=True):
        assert group.dtype == torch.float32
        assert torch.equal(group.view(-1), master.view(-1))


def test_fp16_with_static_scale_equals_the_loop_bit_for_bit():
    expected, _ = masters_by_hand(torch.float16, torch.float16, accumulation=1, scale=1024.0)
    engine, model = run(fp16={"enabled": True, "loss_scale": 1024})
    assert engine.optimizer.loss_scale == 1024
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fp16_overflow_skips_the_step_and_lowers_the_scale():
    model = make_model()
    engine, _ = run(steps=0, model=model, fp16={"enabled": True, "initial_scale_power": 20, "hysteresis": 1})
    before = [p.clone() for p in model.parameters()]
    engine.backward((engine(batches(1)[0].half()).float() * 1e4).sum())
    engine.step()
    assert engine.optimizer.overflow
    assert not engine.was_step_applied()
    assert engine.optimizer.cur_scale == 2.0**19
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_dynamic_scale_doubles_after_a_window_and_keeps_to_its_minimum():
    scaler = DynamicLossScaler(8.0, window=2, hysteresis=2, minimum=4.0)
    history = []
    for overflow in (False, False, True, True, True, False, False):
        try:
            scaler.update(overflow)
        except NonFiniteError:
            history.append("error")
            break
        history.append(scaler.scale)
    assert history == [8.0, 16.0, 16.0, 8.0, 4.0, 4.0, 8.0]
    at_minimum = DynamicLossScaler(1.0, hysteresis=1)
    with pytest.raises(NonFiniteError, match="loss scale is at its minimum, 1"):
        at_minimum.update(True)


def test_consecutive_hysteresis_refills_at_every_clean_step():
    scaler = DynamicLossScaler(8.0, window=1000, hysteresis=2, consecutive_hysteresis=True)
    for overflow in (True, False, True, False, True):
        scaler.update(overflow)
    assert scaler.scale == 8.0
    plain = DynamicLossScaler(8.0, window=1000, hysteresis=2)
    for overflow in (True, False, True, False, True):
        plain.update(overflow)
    assert plain.scale == 2.0


def test_fp16_auto_cast_casts_floating_inputs():
    model = make_model()
    engine, _ = run(steps=0, model=model, fp16={"enabled": True, "auto_cast": True})
    assert engine(batches(1)[0]).dtype == torch.float16
    plain, _ = run(steps=0, fp16={"enabled": True})
    with pytest.raises(RuntimeError, match="dtype"):
        plain(batches(1)[0])


def test_autocast_keeps_fp32_parameters_and_computes_low():
    engine, model = run(steps=2, torch_autocast={"enabled": True, "dtype": "bfloat16"})
    assert engine(batches(1)[0]).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_pure_bf16_states_keep_no_fp32_copy_and_stochastic_rounding_moves_small_updates():
    bf16 = {"enabled": True, "bf16_master_weights_and_grads": True}
    optimizer = {"type": "AdamW", "params": {"lr": 1e-5}}
    start = make_model().bfloat16()
    engine, nearest = run(steps=8, bf16=bf16, optimizer=optimizer)
    held = {p.dtype for group in engine.optimizer.param_groups for p in group["params"]}
    assert held == {torch.bfloat16}
    _, stochastic = run(steps=8, bf16={**bf16, "stochastic_rounding": True}, optimizer=optimizer, seed=3)
    _, again = run(steps=8, bf16={**bf16, "stochastic_rounding": True}, optimizer=optimizer, seed=3)

    def moved(model: nn.Module) -> int:
        return sum(int((p != q).sum()) for p, q in zip(start.parameters(), model.parameters(), strict=True))

    assert moved(stochastic) > 2 * moved(nearest)
    assert all(torch.equal(p, q) for p, q in zip(stochastic.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("low", [True, False])
def test_optimizer_states_are_bf16_only_where_asked(low):
    bf16 = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": low}
    engine, _ = run(steps=1, bf16=bf16, optimizer={"type": "AdamW", "params": {"lr": 1e-3}})
    kinds = {t.dtype for s in engine.optimizer.state.values() for k, t in s.items() if k.startswith("exp_avg")}
    assert kinds == {torch.bfloat16 if low else torch.float32}


def test_buffers_follow_their_own_dtype():
    model = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4))
    run(steps=0, model=model, bf16={"enabled": True}, data_types={"buffer_dtype": "fp32"})
    assert model[1].running_mean.dtype == torch.float32
    assert model[1].weight.dtype == torch.bfloat16


class Placed(nn.Module):
    """Weights, and angles that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4))
        self.register_buffer("angles", torch.linspace(0.1, 0.9, 4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.angles.cos().to(x.dtype)


@pytest.mark.parametrize("made_in", [torch.float32, torch.bfloat16])
def test_buffers_stay_as_the_model_made_them_and_running_statistics_follow_weights(made_in):
    model = Placed()
    model.inner.to(made_in)
    before = model.angles.clone()
    engine, _ = run(steps=0, model=model, bf16={"enabled": True})
    assert torch.equal(model.angles, before)
    assert model.inner[1].running_mean.dtype == torch.bfloat16
    assert engine(batches(1)[0].bfloat16()).isfinite().all()


class Shifted(nn.Linear):
    """Adds a float32 buffer to what it computed, and goes on with that."""

    def __init__(self) -> None:
        super().__init__(7, 7)
        self.register_buffer("shift", torch.ones(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x) + self.shift)


def test_a_forward_that_mixes_a_buffer_in_is_told_the_setting(caplog):
    engine, _ = run(steps=0, model=Shifted(), bf16={"enabled": True})
    with caplog.at_level("WARNING"), pytest.raises(RuntimeError, match="dtype"):
        engine(torch.ones(2, 7).bfloat16())
    assert (
        'buffers keep float32: shift. If one of them meets activations, set data_types.buffer_dtype to "bfloat16"'
        in (caplog.text)
    )
    engine, _ = run(steps=0, model=Shifted(), bf16={"enabled": True}, data_types={"buffer_dtype": "bfloat16"})
    assert engine(torch.ones(2, 7).bfloat16()).dtype == torch.bfloat16


def test_fp16_and_bf16_together_are_refused():
    with pytest.raises(ConfigError):
        run(steps=0, fp16={"enabled": True}, bf16={"enabled": True})


def test_loaded_weights_survive_the_next_step():
    engine, model = run(steps=1, bf16={"enabled": True}, optimizer={"type": "AdamW", "params": {"lr": 0.0}})
    other = {name: tensor + 1 for name, tensor in engine.module_state_dict().items()}
    engine.load_module_state_dict(other)
    engine.backward((engine(batches(1)[0].bfloat16()).float() ** 2).mean())
    engine.step()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["Muon", "Adagrad"])
def test_optimizers_that_split_groups_or_start_with_states_train(optimizer, precision):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": optimizer, "params": {"lr": 0.05}},
        **precision,
    }
    engine = ds_core.initialize(model=model, config=config)[0]
    x = torch.ones(4, 6, dtype=model[0].weight.dtype)
    losses = []
    for _ in range(8):
        loss = (engine(x).float() - 1.0).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
