"""Checkpoints that DeepSpeed wrote: loaded by engines of other stages and sizes, to the bit, and trained on.

The checkpoints are in golden/deepspeed, with the values that DeepSpeed's own functions give for them and the weights
after its next update; tools/golden_deepspeed.py writes them anew.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ds_core
from ds_core.checkpoint.sources import open_source
from ds_core.testing import run_ranks
from ds_core.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

GOLDEN = Path(__file__).parent / "golden" / "deepspeed"


def program_of(folder: Path) -> ModuleType:
    """The model and the data of the golden checkpoints."""
    spec = importlib.util.spec_from_file_location("golden_deepspeed", folder / "program.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


program = program_of(GOLDEN)
NEXT = {"fp32": 2e-6, "bf16": 2e-2, "fp16": 2e-3}
"""Largest difference of weights after the next update: rounding of the working dtype, and the order of sums."""


def expected(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / name.removesuffix("-universal") / "expected.safetensors")


def build(case, stage: int):
    """An engine of ours with the case's optimizer and settings, but for the stage."""
    model = program.Tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    config = {**program.config(case), "zero_optimization": {"stage": stage}}
    if case.optimizer == "fused":
        config["optimizer"] = {"type": "AdamW", "params": {"lr": 0.01}}
        return ds_core.initialize(model=model, model_parameters=program.groups(model), config=config)[0]
    return ds_core.initialize(model=model, optimizer=program.optimizer(case, model), config=config)[0]


def words_for(case, number: int, rank: int, ranks: int) -> torch.Tensor:
    """This rank's part of what the ranks of the golden run saw, so that the mean over ranks is the same."""
    theirs = [program.batch(number, r) for r in range(case.ranks)]
    return torch.cat(theirs[rank * case.ranks // ranks : (rank + 1) * case.ranks // ranks])


def resume(folder: str, name: str, stage: int) -> dict[str, Any]:
    """Loads the golden checkpoint and makes one update; what the engine had before and after."""
    case = program.CASES[name.removesuffix("-universal")]
    engine = build(case, stage)
    path, client = engine.load_checkpoint(Path(folder) / name)
    found: dict[str, Any] = {
        "path": path,
        "client": client,
        "counters": engine.counters(),
        "scale": engine.optimizer.loss_scale,
    }
    found["tensors"] = tensors = {}
    for key, value in engine.module_state_dict().items():
        tensors[f"model/{key}"] = value.clone()
    for key, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            tensors[f"optimizer/master/{key}"] = safe_get_full_fp32_param(parameter).clone()
            for state in ("momentum_buffer",) if case.optimizer == "sgd" else ("exp_avg", "exp_avg_sq"):
                tensors[f"optimizer/{state}/{key}"] = safe_get_full_optimizer_state(parameter, state).clone()
    rank, ranks = ds_core.comm.get_rank(), ds_core.comm.get_world_size()
    engine.backward(engine(words_for(case, program.STEPS, rank, ranks)))
    engine.step()
    found["next"] = {key: value.clone() for key, value in engine.module_state_dict().items()}
    found["lr"] = engine.get_lr()
    engine.destroy()
    return found


def resume_all(folder: str, cells: list[tuple[str, int]]) -> list[dict[str, Any]]:
    return [resume(folder, name, stage) for name, stage in cells]


@functools.cache
def all_of(ranks: int) -> dict[tuple[str, int], dict[str, Any]]:
    """What rank 0 found in every run of so many ranks; they are made once for all tests."""
    cells = [(name, stage) for name, stage, count in RUNS if count == ranks]
    return dict(zip(cells, run_ranks(resume_all, ranks, str(GOLDEN), cells, timeout_s=200)[0], strict=True))


def resumed(name: str, stage: int, ranks: int) -> dict[str, Any]:
    return all_of(ranks)[name, stage]


SHARDED = ["z1-fp32", "z1-fp16", "z1-fused", "z2-bf16", "z2-sgd", "z3-fp32", "z3-bf16"]
TARGETS = [(0, 1), (3, 1), (0, 2), (3, 2)]
RUNS = [
    *((name, stage, ranks) for name in ("z1-fp32", "z2-bf16", "z3-bf16") for stage, ranks in TARGETS),
    *((name, 3, 2) for name in SHARDED if name not in ("z1-fp32", "z2-bf16", "z3-bf16")),
    *((name, 1, 2) for name in ("z0-fp32", "z0-bf16", "z0-fp16-fused", "z1-elastic")),
    ("z1-fp32-alone", 1, 1),
    *((name, 2, 2) for name in ("z2-bf16-universal", "z3-fp32-universal")),
]


@pytest.mark.parametrize(("name", "stage", "ranks"), RUNS)
def test_what_deepspeed_saved_comes_back_to_the_bit(name, stage, ranks):
    found, golden = resumed(name, stage, ranks), expected(name)
    values = {key: value for key, value in golden.items() if key.startswith(("model/", "optimizer/"))}
    assert values
    wrong = [key for key, value in values.items() if not torch.equal(found["tensors"][key], value)]
    assert not wrong


# DeepSpeed's fused optimizer without ZeRO, run on a CPU in fp16, divides gradients by the loss scale twice (the states
# it saves are smaller by the scale, and its square); what it does next is not what any Adam would do.
AS_ADAM = [run for run in RUNS if run[0] != "z0-fp16-fused"]


@pytest.mark.parametrize(("name", "stage", "ranks"), AS_ADAM)
def test_the_next_update_is_the_one_deepspeed_made(name, stage, ranks):
    found, golden = resumed(name, stage, ranks), expected(name)
    dtype = program.CASES[name.removesuffix("-universal")].dtype
    after = {key.removeprefix("next/"): value for key, value in golden.items() if key.startswith("next/")}
    apart = {key: (found["next"][key].float() - value.float()).abs().max().item() for key, value in after.items()}
    moved = {
        key: (found["tensors"][f"model/{key}"].float() - value.float()).abs().max() for key, value in after.items()
    }
    assert max(apart.values()) < NEXT[dtype], apart
    assert max(moved.values()) > 1e-3, "the update changed nothing, so this test shows nothing"
    assert found["lr"] == pytest.approx(golden["lr"].tolist(), rel=1e-12)


@pytest.mark.parametrize(("name", "stage", "ranks"), [run for run in RUNS if run[1:] == (3, 2)])
def test_counters_and_client_state_come_along(name, stage, ranks):
    found = resumed(name, stage, ranks)
    case = program.CASES[name]
    samples = program.STEPS * program.ROWS * case.ranks
    counters = {"global_steps": 3, "global_samples": samples, "micro_steps": 3, "skipped_steps": 0}
    assert found["counters"] == counters
    assert found["client"] == {"epoch": 4, "note": "hi", "best": [0.5, None]}
    assert found["path"].endswith("global_step3")


def test_the_loss_scaler_goes_on_where_it_was():
    source = open_source(GOLDEN / "z1-fp16")
    assert source.value("loss_scale") == {"scale": 512.0, "clean_steps": 3, "tolerance": 2}
    assert resumed("z1-fp16", 3, 2)["scale"] == 512.0


def test_what_is_not_plain_is_left_out_by_name(caplog):
    open_source(GOLDEN / "z1-fp32")
    assert "left out: client_state['odd'] (set)" in caplog.text


def test_ranks_read_only_their_ranges(monkeypatch):
    from ds_core.checkpoint.foreign.window import Window

    source = open_source(GOLDEN / "z3-fp32")
    sizes: list[int] = []
    whole = Window.read_into
    monkeypatch.setattr(
        Window, "read_into", lambda self, view, start=0: (sizes.append(len(view)), whole(self, view, start))
    )
    out = torch.empty(10)
    source.read("model/embed.weight", out, 30)
    assert torch.equal(out, expected("z3-fp32")["model/embed.weight"].view(-1)[30:40])
    assert sum(sizes) == 40
    assert len(sizes) == 2, "elements 30 to 40 lie on two ranks"


def test_weights_alone_need_no_optimizer():
    case = program.CASES["z0-fp32"]
    engine = build(case, 1)
    engine.load_checkpoint(GOLDEN / "z0-fp32", load_module_only=True)
    assert torch.equal(engine.module.embed.weight, expected("z0-fp32")["model/embed.weight"])
    assert engine.global_steps == 0


def test_numbered_states_without_an_engine_are_left_out_and_said(caplog):
    source = open_source(GOLDEN / "z0-fp32")
    assert source.value("optimizer") is None
    assert "numbers its optimizer states" in caplog.text
