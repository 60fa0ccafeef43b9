"""Full and local values at every stage on real ranks: those of plain torch in one process, to the bit."""

from __future__ import annotations

import pytest
import torch
from fragment_model import (
    ALL,
    ONE_UNIT,
    STAGES,
    Plain,
    data,
    differing,
    local_values,
    loss_of,
    make,
    no_gain,
    set_and_step,
    values,
)

from ds_core.testing import run_ranks


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
