"""Every optimizer made of the op table, asked for in a config: the same numbers at every stage, and every key acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ds_core
from ds_core.errors import ConfigError
from ds_core.testing import run_ranks

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Adagrad": {"lr": 1e-2, "weight_decay": 0.1, "initial_accumulator_value": 0.1},
    "Lion": {"lr": 1e-3, "weight_decay": 0.1},
    "SGD": {"lr": 1e-2, "momentum": 0.9, "nesterov": True},
}
LAMB: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
EVERY = {**OPTIMIZERS, "Lamb": LAMB}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 33), nn.Tanh(), nn.Linear(33, 17), nn.Tanh(), nn.Linear(17, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def weights(config: dict[str, Any], rank: int = 0, steps: int = 4) -> torch.Tensor:
    """Flattened weights of the unsharded model after some steps."""
    base = {"train_micro_batch_size_per_gpu": 3, "gradient_clipping": 0.5}
    engine = ds_core.initialize(model=Model(), config={**base, **config})[0]
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        x = torch.randn(3, 6, generator=generator)
        if config.get("bf16", {}).get("enabled"):
            x = x.bfloat16()
        engine.backward((engine(x).float() ** 2).mean())
        engine.step()
    found = torch.cat([value.float().flatten() for value in engine.module.state_dict().values()])
    engine.destroy()
    return found


def train(configs: list[dict[str, Any]]) -> list[torch.Tensor]:
    return [weights(config, torch.distributed.get_rank()) for config in configs]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
def test_stages_and_offload_do_not_change_a_bit(name: str, precision: dict[str, Any], tmp_path: Any) -> None:
    section = {"optimizer": {"type": name, "params": OPTIMIZERS[name]}, **precision}
    zeros: list[dict[str, Any]] = [{"stage": stage} for stage in (0, 1, 2, 3)]
    nvme = {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 4}
    zeros.append({"stage": 2, "offload_optimizer": nvme, "sub_group_size": 256})
    results = run_ranks(train, 2, [{**section, "zero_optimization": zero} for zero in zeros])
    for got in results:
        for values in got:
            assert torch.equal(values, results[0][0])
    assert not torch.equal(results[0][0], torch.cat([p.detach().flatten() for p in Model().parameters()]))


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
def test_lamb_has_the_norms_of_whole_parameters_at_every_stage(precision: dict[str, Any]) -> None:
    section = {"optimizer": {"type": "Lamb", "params": LAMB}, **precision}
    results = run_ranks(train, 3, [{**section, "zero_optimization": {"stage": stage}} for stage in (0, 1, 2, 3)])
    for values in results[0]:  # a norm is the sum of its shards': the order of that sum is all that differs
        torch.testing.assert_close(values, results[0][0], rtol=1e-6, atol=1e-7)
    assert all(torch.equal(a, b) for got in results for a, b in zip(got, results[0], strict=True))


def test_lamb_is_not_cut_into_tiles(tmp_path: Any) -> None:
    nvme = {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 4}
    config = {"train_batch_size": 3, "zero_optimization": {"stage": 2, "offload_optimizer": nvme}}
    with pytest.raises(ConfigError, match="cuts parameters into tiles, and CPULamb is not known"):
        ds_core.initialize(model=Model(), config={**config, "optimizer": {"type": "Lamb"}})


ADAM8: dict[str, Any] = {"lr": 1e-2, "state_bits": 8, "state_block": 256}


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
def test_states_of_a_byte_train_at_every_stage(precision: dict[str, Any]) -> None:
    section = {"optimizer": {"type": "AdamW", "params": ADAM8}, **precision}
    results = run_ranks(train, 2, [{**section, "zero_optimization": {"stage": stage}} for stage in (0, 1, 2, 3)])
    for values in results[0]:  # shards begin blocks, so codes differ between stages
        torch.testing.assert_close(values, results[0][0], rtol=0, atol=0.01)


def saved_and_loaded(folder: str, stages: tuple[int, int]) -> bool:
    """Whether a run that went through a checkpoint goes on as the one that did not."""
    engines = []
    for stage in stages:
        config = {"train_micro_batch_size_per_gpu": 3, "zero_optimization": {"stage": stage}}
        config["optimizer"] = {"type": "AdamW", "params": ADAM8}
        engines.append(ds_core.initialize(model=Model(), config=config)[0])
    generator = torch.Generator().manual_seed(torch.distributed.get_rank())

    def step(engine: Any, x: torch.Tensor) -> None:
        engine.backward((engine(x) ** 2).mean())
        engine.step()

    for _ in range(3):
        step(engines[0], torch.randn(3, 6, generator=generator))
    engines[0].save_checkpoint(folder)
    engines[1].load_checkpoint(folder)
    x = torch.randn(3, 6, generator=generator)
    found = []
    for engine in engines:
        step(engine, x)
        found.append(torch.cat([value.flatten() for value in engine.module.state_dict().values()]))
        engine.destroy()
    return torch.equal(*found) if stages[0] == stages[1] else torch.allclose(*found, rtol=0, atol=2e-3)


@pytest.mark.parametrize("stages", [(1, 1), (3, 3), (0, 2), (3, 0)])
def test_states_of_a_byte_go_through_checkpoints_of_any_stage(stages: tuple[int, int], tmp_path: Any) -> None:
    assert all(run_ranks(saved_and_loaded, 2, str(tmp_path), stages))


def test_states_of_a_byte_are_read_and_written_as_numbers() -> None:
    from ds_core import utils

    config = {"train_batch_size": 3, "optimizer": {"type": "AdamW", "params": ADAM8}}
    engine = ds_core.initialize(model=Model(), config=config)[0]
    engine.backward(engine(torch.ones(3, 6)).square().mean())
    engine.step()
    bias = engine.module.layers[0].bias
    moment = utils.safe_get_full_optimizer_state(bias, "exp_avg")
    assert moment.dtype == torch.float32 and moment.any()
    utils.safe_set_full_optimizer_state(bias, torch.ones_like(moment), "exp_avg")
    assert torch.equal(utils.safe_get_full_optimizer_state(bias, "exp_avg"), torch.ones_like(moment))


def test_states_of_a_byte_are_not_kept_in_files(tmp_path: Any) -> None:
    nvme = {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 4}
    config = {"train_batch_size": 3, "zero_optimization": {"stage": 2, "offload_optimizer": nvme}}
    with pytest.raises(ConfigError, match=r"packs them into bytes; set optimizer\.params\.state_bits to 32"):
        ds_core.initialize(model=Model(), config={**config, "optimizer": {"type": "AdamW", "params": ADAM8}})


KEYS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (name, EVERY[name], change)
    for name, changes in {
        "Adagrad": [
            {"lr": 0.1},
            {"eps": 0.1},
            {"weight_decay": 0.0},
            {"lr_decay": 0.5},
            {"initial_accumulator_value": 1.0},
            {"maximize": True},
        ],
        "Lamb": [
            {"lr": 0.1},
            {"betas": [0.5, 0.999]},
            {"betas": [0.9, 0.5]},
            {"eps": 0.1},
            {"eps": 0.1, "eps_inside_sqrt": True},
            {"weight_decay": 0.0},
            {"bias_correction": False},
            {"max_coeff": 0.05},
            {"min_coeff": 2.0},
        ],
        "AdamW": [{"state_bits": 8}],
        "Lion": [{"lr": 0.1}, {"betas": [0.1, 0.99]}, {"betas": [0.9, 0.1]}, {"weight_decay": 0.0}],
        "SGD": [
            {"lr": 0.1},
            {"momentum": 0.5},
            {"nesterov": False},
            {"nesterov": False, "dampening": 0.5},
            {"weight_decay": 0.5},
            {"maximize": True},
        ],
    }.items()
    for change in changes
]
KEYS.append(("AdamW", {"lr": 1e-2, "state_bits": 8}, {"state_block": 256}))


MUON: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
KEYS += [
    ("Muon", MUON, change)
    for change in (
        {"lr": 0.1},
        {"muon_lr": 0.1},
        {"adam_lr": 0.1},
        {"momentum": 0.5},
        {"weight_decay": 0.0},
        {"betas": [0.5, 0.999]},
        {"eps": 0.1},
        {"ns_method": "gram"},
        {"ns_steps": 1},
        {"nesterov": False},
        {"adjust_lr_fn": "match_rms_adamw"},
    )
]


@pytest.mark.parametrize(("name", "base", "change"), KEYS, ids=lambda value: value if isinstance(value, str) else None)
def test_every_key_acts(name: str, base: dict[str, Any], change: dict[str, Any]) -> None:
    before = weights({"optimizer": {"type": name, "params": base}})
    assert not torch.equal(before, weights({"optimizer": {"type": name, "params": {**base, **change}}}))


@pytest.mark.parametrize("name", EVERY)
def test_states_without_masters_follow_the_precision_keys(name: str) -> None:
    for low in (False, True):
        bf16 = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": low}
        section = {"type": name, "params": EVERY[name]}
        config = {"train_batch_size": 3, "bf16": bf16, "optimizer": section}
        engine = ds_core.initialize(model=Model(), config=config)[0]
        engine.backward(engine(torch.ones(3, 6).bfloat16()).float().square().mean())
        engine.step()
        states = [v for s in engine.optimizer.state.values() for v in s.values() if v.dim() > 0]
        assert states and {state.dtype for state in states} == {torch.bfloat16 if low else torch.float32}


@pytest.mark.parametrize("name", EVERY)
def test_stochastic_rounding_is_served(name: str) -> None:
    bf16 = {"enabled": True, "bf16_master_weights_and_grads": True}
    config = {"optimizer": {"type": name, "params": EVERY[name]}}
    nearest = weights({**config, "bf16": bf16})
    assert not torch.equal(nearest, weights({**config, "bf16": {**bf16, "stochastic_rounding": True}}))
