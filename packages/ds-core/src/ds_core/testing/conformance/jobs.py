"""Training runs of the cases: on this process's device, or as a rank of several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_core import comm
from ds_core.testing.conformance import models
from ds_core.testing.conformance.models import ROWS, Trained
from ds_core.testing.conformance.together import accelerator_of

__all__ = ["Dropped", "continued", "train", "train_rank"]

STEPS = 4


def train(id: str, name: str, settings: dict[str, Any], *, steps: int = STEPS) -> Trained:
    """The engine on one rank, over the batches of `models.batches`; leaves no process group."""
    engine, done = models.engine_for(id, name, settings), Trained()
    rows = ROWS * engine.gradient_accumulation_steps()
    for x, y in models.batches(name, steps, rows):
        done.losses.append(models.step(engine, x, y))
        done.norms.append(float(engine.get_global_grad_norm() or 0.0))
    done.params = models.parameters_of(engine)
    engine.destroy()
    comm.destroy_process_group()
    return done


def train_rank(id: str, name: str, settings: dict[str, Any], *, steps: int = STEPS) -> dict[str, Any]:
    """The engine on this rank's share of every batch; what `Trained` holds, the losses averaged over the ranks."""
    accelerator_of(id, int(os.environ["RANK"]))
    engine, done = models.engine_for(id, name, settings), Trained()
    rank, world = comm.get_rank(), comm.get_world_size()
    rows = ROWS * engine.gradient_accumulation_steps()
    for x, y in models.batches(name, steps, rows * world):
        mine = slice(rank * rows, (rank + 1) * rows)
        losses = comm.gather_json(models.step(engine, x[mine], y[mine]))
        done.losses.append(sum(losses) / world)
        done.norms.append(float(engine.get_global_grad_norm() or 0.0))
    done.params = models.parameters_of(engine)
    engine.destroy()
    return {"losses": done.losses, "norms": done.norms, "params": done.params}


class Dropped(nn.Module):
    """A layer on either side of dropout, so that a run repeats only with the generator's state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 32)
        self.second = nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(nn.functional.dropout(torch.tanh(self.first(x)), 0.5, self.training))
        return result


def continued(ids: list[str], folder: Path, at: int, *, steps: int = STEPS, dropout: bool = False) -> Trained:
    """A run that stops after `at` steps with a checkpoint and goes on, on the accelerators `ids` in turn.

    With one accelerator it is a run that never stops.
    """
    done = Trained()
    for place, id in enumerate(ids):
        engine = _dropped(id) if dropout else models.engine_for(id, "gpt", models.config(ROWS))
        if place:
            path, _ = engine.load_checkpoint(folder)
            assert path is not None
        data = models.batches("mlp" if dropout else "gpt", steps, ROWS)
        last = steps if len(ids) == 1 or place else at
        for x, y in data[engine.global_steps : last]:
            done.losses.append(models.step(engine, x, y))
        if last < steps:
            engine.save_checkpoint(folder)
            engine.wait_for_checkpoint()
        done.params = models.parameters_of(engine)
        engine.destroy()
        comm.destroy_process_group()
    return done


def _dropped(id: str) -> Any:
    import ds_core
    from ds_core.accelerator import select

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        weights = Dropped().state_dict()
    with select(id).device():
        model = Dropped()
    model.load_state_dict(weights)
    settings = models.config(ROWS, seed=17)
    return ds_core.initialize(model=model, config=settings, accelerator=id)[0]
