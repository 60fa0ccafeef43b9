"""Ranks that hold different parts of a model: numbers, norms, bytes and checkpoints are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import divided_model
import pytest
import torch
from divided_model import FEATURES
from safetensors.torch import load_file

from ds_core.testing import run_ranks

STEPS = 3
ROWS = 8
CLIP = 0.5
STAGES = {"mixture": (0, 1, 3), "staged": (0, 1)}
"""Stages of ZeRO for tests that need not go through all."""


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(ROWS, FEATURES, generator=generator), torch.randn(ROWS, FEATURES, generator=generator))
        for _ in range(STEPS)
    ]


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The sum of the losses of the stages, where the output has the columns of several."""
    parts = output.split(FEATURES, dim=1)
    return torch.stack([torch.nn.functional.mse_loss(part, target) for part in parts]).sum()


def make_model(kind: str, stage: int) -> Any:
    model = getattr(divided_model, kind)()
    if kind == "mixture":
        model.experts.is_one_idle = stage < 3
    return model


def plain(kind: str, stage: int = 0, steps: int = STEPS) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = make_model(kind, stage)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.3)
    norms = []
    for x, y in batches()[:steps]:
        loss_of(model(x), y).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, CLIP)))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, norms


def make_engine(kind: str, ranks: int, stage: int, **zero: Any) -> Any:
    import ds_core

    model = make_model(kind, stage)
    model.ranks = ranks
    batch = 4 if kind == "mixture" else 4 // ranks
    config = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // batch,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.3}},
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 8, **zero},
    }
    engine, *_ = ds_core.initialize(model=model, config=config)
    return engine


def train(engine: Any, steps: int = STEPS) -> list[float]:
    norms = []
    mesh = engine.mesh
    rank, ranks = mesh.rank(*mesh.batch_axes), mesh.size(*mesh.batch_axes)
    for x, y in batches()[:steps]:
        mine = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
        engine.backward(loss_of(engine(x[mine]), y[mine]))
        engine.step()
        norms.append(engine.get_global_grad_norm())
    return norms


def whole(engine: Any) -> dict[str, tuple[torch.Tensor, int]]:
    """Values of this rank's parameters, and at which element of the whole each begins."""
    found = {}
    with engine.gathered(list(engine.module.parameters())):
        for name, parameter in engine.module.named_parameters():
            is_slice = name in ("experts.stacked", "experts.fixed")
            start = engine.mesh.rank("expert") * parameter.numel() if is_slice else 0
            found[name] = (parameter.detach().reshape(-1).clone(), start)
    return found


def run(kind: str, ranks: int) -> list[tuple[Any, Any]]:
    divided_model.install()
    found = []
    for stage in (0, 1, 2, 3) if kind == "mixture" else (0, 1, 2):
        engine = make_engine(kind, ranks, stage)
        norms = train(engine)
        found.append((whole(engine), norms))
        engine.destroy()
    return found


@pytest.mark.ranks
@pytest.mark.parametrize(("kind", "ranks"), [("mixture", 1), ("mixture", 2), ("mixture", 4), ("staged", 2)])
def test_a_divided_model_trains_as_one_process_does(kind: str, ranks: int) -> None:
    held: set[str] = set()
    for per_rank in run_ranks(run, 4, kind, ranks, fresh=True):
        for stage, (values, mine) in enumerate(per_rank):
            expected, norms = plain(kind, stage)
            held |= values.keys()
            assert mine == pytest.approx(norms, rel=1e-5)
            for name, (value, start) in values.items():
                part = expected[name].reshape(-1)[start : start + value.numel()]
                torch.testing.assert_close(value, part, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert held == expected.keys()


def save(kind: str, ranks: int, folder: str, stage: int) -> None:
    divided_model.install()
    engine = make_engine(kind, ranks, stage)
    train(engine, 2)
    engine.save_checkpoint(folder, tag="t")
    engine.wait_for_checkpoint()
    engine.destroy()


def resume(kind: str, ranks: int, folder: str, stage: int) -> Any:
    divided_model.install()
    engine = make_engine(kind, ranks, stage)
    engine.load_checkpoint(folder)
    mesh = engine.mesh
    rank, size = mesh.rank(*mesh.batch_axes), mesh.size(*mesh.batch_axes)
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    x, y = batches()[2]
    engine.backward(loss_of(engine(x[mine]), y[mine]))
    engine.step()
    found = whole(engine)
    engine.destroy()
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["mixture", "staged"])
def test_a_checkpoint_loads_however_the_model_is_divided(kind: str, tmp_path: Path) -> None:
    expected, _ = plain(kind)
    run_ranks(save, 4, kind, 2, str(tmp_path), 1, fresh=True)
    for ranks, stage in ((1, 2), (4 if kind == "mixture" else 2, 0)):
        for values in run_ranks(resume, 4, kind, ranks, str(tmp_path), stage, fresh=True):
            for name, (value, start) in values.items():
                part = expected[name].reshape(-1)[start : start + value.numel()]
                torch.testing.assert_close(value, part, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def export(kind: str, ranks: int, folder: str) -> Any:
    divided_model.install()
    found = []
    for stage in STAGES[kind]:
        engine = make_engine(kind, ranks, stage)
        train(engine)
        engine.save_16bit_model(folder, f"{stage}.safetensors")
        own = {name: value.clone() for name, value in engine.module_state_dict().items()}
        engine.load_module_state_dict({name: value * 2 for name, value in own.items()})
        doubled = engine.module_state_dict()
        assert all(torch.equal(doubled[name], own[name] * 2) for name in own)
        found.append(own)
        engine.destroy()
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["mixture", "staged"])
def test_exported_weights_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    answers = run_ranks(export, 4, kind, 2, str(tmp_path), fresh=True)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == len(answers[0])
    for path in files:
        written, (expected, _) = load_file(path), plain(kind, int(path.stem))
        assert written.keys() == expected.keys()
        for name, value in written.items():
            torch.testing.assert_close(value, expected[name], rtol=2e-5, atol=2e-6)
    for per_stage in answers:
        for path, own in zip(files, per_stage, strict=True):
            expected, _ = plain(kind, int(path.stem))
            for name, value in own.items():
                torch.testing.assert_close(value, expected[name], rtol=2e-5, atol=2e-6)


def look(kind: str) -> Any:
    from ds_core import fragments

    divided_model.install()
    found = []
    for stage in STAGES[kind]:
        engine = make_engine(kind, 2, stage)
        x, y = batches()[0]
        mesh = engine.mesh
        rank, size = mesh.rank(*mesh.batch_axes), mesh.size(*mesh.batch_axes)
        mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        engine.backward(loss_of(engine(x[mine]), y[mine]))
        gradients = {}
        for name, parameter in engine.module.named_parameters():
            gradient = fragments.safe_get_full_grad(parameter)
            is_slice = name == "experts.stacked"
            gradients[name] = (gradient, mesh.rank("expert") * parameter.numel() if is_slice else 0)
        found.append(gradients)
        engine.step()
        engine.destroy()
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["mixture", "staged"])
def test_full_gradients_are_the_sums_over_all_who_hold_a_parameter(kind: str) -> None:
    x, y = batches()[0]
    for per_stage in run_ranks(look, 4, kind, fresh=True):
        for stage, gradients in zip(STAGES[kind], per_stage, strict=True):
            model = make_model(kind, stage)
            loss_of(model(x), y).backward()
            expected = {name: p.grad for name, p in model.named_parameters()}
            for name, (gradient, start) in gradients.items():
                if expected[name] is None:
                    assert gradient is None
                    continue
                part = expected[name].reshape(-1)[start : start + gradient.numel()]
                torch.testing.assert_close(gradient.reshape(-1), part, rtol=2e-5, atol=2e-6)


def plan(kind: str) -> str:
    from ds_core.errors import ConfigError
    from ds_zero.estimate import estimate

    divided_model.install()
    model = make_model(kind, 0)
    model.ranks = 2
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    with pytest.raises(ConfigError) as caught:
        estimate(model, config, 4)
    return str(caught.value)


@pytest.mark.ranks
@pytest.mark.parametrize(("kind", "axis"), [("mixture", "data 2, expert 2"), ("staged", "half 2, data 2")])
def test_a_plan_is_refused_where_the_plugin_that_divides_says_no_shares(kind: str, axis: str) -> None:
    said = run_ranks(plan, 1, kind, fresh=True)[0]
    assert f"{axis}, and no wheel says what a rank keeps of the model (hook ds_shares)" in said
