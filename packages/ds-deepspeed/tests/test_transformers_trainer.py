"""transformers' Trainer, unmodified, through this wheel: the losses of one process and plain torch, at every stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_jobs import BATCH, Sequences, arguments, clean_state, ds_config, history, llama, train

from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

EXACT = 2e-5
"""fp32 sums in another order, over four steps of Adam."""
HALF = 2e-2
"""bf16 weights against bf16 autocast over fp32 weights."""


def close(found, wanted, bound):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert values, name
        assert found[name] == pytest.approx(values, rel=bound, abs=bound), name


def _jobs(folder: str, jobs: dict) -> dict:
    """Each job's history, by name; on every rank of one call."""
    found = {}
    for name, settings in jobs.items():
        with clean_state():
            found[name], trainer = train(Path(folder) / name, **settings)
            if trainer.is_deepspeed_enabled:
                trainer.model_wrapped.destroy()
            del trainer
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs of one process without deepspeed: the same batches, no engine."""
    jobs = {"fp32": {}, "bf16": {"bf16": True}, "own": {"own": True}}
    return run_ranks(_jobs, 1, str(tmp_path_factory.mktemp("plain")), jobs, timeout_s=120)[0]


def test_every_stage_has_the_losses_norms_and_evaluations_of_one_process(tmp_path, plain):
    jobs = {f"stage {stage}": {"deepspeed": ds_config(stage)} for stage in range(4)}
    found = run_ranks(_jobs, 2, str(tmp_path), jobs, timeout_s=120)[0]
    for name in jobs:
        close(found[name], plain["fp32"], EXACT)


def test_optimizer_schedule_and_precision_may_come_from_the_config(tmp_path, plain):
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}
    jobs = {
        "bf16": {"bf16": True, "deepspeed": ds_config(2)},
        "optimizer": {"deepspeed": ds_config(1, optimizer=True, scheduler=True)},
        "offload": {"deepspeed": ds_config(2, **offload)},
    }
    found = run_ranks(_jobs, 2, str(tmp_path), jobs, timeout_s=120)[0]
    close(found["bf16"], plain["bf16"], HALF)
    # the rate is logged before the Trainer steps its schedule, and after the engine stepped one of its own
    assert found["optimizer"].pop("learning_rate")[:-1] == pytest.approx(plain["own"].pop("learning_rate")[1:])
    close(found["optimizer"], plain["own"], EXACT)
    close(found["offload"], plain["fp32"], EXACT)


def _save(folder: str, stage: int) -> dict:
    """Four steps, a checkpoint after two, the weights at the end."""
    with clean_state():
        found, trainer = train(Path(folder), ds_config(stage), save_strategy="steps", save_steps=2)
        trainer.save_model(str(Path(folder) / "final"))
        with trainer.model_wrapped.gathered(list(trainer.model.parameters())):
            found["weights"] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.model_wrapped.destroy()
    return found


def _resume(folder: str, stage: int) -> dict:
    """Goes on from the checkpoint of step 2."""
    with clean_state():
        found, trainer = train(Path(folder) / "resumed", ds_config(stage), resume=Path(folder) / "checkpoint-2")
        trainer.model_wrapped.destroy()
    return found


@pytest.mark.parametrize(("stage", "then"), [(3, 1), (2, 3)], ids=["stage 3, 2 to 1", "stage 2, 2 to 3 at stage 3"])
def test_training_resumes_with_another_number_of_processes(tmp_path, plain, stage, then):
    ranks = 1 if then == 1 else 4
    whole = run_ranks(_save, 2, str(tmp_path), stage, timeout_s=120)[0]
    close({name: whole[name] for name in plain["fp32"]}, plain["fp32"], EXACT)
    resumed = run_ranks(_resume, ranks, str(tmp_path), stage if then == 1 else 3, timeout_s=120)[0]
    rest = {name: values[-len(resumed[name]) :] for name, values in plain["fp32"].items()}
    assert len(resumed["loss"]) == 4  # the trainer's own record of the first two comes back with its state
    close(resumed, rest, EXACT)

    from safetensors.torch import load_file

    saved = load_file(tmp_path / "final" / "model.safetensors")
    assert saved.keys() == whole["weights"].keys()
    assert all(torch.equal(value, whole["weights"][name]) for name, value in saved.items())


def _from_pretrained(folder: str) -> dict:
    """A folder of weights, loaded in shards, evaluated, trained, generated from, and loaded again after training."""
    from transformers import LlamaForCausalLM, Trainer

    made = {}
    config = ds_config(3)
    with clean_state():
        given = arguments(Path(folder) / "out", config)  # from here on, transformers constructs in shards
        model = LlamaForCausalLM.from_pretrained(folder)
        made["status"] = {parameter.ds_status.name for parameter in model.parameters()}
        made["elements"] = sum(getattr(parameter, "ds_numel", 0) for parameter in model.parameters())
        data = {"train_dataset": Sequences(), "eval_dataset": Sequences(BATCH * 2)}
        trainer = Trainer(model=model, args=given, **data)
        trainer.train()
        made["trained"] = history(trainer)
        made["evaluation"] = trainer.evaluate()["eval_loss"]
        trainer.save_model(str(Path(folder) / "after"))
        trainer.model_wrapped.destroy()
    with clean_state():
        given = arguments(Path(folder) / "out", config)
        model = LlamaForCausalLM.from_pretrained(Path(folder) / "after")
        trainer = Trainer(model=model, args=given, eval_dataset=Sequences(BATCH * 2))
        made["evaluation alone"] = trainer.evaluate()["eval_loss"]
        trainer.model_wrapped.destroy()
    return made


def test_from_pretrained_constructs_in_shards_at_stage_3(tmp_path, plain):
    model = llama()
    model.save_pretrained(tmp_path)
    found = run_ranks(_from_pretrained, 2, str(tmp_path), timeout_s=120)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert [rank["elements"] for rank in found] == [whole] * 2
    assert [rank["status"] for rank in found] == [{"NOT_AVAILABLE"}] * 2
    close(found[0]["trained"], plain["fp32"], EXACT)
    assert found[0]["evaluation"] == pytest.approx(plain["fp32"]["eval_loss"][-1], rel=EXACT)
    assert found[0]["evaluation alone"] == pytest.approx(found[0]["evaluation"], rel=EXACT)
