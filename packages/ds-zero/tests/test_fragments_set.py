"""What is set in sharded state is what the next step uses, at every stage and on every rank."""

from __future__ import annotations

import pytest
import torch
from fragment_model import (
    ALL,
    CHOSEN,
    KEYS,
    ONE_UNIT,
    STAGES,
    WIDTH,
    Plain,
    Zoo,
    data,
    differing,
    loss_of,
    make,
    no_gain,
    replacement,
    set_and_step,
    values,
)

from ds_core.testing import run_ranks


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
