"""ZeRO on a device whose tensors have no address and no storage, and which has no ability at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from slate import Net, Run, advance, install, on_the_device, on_the_host, train, weights_of

import ds_core
from ds_core import comm
from ds_core.accelerator import select

pytestmark = pytest.mark.ranks

FULLY: dict[str, Any] = {"stage": 3, "param_persistence_threshold": 0}
"""Every parameter is a stand-in between its uses."""


def near(left: Run, right: Run) -> None:
    assert left[0] == pytest.approx(right[0], rel=1e-5)
    for name, weight in right[1].items():
        torch.testing.assert_close(left[1][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2])
def test_every_stage_trains_as_stage_0_on_the_host(tmp_path: Path, world: int) -> None:
    """Offload to the host and to files, and a model that was built in shards, among them."""
    home, files = {"device": "cpu"}, {"device": "nvme", "nvme_path": str(tmp_path)}
    stages = [{"stage": 1}, {"stage": 2}, FULLY]
    stages += [{"stage": 2, "offload_optimizer": {**home, "ratio": 0.5}}]
    stages += [{**FULLY, "offload_optimizer": place, "offload_param": place} for place in (home, files)]
    host = on_the_host(train, "cpu", [{"zero_optimization": {"stage": 0}}], world=world)
    device = on_the_device(train, "slate", [{"zero_optimization": stage} for stage in stages], world=world)
    for rank in range(world):
        for run in device[rank]:
            near(run, host[rank][0])


def built_in_shards() -> Run:
    import ds_zero

    install()
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.05,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}},
        "zero_optimization": FULLY,
    }
    comm.init_distributed(accelerator=select("slate"))
    with ds_zero.Init(config_dict_or_path=config):
        model = Net()
    engine = ds_core.initialize(model=model, config=config, accelerator="slate")[0]
    losses = advance(engine, 3)
    weights = weights_of(engine)
    engine.destroy()
    return losses, weights


def test_a_model_built_in_shards_moves_to_the_device() -> None:
    ((straight,), _) = on_the_host(train, "cpu", [{}], world=2)
    near(on_the_device(built_in_shards, world=2)[0], straight)
