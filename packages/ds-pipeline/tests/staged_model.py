"""A small model in layers, and training of it on this rank or on several, for tests of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ds_core
from ds_core import comm
from ds_pipeline import LayerSpec, PipelineModule, TiedLayerSpec

WIDTH, VOCABULARY, LENGTH, ROWS = 12, 19, 3, 2
MICRO_BATCHES = 4


class Block(nn.Module):
    """Two linears and a norm, of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 17), nn.Linear(17, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class MaskedBlock(Block):
    """A block that hands a mask on: tuples with tensors that take no gradient."""

    def forward(self, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, mask, count = given
        return torch.where(mask, super().forward(x), x), mask, count + 1


def begin_mask(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """An activation, a bool mask and an integer."""
    return x, x.detach().abs() > 0.05, torch.zeros((), dtype=torch.int64)


def end_mask(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The activation, moved by the integer."""
    return given[0] + given[2] * 0.01


def project(embedding: nn.Embedding, x: torch.Tensor) -> torch.Tensor:
    """The embedding as the head."""
    return F.linear(x, embedding.weight)


def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy."""
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


def layers(kind: str, blocks: int = 8) -> list[Any]:
    """The layers of a model: "plain", "tied" or "tuple"."""
    if kind == "tied":
        ends = [TiedLayerSpec("embed", nn.Embedding, VOCABULARY, WIDTH)]
        head: Any = TiedLayerSpec("embed", nn.Embedding, VOCABULARY, WIDTH, forward_fn=project)
    else:
        ends, head = [LayerSpec(nn.Embedding, VOCABULARY, WIDTH)], LayerSpec(nn.Linear, WIDTH, VOCABULARY)
    if kind == "tuple":
        middle = [begin_mask, *(LayerSpec(MaskedBlock) for _ in range(blocks)), end_mask]
    else:
        middle = [LayerSpec(Block) for _ in range(blocks)]
    return [*ends, *middle, torch.tanh, head]


def make(kind: str = "plain", stages: int = 1, **arguments: Any) -> PipelineModule:
    """The model, with weights that do not depend on who has which layer."""
    return PipelineModule(layers(kind), num_stages=stages, loss_fn=loss_fn, seed_layers=True, **arguments)


def make_two() -> PipelineModule:
    """A model for two stages, of unlike sizes."""
    return make("plain", 2)


def settings(micro_batches: int = MICRO_BATCHES, **sections: Any) -> dict[str, Any]:
    """A config of one micro-batch size; `sections` on top."""
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": micro_batches,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "weight_decay": 0.1}},
        "gradient_clipping": 0.5,
        **sections,
    }


def batches(data_rank: int = 0, seed: int = 0, length: int = LENGTH) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless micro-batches of one data rank."""
    generator = torch.Generator().manual_seed(1000 * seed + data_rank)
    while True:
        tokens = torch.randint(VOCABULARY, (ROWS, length + 1), generator=generator)
        yield tokens[:, :-1], tokens[:, 1:]


class Trained:
    """What a run leaves on a rank: losses and gradient norms by step, skipped steps, and this rank's parameters."""

    def __init__(self, engine: Any, losses: list[float], norms: list[float]) -> None:
        self.losses: list[float] = losses
        self.norms: list[float] = norms
        self.skipped: int = engine.skipped_steps
        self.parameters: dict[str, torch.Tensor] = {
            name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()
        }


def train(config: Mapping[str, Any], kind: str = "plain", stages: int = 1, steps: int = 3, **arguments: Any) -> Trained:
    """Trains on this rank; the same call on one process and on many."""
    engine = ds_core.initialize(model=make(kind, stages, **arguments), config=dict(config))[0]
    data = batches(engine.get_data_parallel_rank())
    needs = engine.is_first_stage() or engine.is_last_stage()
    losses, norms = [], []
    for _ in range(steps):
        losses.append(float(engine.train_batch(data if needs else None)))
        norms.append(float(engine.get_global_grad_norm()))
    run = Trained(engine, losses, norms)
    engine.destroy()
    return run


def merged(runs: list[Trained]) -> dict[str, torch.Tensor]:
    """Parameters of all ranks; who has the same ones has the same values."""
    found: dict[str, torch.Tensor] = {}
    for run in runs:
        for name, value in run.parameters.items():
            assert torch.equal(found.setdefault(name, value), value), name
    return found


def assert_same(runs: list[Trained], reference: Trained) -> None:
    """Bit for bit the losses and parameters of another run; norms to the rounding of their sum over stages."""
    expected = reference.parameters
    found = merged(runs)
    assert found.keys() == expected.keys()
    for run in runs:
        assert run.losses == reference.losses, (run.losses, reference.losses)
        assert run.skipped == reference.skipped
        torch.testing.assert_close(run.norms, reference.norms, rtol=1e-6, atol=0.0)
    wrong = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not wrong, wrong


def assert_close(runs: list[Trained], reference: Trained, atol: float) -> None:
    """The losses and parameters of another run, where sums are added in another order."""
    expected, found = reference.parameters, merged(runs)
    assert found.keys() == expected.keys()
    for run in runs:
        torch.testing.assert_close(run.losses, reference.losses, rtol=0.0, atol=atol)
        torch.testing.assert_close(run.norms, reference.norms, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found, dict(expected), rtol=0.0, atol=atol)


def rank() -> int:
    """This process among all."""
    return comm.get_rank()


def train_all(cases: list[tuple[Mapping[str, Any], str, int]], steps: int = 3) -> list[Trained]:
    """One run after another on these ranks: config, kind of model, pipe ranks."""
    return [train(config, kind, stages, steps) for config, kind, stages in cases]
