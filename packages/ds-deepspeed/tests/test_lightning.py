"""Lightning, unmodified, through this wheel: its Trainer's strategy by name and by config, and Fabric."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_jobs import ACCUMULATED, BATCH, CLIP, FabricHost, Model, batches, fit, quiet, trainer

from ds_core.testing import RankError, run_ranks

pytestmark = pytest.mark.ranks
EXACT = 2e-5
HALF = 3e-2


def told(found: dict[str, Any]) -> dict[str, Any]:
    """What can be compared, the engine gone."""
    result = {name: found[name] for name in ("losses", "evaluated")}
    module = found["model"]
    result["placed"] = module.placed
    engine = found["trainer"].strategy.model
    if hasattr(engine, "destroy"):
        engine.destroy()
    return result


def mean(ranks: list[dict[str, Any]], name: str) -> list[float]:
    """Losses of the whole batch: each rank has as many rows of it."""
    every = [rank[name]["losses"] for rank in ranks]
    return [sum(losses) / len(losses) for losses in zip(*every, strict=True)]


def _plain(folder: str) -> dict[str, Any]:
    found = {"fp32": told(fit(Path(folder)))}
    found["bf16"] = told(fit(Path(folder), precision="bf16-true"))
    return found


def _jobs(folder: str) -> dict[str, Any]:
    from lightning.pytorch.strategies import DeepSpeedStrategy

    gc.collect()
    root, found = Path(folder), {}
    for stage in (1, 2, 3):
        found[f"stage {stage}"] = told(fit(root, strategy=f"deepspeed_stage_{stage}"))
    found["bf16"] = told(fit(root, strategy="deepspeed_stage_2", precision="bf16-true"))
    found["offload"] = told(fit(root, Model(on_host=True), strategy="deepspeed_stage_3_offload"))
    found["late"] = told(fit(root, Model(late=True), strategy="deepspeed_stage_3"))
    config = {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2, "contiguous_gradients": True, "overlap_comm": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 2, "warmup_max_lr": 1e-2}},
    }
    found["config"] = told(fit(root, strategy=DeepSpeedStrategy(config=config)))
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run_ranks(_plain, 1, str(tmp_path_factory.mktemp("plain")), timeout_s=170)[0]


def test_every_stage_has_the_losses_and_evaluations_of_one_process(tmp_path, plain):
    ranks = run_ranks(_jobs, 2, str(tmp_path), timeout_s=170)
    for name in ("stage 1", "stage 2", "stage 3", "offload", "late"):
        assert mean(ranks, name) == pytest.approx(plain["fp32"]["losses"], rel=EXACT), name
        assert ranks[0][name]["evaluated"] == pytest.approx(plain["fp32"]["evaluated"], rel=EXACT), name
    assert mean(ranks, "bf16") == pytest.approx(plain["bf16"]["losses"], rel=HALF)
    assert mean(ranks, "config")[:ACCUMULATED] == pytest.approx(plain["fp32"]["losses"][:ACCUMULATED], rel=EXACT)
    assert ranks[0]["late"]["placed"] == {8 * 32, 32, 1}  # made in shards: parameters know their whole size
    assert ranks[0]["stage 3"]["placed"] == {0}


def _save(folder: str) -> dict[str, Any]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    made = fit(
        Path(folder),
        strategy="deepspeed_stage_3",
        keep=True,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{epoch}", monitor="validation", save_top_k=-1)],
    )
    with made["trainer"].strategy.model.gathered(list(made["model"].parameters())):
        weights = {name: value.clone() for name, value in made["model"].state_dict().items()}
    best = float(made["trainer"].checkpoint_callback.best_model_score)
    return {**told(made), "weights": weights, "best": best}


def _resume(folder: str) -> dict[str, Any]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    callback = ModelCheckpoint(dirpath=folder, filename="{epoch}", monitor="validation", save_top_k=-1)
    first = str(Path(folder) / "epoch=0.ckpt")
    made = fit(Path(folder), strategy="deepspeed_stage_1", ckpt_path=first, keep=True, callbacks=[callback])
    found = told(made)
    quiet()
    again = trainer(Path(folder), strategy="deepspeed_stage_3")
    model = Model()
    again.validate(model, batches(), ckpt_path=str(Path(folder) / "epoch=1.ckpt"), verbose=False)
    found["validated"] = float(again.callback_metrics["validation"])
    again.strategy.model.destroy()
    return found


def test_checkpoints_resume_at_another_stage_and_become_one_file(tmp_path, plain):
    saved = run_ranks(_save, 2, str(tmp_path), timeout_s=170)
    ranks = run_ranks(_resume, 2, str(tmp_path), timeout_s=170)
    whole = plain["fp32"]
    rest = [sum(pair) / 2 for pair in zip(*(rank["losses"] for rank in ranks), strict=True)]
    assert rest == pytest.approx(whole["losses"][len(whole["losses"]) // 2 :], rel=EXACT)
    assert ranks[0]["validated"] == pytest.approx(whole["evaluated"][-1], rel=EXACT)

    from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

    file = tmp_path / "whole.pt"
    kept = convert_zero_checkpoint_to_fp32_state_dict(str(tmp_path / "epoch=1.ckpt"), str(file))
    assert all(torch.equal(value, saved[0]["weights"][name]) for name, value in kept["state_dict"].items())
    (callback,) = [state for key, state in kept["callbacks"].items() if key.startswith("ModelCheckpoint")]
    assert float(callback["best_model_score"]) == saved[0]["best"]
    assert isinstance(callback["best_model_score"], torch.Tensor)
    model = Model.load_from_checkpoint(file, weights_only=False)
    assert all(torch.equal(value, saved[0]["weights"][name]) for name, value in model.state_dict().items())


def _fabric(folder: str) -> dict[str, Any]:
    """A loop of Fabric's at every stage, saved after two steps and gone on with in new objects."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DeepSpeedStrategy

    quiet()
    found = {}
    ranks = int(os.environ["WORLD_SIZE"])
    for stage in (None,) if ranks == 1 else (1, 2, 3):
        config = {
            "gradient_accumulation_steps": ACCUMULATED,
            "gradient_clipping": CLIP,
            "train_micro_batch_size_per_gpu": BATCH // ranks,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage},
        }
        place: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
        if stage is not None:
            place = {"accelerator": FabricHost(), "devices": ranks, "strategy": DeepSpeedStrategy(config=config)}
        fabric = Fabric(**place)
        fabric.launch()
        losses: list[float] = []
        for part in range(2):
            with fabric.init_module():
                model = Model().make()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            model, optimizer = fabric.setup(model, optimizer)
            loader = fabric.setup_dataloaders(batches(), use_distributed_sampler=False)
            state = {"model": model, "optimizer": optimizer, "rows": 0}
            path = Path(folder) / f"stage {stage}"
            if part == 1:
                fabric.load(path, state)
                assert state["rows"] == ROWS_SEEN, (state["rows"], stage)
            for index, (x, y) in enumerate(loader):
                loss = torch.nn.functional.mse_loss(model(x), y)
                fabric.backward(loss if stage is not None else loss / ACCUMULATED, model=model)
                if stage is not None:
                    optimizer.step()  # the engine knows its boundary, and clears gradients there
                elif (index + 1) % ACCUMULATED == 0:
                    fabric.clip_gradients(model, optimizer, max_norm=CLIP)
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(float(fabric.all_reduce(loss.detach(), reduce_op="mean")))
                state["rows"] += len(x) * fabric.world_size
            if part == 0:
                fabric.save(path, state)
            if stage is not None:
                model._forward_module.destroy()
        found[str(stage)] = losses
    return found


ROWS_SEEN = 32


def test_fabric_trains_saves_and_loads(tmp_path):
    alone = run_ranks(_fabric, 1, str(tmp_path / "alone"), timeout_s=170)[0]["None"]
    ranks = run_ranks(_fabric, 2, str(tmp_path), timeout_s=170)
    for stage in ("1", "2", "3"):
        assert ranks[0][stage] == pytest.approx(alone, rel=EXACT)


def _on_cpu(folder: str) -> None:
    fit(Path(folder), strategy="deepspeed_stage_2", accelerator="cpu")


def test_its_strategy_itself_refuses_cpus(tmp_path):
    """Why these tests bring an accelerator of their own; nothing of this wheel."""
    with pytest.raises(RankError, match="only supported on CUDA GPUs but `CPUAccelerator`"):
        run_ranks(_on_cpu, 2, str(tmp_path), timeout_s=170)
