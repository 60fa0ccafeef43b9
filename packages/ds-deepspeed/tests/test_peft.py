"""Adapters of PEFT with transformers' Trainer through this wheel: trained, saved, loaded, at stages 2 and 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_jobs import BATCH, Sequences, arguments, clean_state, ds_config, history, llama

from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks
EXACT = 2e-5


def adapted() -> Any:
    """The Llama with adapters of rank 4; what is not theirs is frozen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(9)
    model = llama()
    model.enable_input_require_grads()
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))


def _run(folder: str, stages: list[int | None]) -> dict[str, Any]:
    """Trains and saves at each stage; None is without deepspeed."""
    from peft import PeftModel
    from transformers import Trainer

    found = {}
    for stage in stages:
        out = Path(folder) / str(stage)
        with clean_state():
            given = arguments(out, None if stage is None else ds_config(stage))
            data = {"train_dataset": Sequences(), "eval_dataset": Sequences(BATCH * 2)}
            trainer = Trainer(model=adapted(), args=given, **data)
            trainer.train()
            trainer.save_model(str(out / "adapter"))
            found[str(stage)] = history(trainer)
            if stage is not None:
                trainer.model_wrapped.destroy()
        with clean_state():
            loaded = PeftModel.from_pretrained(llama(), out / "adapter")
            again = Trainer(model=loaded, args=arguments(out), eval_dataset=Sequences(BATCH * 2))
            found[str(stage)]["loaded"] = [again.evaluate()["eval_loss"]]
    return found


def test_adapters_train_save_and_load_as_on_one_process(tmp_path):
    plain = run_ranks(_run, 1, str(tmp_path / "plain"), [None], timeout_s=170)[0]["None"]
    found = run_ranks(_run, 2, str(tmp_path), [2, 3], timeout_s=170)[0]
    for stage in ("2", "3"):
        for name, values in plain.items():
            assert found[stage][name] == pytest.approx(values, rel=EXACT, abs=1e-9), (stage, name)
    assert plain["loaded"][0] == pytest.approx(plain["eval_loss"][-1], rel=EXACT)
    names = sorted(path.name for path in (tmp_path / "3" / "adapter").iterdir())
    assert "adapter_model.safetensors" in names
