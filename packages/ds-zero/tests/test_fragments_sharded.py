"""Full and local values at every stage on real ranks: those of plain torch in one process, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ds_core.testing import run_ranks

WIDTH = 7
LR = 0.0625
KEYS = ("exp_avg", "exp_avg_sq")
STAGES = [0, 1, 2, 3]
ONE_UNIT = {"module_granularity_threshold": 10_000}
"""Modules in one bucket, long enough that sums over more than two ranks are added in rank order."""
ALL = ((0, 0), (1, 0), (2, 0), (3, 0), (3, 50))
"""Stages, and how small a parameter must be to stay whole."""


class Zoo(nn.Module):
    """Odd sizes, a module used twice, a frozen and an unused one, a scalar, an empty parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(WIDTH, 13)
        self.twice = nn.Linear(13, 13)
        self.frozen = nn.Linear(13, 13)
        self.unused = nn.Linear(3, 5)
        self.head = nn.Linear(13, 3)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.embed(x))))))
        return self.head(self.frozen(h)) * self.gain


def data(rank: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return [torch.randn(4, WIDTH, generator=generator) for _ in range(count)]


def loss_of(model, x: torch.Tensor) -> torch.Tensor:
    return model(x).float().square().mean()


def make(stage: int, *, native=True, whole=0, accumulation=1, **config):
    import ds_core

    model = Zoo()
    params = {"lr": LR, "weight_decay": 0.125, **({} if native else {"torch_adam": True})}
    zero = {"stage": stage, "param_persistence_threshold": whole, **config.pop("zero", {})}
    engine = ds_core.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.0,
            "optimizer": {"type": "AdamW", "params": params},
            "zero_optimization": zero,
            **config,
        },
    )[0]
    return engine, model


class Plain:
    """One process with the data of all ranks: each rank's gradient by itself, added in rank order, then averaged."""

    def __init__(self, world: int, native: bool = False) -> None:
        from ds_core.optim.op_adam import OpAdam

        self.model = Zoo()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        kind, options = (OpAdam, {}) if native else (torch.optim.AdamW, {"fused": True})
        self.optimizer = kind(self.trained, lr=LR, weight_decay=0.125, **options)
        self.rows = [data(rank, 10) for rank in range(world)]
        self.at = 0

    def backward(self) -> None:
        totals = None
        for rows in self.rows:
            grads = torch.autograd.grad(loss_of(self.model, rows[self.at]), self.trained, allow_unused=True)
            totals = (
                grads if totals is None else [None if g is None else t + g for t, g in zip(totals, grads, strict=True)]
            )
        for parameter, total in zip(self.trained, totals, strict=True):
            parameter.grad = None if total is None else total / len(self.rows)
        self.at += 1

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def values(self) -> dict[str, torch.Tensor | None]:
        found = {}
        for name, parameter in self.model.named_parameters():
            found[name, "param"] = parameter.detach().clone()
            found[name, "grad"] = None if parameter.grad is None else parameter.grad.clone()
            for key in KEYS:
                state = self.optimizer.state.get(parameter, {}).get(key)
                if state is None and parameter.requires_grad:
                    state = torch.zeros_like(parameter)
                found[name, key] = None if state is None else state.detach().clone()
        return found


def values(model) -> dict[str, torch.Tensor | None]:
    from ds_core.utils import safe_get_full_fp32_param, safe_get_full_grad, safe_get_full_optimizer_state

    found = {}
    for name, parameter in model.named_parameters():
        found[name, "param"] = safe_get_full_fp32_param(parameter)
        found[name, "grad"] = safe_get_full_grad(parameter)
        for key in KEYS:
            found[name, key] = safe_get_full_optimizer_state(parameter, key)
    return found


def differing(left: dict, right: dict) -> list:
    """Keys under which two sets of values are not the same bits in the same shape."""
    assert left.keys() == right.keys()
    return [
        key
        for key, a in left.items()
        if (a is None) != (right[key] is None) or (a is not None and not torch.equal(a, right[key]))
    ]


def local_values(model) -> dict[str, torch.Tensor | None]:
    from ds_core.utils import safe_get_local_fp32_param, safe_get_local_grad, safe_get_local_optimizer_state

    found = {}
    for name, parameter in model.named_parameters():
        found[name, "param"] = safe_get_local_fp32_param(parameter)
        found[name, "grad"] = safe_get_local_grad(parameter)
        for key in KEYS:
            found[name, key] = safe_get_local_optimizer_state(parameter, key)
    return found


def watch(stage, **settings):
    """Values before the first backward, after it, after the step, and after another backward."""
    import torch.distributed as dist

    engine, model = make(stage, **settings)
    rows = iter(data(dist.get_rank(), 10))
    seen = [values(model)]
    engine.backward(loss_of(engine, next(rows).to(model.gain.dtype)))
    seen.append(values(model))
    engine.step()
    seen.append(values(model))
    engine.backward(loss_of(engine, next(rows).to(model.gain.dtype)))
    seen.append(values(model))
    local = None
    if stage >= 2 or dist.get_world_size() == 1:
        local = local_values(model)
    engine.allreduce_gradients()
    seen.append(values(model))
    local = local_values(model) if local is None else local
    engine.step()
    seen.append(values(model))
    engine.destroy()
    return seen, local


def watch_plain(world, native):
    plain = Plain(world, native)
    seen = [plain.values()]
    plain.backward()
    seen.append(plain.values())
    plain.step()
    seen.append(plain.values())
    plain.backward()
    seen += [plain.values()] * 2
    plain.step()
    return [*seen, plain.values()]


def no_gain(found: dict) -> dict:
    """Without the parameter whose bucket is so short that gloo adds it in an order of its own."""
    return {key: value for key, value in found.items() if key[0] != "gain"}


@pytest.mark.parametrize(("world", "native"), [(1, True), (2, True), (2, False), (4, False)])
def test_full_values_are_those_of_plain_torch_to_the_bit(world, native):
    expected = run_ranks(watch_plain, 1, world, native)[0]
    for stage, whole in ALL:
        for rank, (seen, _) in enumerate(run_ranks(watch, world, stage, native=native, whole=whole, zero=ONE_UNIT)):
            for moment, (found, wanted) in enumerate(zip(seen, expected, strict=True)):
                assert not differing(no_gain(found), no_gain(wanted)), (stage, whole, rank, moment)
                if world < 4:
                    assert not differing(found, wanted), (stage, whole, rank, moment)


@pytest.mark.parametrize(
    "config",
    [
        {"bf16": {"enabled": True}},
        {"fp16": {"enabled": True, "initial_scale_power": 6}},
        {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
        {"communication_data_type": "bf16"},
        {"prescale_gradients": True},
        {"gradient_predivide_factor": 2.0, "gradient_allreduce_op": "sum"},
    ],
    ids=lambda config: "-".join(config),
)
def test_every_stage_shows_what_stage_0_shows(config):
    expected = run_ranks(watch, 2, 0, **config)[0][0]
    assert all(v.dtype == torch.float32 for found in expected for v in found.values() if v is not None)
    assert expected[1]["embed.weight", "grad"].abs().max() < 1  # neither scaled nor summed over
    for stage, whole in ALL[1:]:
        for seen, _ in run_ranks(watch, 2, stage, whole=whole, **config):
            assert not [differing(*pair) for pair in zip(seen, expected, strict=True) if differing(*pair)], (
                stage,
                whole,
            )


@pytest.mark.parametrize("stage", STAGES)
def test_local_parts_in_rank_order_are_the_full_value(stage):
    answers = run_ranks(watch, 2, stage, bf16={"enabled": True})
    full = answers[0][0][4]
    for key, value in full.items():
        parts = [local[key] for _, local in answers]
        if stage == 0:
            parts = parts[:1]
        if value is None:
            assert all(part is None or not part.any() for part in parts), key
        else:
            assert all(part.dim() == 1 for part in parts)
            is_plain = stage < 3 and key[0].startswith("frozen")
            torch.testing.assert_close(torch.cat(parts[: 1 if is_plain else None]), value.view(-1), rtol=0, atol=0)


@pytest.mark.parametrize("bucket", [50, 500])
def test_a_gradient_read_before_the_reduction_is_the_one_that_comes_of_it(bucket):
    for stage in (0, 1):
        for seen, _ in run_ranks(watch, 4, stage, zero={"reduce_bucket_size": bucket}):
            assert not differing(seen[3], seen[4]), stage


def reading(stage, reads, **settings):
    import torch.distributed as dist

    from ds_core.utils import safe_get_full_grad

    engine, model = make(stage, accumulation=3, **settings)
    rows = data(dist.get_rank(), 6)
    grads = []
    for x in rows:
        engine.backward(loss_of(engine, x.to(model.gain.dtype)))
        if reads:
            grads.append([safe_get_full_grad(p) for p in model.parameters()])
        engine.step()
    state = {name: tensor.clone() for name, tensor in engine.module_state_dict().items()}
    engine.destroy()
    return state, grads


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (4, 1), (4, 3)])
def test_reading_gradients_in_every_micro_batch_changes_no_number(world, stage):
    for zero in ({}, {"overlap_comm": stage < 3}):
        without, _ = run_ranks(reading, world, stage, False, bf16={"enabled": True}, zero=zero)[0]
        state, grads = run_ranks(reading, world, stage, True, bf16={"enabled": True}, zero=zero)[0]
        assert not differing(without, state)
        assert grads[0][0].abs().max() > 0
        assert not torch.equal(grads[0][0], grads[2][0])


def set_and_step(stage, what, **settings):
    import torch.distributed as dist

    from ds_core.utils import (
        safe_set_full_fp32_param,
        safe_set_full_grad,
        safe_set_full_optimizer_state,
        safe_update_full_grad_vectorized,
    )

    engine, model = make(stage, **settings)
    rows = iter(data(dist.get_rank(), 10))
    names = dict(model.named_parameters())
    chosen = [p for name, p in names.items() if name in CHOSEN]
    for _ in range(2):
        if what == "param":
            for parameter in [*chosen, model.frozen.weight]:
                safe_set_full_fp32_param(parameter, replacement(parameter))
        if what == "state":
            for parameter in chosen:
                for key in KEYS:
                    safe_set_full_optimizer_state(parameter, replacement(parameter), key)
        engine.backward(loss_of(engine, next(rows).to(model.gain.dtype)))
        if what == "grad":
            for parameter in chosen:
                safe_set_full_grad(parameter, replacement(parameter))
        if what == "update":
            safe_update_full_grad_vectorized(list(model.parameters()), lambda g, p: g * 2 if p.dim() > 1 else None)
            safe_update_full_grad_vectorized([model.gain], lambda g: g.mul_(4) and None)
        engine.step()
    found = values(model)
    engine.destroy()
    return found


CHOSEN = ("embed.weight", "unused.bias", "gain", "empty", "head.bias")


def replacement(parameter: torch.Tensor) -> torch.Tensor:
    return (torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape) + 1) / 64


def set_and_step_plain(world, what, native):
    plain = Plain(world, native)
    names = dict(plain.model.named_parameters())
    chosen = [names[name] for name in CHOSEN]
    for _ in range(2):
        if what == "param":
            for parameter in [*chosen, plain.model.frozen.weight]:
                parameter.data.copy_(replacement(parameter))
        if what == "state":
            for parameter in chosen:
                state = plain.optimizer.state[parameter]
                state.setdefault("step", torch.zeros(()))
                for key in KEYS:
                    state[key] = replacement(parameter)
        plain.backward()
        if what == "grad":
            for parameter in chosen:
                parameter.grad = replacement(parameter)
        if what == "update":
            for parameter in plain.trained:
                if parameter.grad is not None and parameter.dim() > 1:
                    parameter.grad.mul_(2)
            plain.model.gain.grad.mul_(4)
        plain.step()
    return plain.values()


@pytest.mark.parametrize("what", ["param", "state", "grad", "update"])
@pytest.mark.parametrize(("world", "natives"), [(1, (True,)), (2, (True, False)), (4, (False,))])
def test_what_is_set_is_what_the_next_step_uses(what, world, natives):
    for native in natives:
        expected = run_ranks(set_and_step_plain, 1, world, what, native)[0]
        for stage, whole in ALL:
            for found in run_ranks(set_and_step, world, stage, what, whole=whole, native=native, zero=ONE_UNIT):
                found, wanted = (no_gain(found), no_gain(expected)) if world == 4 else (found, expected)
                assert not differing(found, wanted), (stage, whole, native)


@pytest.mark.parametrize("what", ["param", "grad"])
@pytest.mark.parametrize("config", [{"bf16": {"enabled": True}}, {"fp16": {"enabled": True, "initial_scale_power": 6}}])
def test_setting_with_masters_and_a_loss_scale_is_alike_at_every_stage(what, config):
    expected = run_ranks(set_and_step, 2, 0, what, **config)[0]
    untouched = run_ranks(set_and_step, 2, 0, "", **config)[0]
    assert differing(expected, untouched)
    for stage, whole in ALL[1:]:
        for found in run_ranks(set_and_step, 2, stage, what, whole=whole, **config):
            assert not differing(found, expected), (stage, whole)


def weights_after_set(stage, whole):
    from ds_core.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    engine, model = make(stage, whole=whole, bf16={"enabled": True})
    rows = data(0, 2)
    before = engine(rows[0].bfloat16()).detach()
    for parameter in model.parameters():
        value = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) / 3
        safe_set_full_fp32_param(parameter, value.double())
        if parameter.requires_grad:
            assert torch.equal(safe_get_full_fp32_param(parameter), value)  # not rounded
    after = engine(rows[0].bfloat16()).detach()
    state = {name: tensor.clone() for name, tensor in engine.module_state_dict().items()}
    engine.destroy()
    return before, after, state


@pytest.mark.parametrize(("stage", "whole"), ALL)
def test_a_set_weight_is_rounded_into_the_working_weights_of_every_rank_at_once(stage, whole):
    for before, after, state in run_ranks(weights_after_set, 2, stage, whole):
        model = Zoo().bfloat16()
        for parameter in model.parameters():
            parameter.data = (torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) / 3).bfloat16()
        assert not differing(state, dict(model.state_dict()))
        assert torch.equal(after, model(data(0, 1)[0].bfloat16()))
        assert not torch.equal(before, after)


def set_local(stage):
    """Every rank doubles its own part of everything; full values before and after, and after a step."""
    import torch.distributed as dist

    from ds_core import utils

    engine, model = make(stage, bf16={"enabled": True})
    rows = iter(data(dist.get_rank(), 3))
    engine.backward(loss_of(engine, next(rows).bfloat16()))
    engine.step()
    engine.backward(loss_of(engine, next(rows).bfloat16()))
    if stage < 2:
        engine.allreduce_gradients()
    before = values(model)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        utils.safe_set_local_fp32_param(parameter, utils.safe_get_local_fp32_param(parameter) * 2)
        if utils.safe_get_full_grad(parameter) is not None:
            utils.safe_set_local_grad(parameter, utils.safe_get_local_grad(parameter) * 2)
        for key in KEYS:
            state = utils.safe_get_local_optimizer_state(parameter, key)
            utils.safe_set_local_optimizer_state(parameter, state * 2, key)
    after = values(model)
    engine.step()
    working = {name: tensor.float() for name, tensor in engine.module_state_dict().items()}
    last = values(model)
    engine.destroy()
    return before, after, working, last


def test_local_setters_change_this_ranks_part():
    first = None
    for stage in STAGES:
        answers = run_ranks(set_local, 2, stage)
        for before, after, working, last in answers:
            for key, value in before.items():
                if value is not None and not key[0].startswith("frozen"):
                    assert torch.equal(after[key], value * 2), (stage, key)
            for name, tensor in working.items():
                assert torch.equal(tensor, last[name, "param"].bfloat16().float()), (stage, name)
            first = first or last
            assert not differing(first, last), stage


def mistakes(stage):
    from ds_core import utils
    from ds_core.errors import DsError

    engine, model = make(stage, accumulation=2)
    weight, scalar = model.embed.weight, model.gain
    rows = data(0, 4)
    said = []

    def attempt(function, *arguments):
        try:
            function(*arguments)
        except DsError as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            said.append("")

    attempt(utils.safe_set_full_grad, weight, torch.zeros(13, WIDTH))
    attempt(utils.safe_set_local_grad, scalar, utils.safe_get_local_fp32_param(scalar))
    engine.backward(loss_of(engine, rows[0]))
    attempt(utils.safe_set_full_grad, weight, torch.zeros(13, WIDTH))
    attempt(utils.safe_get_local_grad, weight)
    engine.step()
    engine.backward(loss_of(engine, rows[0]))
    attempt(utils.safe_get_full_optimizer_state, scalar, "momentum")
    attempt(utils.safe_set_full_optimizer_state, scalar, torch.zeros(()), "momentum")
    attempt(utils.safe_set_full_fp32_param, weight, torch.zeros(3))
    utils.safe_set_full_grad(weight, torch.zeros(13, WIDTH))
    attempt(lambda: engine.backward(loss_of(engine, rows[0])))
    engine.step()
    engine.destroy()
    return said


@pytest.mark.parametrize("stage", STAGES)
def test_mistakes_are_refused_on_every_rank_and_the_step_goes_on(stage):
    for said in run_ranks(mistakes, 2, stage):
        assert "no backward since the last step" in said[0]
        assert "no backward since the last step" in said[1]
        assert "micro-batch 1 of 2" in said[2]
        assert ("engine.allreduce_gradients() first" in said[3]) == (stage < 2)
        assert "'momentum'" in said[4]
        assert "'momentum'" in said[5]
        assert "(13, 7), got (3,)" in said[6]
        assert "backward was called after" in said[7]
    assert any("exp_avg, exp_avg_sq" in said[4] for said in run_ranks(mistakes, 2, stage))


def bytes_of_reading(stage):
    from ds_core import comm, utils

    engine, model = make(stage)
    engine.backward(loss_of(engine, data(0, 1)[0]))
    engine.step()
    comm.reset()
    utils.safe_get_full_fp32_param(model.twice.weight)
    rows = [(row.op, row.calls, row.bytes_sent) for row in engine.comm_report().rows if row.calls]
    engine.destroy()
    return rows


def test_a_full_value_is_one_all_gather_of_the_longest_part():
    assert run_ranks(bytes_of_reading, 2, 0) == [[], []]
    for stage in (1, 2, 3):
        (first, second) = run_ranks(bytes_of_reading, 2, stage)
        assert first == second
        assert [calls for _, calls, _ in first] == [1]
        assert 13 * 13 * 4 / 2 <= first[0][2] <= 13 * 13 * 4


def offloaded(stage, away, **settings):
    """Trains with every state moved away and back between micro-batches, or not."""
    import torch.distributed as dist

    engine, model = make(stage, accumulation=2, **settings)
    for x in data(dist.get_rank(), 6):
        engine.backward(loss_of(engine, x.to(model.gain.dtype)))
        if away:
            engine.offload_states()
            engine.reload_states()
        engine.step()
        if away:
            engine.offload_states(include=away)
            engine.reload_states()
    found = values(model)
    if away:
        engine.offload_states()
    engine.destroy()
    found.update({(name, "plain"): tensor.detach().clone() for name, tensor in model.named_parameters()})
    return found


@pytest.mark.parametrize("config", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("stage", "whole"), ALL)
def test_training_goes_on_as_if_states_had_never_been_away(stage, whole, config):
    for native in (True, False) if not config else (True,):
        stayed, _ = run_ranks(offloaded, 2, stage, None, whole=whole, native=native, **config)
        for moved in run_ranks(
            offloaded, 2, stage, ["optim_states", "lp_params"], whole=whole, native=native, **config
        ):
            assert not differing(moved, stayed)


@pytest.mark.parametrize("device", ["cpu", "nvme"])
def test_state_kept_in_host_memory_or_in_files_is_read_and_set_alike(device, tmp_path):
    config = {"bf16": {"enabled": True}}
    place = {"device": device, **({"nvme_path": str(tmp_path)} if device == "nvme" else {})}
    zero = {"offload_optimizer": place, "offload_param": place}
    seen, _ = run_ranks(watch, 2, 0, **config)[0]
    for found, _ in run_ranks(watch, 2, 3, zero=zero, **config):
        assert not [differing(*pair) for pair in zip(found, seen, strict=True) if differing(*pair)]
    for what in ("param", "state", "grad"):
        expected = run_ranks(set_and_step, 2, 0, what, **config)[0]
        for found in run_ranks(set_and_step, 2, 3, what, zero=zero, **config):
            assert not differing(found, expected), what
