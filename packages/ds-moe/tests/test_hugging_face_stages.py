"""Experts over ranks inside of stages over ranks: a mixture of Hugging Face under expert and pipeline parallelism."""

from __future__ import annotations

import itertools

import expert_models
import pytest
from safetensors.torch import load_file
from test_hugging_face_training import ROWS, STEPS, alone

import ds_core
from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

MICRO_BATCHES = 2


def _staged(folder: str, schedule: str, stage: int) -> tuple[list[float], list[str]]:
    config = {
        "train_batch_size": ROWS,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "zero_optimization": {"stage": stage},
        "expert_parallel": {"enabled": True, "autoep_size": 2},
        "pipeline": {"stages": 2, "schedule": schedule, "sample_length": 4, "activation_checkpoint_interval": stage},
    }
    engine = ds_core.initialize(model=expert_models.make("mixtral"), config=config)[0]
    losses = []
    for step in range(STEPS):
        mine = expert_models.tokens(ROWS, step).chunk(2)[engine.mesh.rank("expert")].chunk(MICRO_BATCHES)
        batches = itertools.cycle([{"input_ids": rows, "labels": rows} for rows in mine])
        losses.append(float(engine.train_batch(batches)))
    engine.save_16bit_model(folder)
    names = [name for name, p in engine.module.named_parameters() if "experts" in name and p.shape[0] == 2]
    return losses, names


@pytest.mark.parametrize(("schedule", "stage"), [("1f1b", 0), ("zb-h1", 1)])
def test_training_is_that_of_one_process(tmp_path, schedule, stage):
    wanted, parameters = alone("mixtral")
    ranks = run_ranks(_staged, 4, str(tmp_path), schedule, stage)
    for losses, names in ranks:
        assert losses == [pytest.approx(loss, rel=1e-6) for loss in wanted]
        assert len(names) == 2  # one layer of two, half of its experts
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == parameters.keys()
    for name, tensor in parameters.items():
        assert (saved[name] - tensor).abs().max() <= 1e-6 * tensor.abs().max(), name
