"""PipelineModule: what it makes where, under which names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from staged_model import VOCABULARY, WIDTH, Block, batches, layers, loss_fn, make, settings
from torch import nn

import ds_core
from ds_core import comm
from ds_core.testing import run_ranks
from ds_pipeline import (
    LayerSpec,
    PartitionError,
    PipeDataParallelTopology,
    PipelineError,
    PipelineModule,
    TiedLayerSpec,
)

made: list[str] = []


class Noted(nn.Module):
    """A layer that says when it is made, with real values."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        if not self.weight.is_meta:
            made.append(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def noted(stages: int) -> tuple[list[str], list[str], list[int], str]:
    """What this rank makes and holds."""
    made.clear()
    module = PipelineModule([LayerSpec(Noted, f"layer {index}") for index in range(5)], num_stages=stages)
    assert module.num_pipeline_stages() == module.topology().get_dim("pipe") == stages
    return list(made), [name for name, _ in module.named_parameters()], module.partitions, module.partition_plan


@pytest.mark.ranks
def test_a_rank_makes_its_own_layers_only_under_their_global_names() -> None:
    first, second = run_ranks(noted, 2, 2)
    assert first[0] == ["layer 0", "layer 1", "layer 2"]
    assert second[1] == ["layers.3.weight", "layers.4.weight"]
    assert first[2] == second[2] == [0, 3, 5]
    assert first[3] == second[3]


def test_alone_it_is_a_sequential_model_with_modules_and_functions() -> None:
    linear = nn.Linear(WIDTH, WIDTH)
    module = PipelineModule([linear, torch.tanh, LayerSpec(nn.Linear, WIDTH, 3)], num_stages=4)
    x = torch.randn(2, WIDTH)
    assert torch.equal(module(x), module.layers["2"](torch.tanh(linear(x))))
    assert list(module.state_dict()) == ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]
    assert (module.num_pipeline_stages(), module.stage_owner(2), module.partitions) == (1, 0, [0, 3])


def test_tied_layers_are_one_module() -> None:
    module = make("tied")
    names = [name for name, _ in module.named_parameters() if "layers" not in name]
    assert names == ["tied.embed.weight"]
    assert module.get_tied_weights_and_groups() == []


def weights_of(stages: int, seed_layers: bool) -> dict[str, torch.Tensor]:
    """Weights this rank made."""
    torch.manual_seed(comm.get_rank())
    module = PipelineModule(layers("tied"), stages, seed_layers=seed_layers)
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


@pytest.mark.ranks
def test_seeded_layers_do_not_depend_on_the_division() -> None:
    whole = run_ranks(weights_of, 1, 1, True)[0]
    for rows in (run_ranks(weights_of, 2, 2, True), run_ranks(weights_of, 3, 3, True)):
        for row in rows:
            assert all(torch.equal(whole[name], value) for name, value in row.items())
    unseeded = run_ranks(weights_of, 2, 1, False)
    assert not torch.equal(unseeded[0]["layers.1.up.weight"], unseeded[1]["layers.1.up.weight"])


def test_making_a_module_leaves_the_random_state_of_seeded_layers_alone() -> None:
    state = torch.get_rng_state()
    make("plain")
    assert torch.equal(torch.get_rng_state(), state)


class Counting(Block):
    """A block that counts its forward passes."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counting.calls += 1
        return super().forward(x)


def calls_of(interval: int, **arguments: Any) -> int:
    """Forward passes of four blocks in a step of one micro-batch."""
    module = PipelineModule([LayerSpec(Counting) for _ in range(4)], 1, loss_fn=lambda x, y: x.sum(), **arguments)
    module.set_checkpoint_interval(interval)
    engine = ds_core.initialize(model=module, config=settings(1))[0]
    Counting.calls = 0
    engine.train_batch(iter([(torch.randn(2, WIDTH), None)]))
    engine.destroy()
    return Counting.calls


def test_the_checkpoint_interval_has_effect() -> None:
    assert calls_of(0) == 4
    assert calls_of(2) == 8
    assert calls_of(2, checkpointable_layers=["Block"]) == 4
    assert calls_of(1, checkpointable_layers=["Counting"]) == 8


def test_a_sample_makes_the_division_one_by_measured_time() -> None:
    sample = next(batches())[0].clone()
    module = PipelineModule(layers("tied"), 1, loss_fn=loss_fn, partition_method="best", sample=sample)
    assert module.plan.method == "profile"
    assert all(layer.ms is not None and layer.ms > 0 for layer in module.plan.layers)
    rows = sample.numel()
    embedding, block, head = (module.plan.layers[index].bytes_ for index in (0, 1, -1))
    assert embedding == 8 * rows  # the indices
    assert block is not None
    assert block >= 4 * rows * (WIDTH + 17)  # at least what goes into its two linears
    assert head == 4 * rows * WIDTH  # its input, and not the weight


def measured(stages: int) -> tuple[list[int], str]:
    """Division by time, on every rank that of the first."""
    module = PipelineModule(layers("plain"), stages, partition_method="profile", sample=next(batches())[0])
    return module.partitions, module.partition_plan


@pytest.mark.ranks
def test_all_ranks_divide_by_what_the_first_measured() -> None:
    first, second = run_ranks(measured, 2, 2)
    assert first == second


def linear() -> nn.Linear:
    """A layer."""
    return nn.Linear(WIDTH, WIDTH)


def hidden_tie() -> str:
    """Two layers that share a parameter without saying so."""
    one, two = linear(), linear()
    two.weight = one.weight
    with pytest.raises(PartitionError) as caught:
        PipelineModule([one, two], 2)
    return str(caught.value)


@pytest.mark.ranks
def test_weights_shared_behind_our_back_are_refused() -> None:
    for message in run_ranks(hidden_tie, 2):
        assert "layers 0 and 1 share a parameter" in message
        assert "TiedLayerSpec" in message


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PipelineModule([linear()]), "needs num_stages"),
        (lambda: PipelineModule([], 1), "at least one layer"),
        (lambda: PipelineModule([linear(), 3], 1), "layer 1 is 3"),
        (lambda: PipelineModule([linear()], 3, PipeDataParallelTopology(2, 1)), "has 2 ranks; give one"),
        (lambda: PipelineModule([linear()], 1, activation_checkpoint_interval=-1), "at least 0"),
        (lambda: LayerSpec(linear()), "takes a class or a function"),
        (
            lambda: PipelineModule([TiedLayerSpec("e", nn.Embedding, VOCABULARY, WIDTH, tied_weight_attr="wait")], 1),
            "no weight 'wait'; name the weights it has in tied_weight_attr: weight",
        ),
        (
            lambda: PipelineModule([TiedLayerSpec("e", linear), TiedLayerSpec("e", nn.Embedding, 3, 3)], 1),
            "made by linear and Embedding",
        ),
        (lambda: make("plain").stage_owner(99), "layer 99 does not exist"),
    ],
)
def test_mistakes_are_named(build: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        build()
