"""Ranks that hold different parts of a model: numbers, norms, bytes and checkpoints are those of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import divided_model
import pytest
import torch
from divided_model import FEATURES

from ds_core.testing import run_ranks

STEPS = 3
ROWS = 8
CLIP = 0.5


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


def plain(kind: str, steps: int = STEPS) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = getattr(divided_model, kind)()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    norms = []
    for x, y in batches()[:steps]:
        loss_of(model(x), y).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, CLIP)))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in model.named_parameters()}, norms


def make_engine(kind: str, ranks: int, stage: int, **zero: Any) -> Any:
    import ds_core

    model = getattr(divided_model, kind)()
    model.ranks = ranks
    batch = 4 if kind == "mixture" else 4 // ranks
    config = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // batch,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2}},
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
    expected, norms = plain(kind)
    held: set[str] = set()
    for per_rank in run_ranks(run, 4, kind, ranks, fresh=True):
        for values, mine in per_rank:
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
