"""Layers in files of their own: written by some stages, read by others, and DeepSpeed's read without being run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from staged_model import layers, make

from ds_core.errors import CheckpointError
from ds_core.testing import run_ranks
from ds_pipeline import PipelineModule
from ds_pipeline.errors import LayerFileError


def save(folder: str, kind: str, stages: int) -> dict[str, torch.Tensor]:
    model = make(kind, stages)
    model.save_state_dict(folder)
    assert model.ckpt_layer_path_list(folder, 0) == [model.ckpt_layer_path(folder, 0)]
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def load(folder: str, kind: str, stages: int) -> dict[str, torch.Tensor]:
    model = make(kind, stages, base_seed=99)
    model.load_state_dir(folder)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def merged(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: value for row in rows for name, value in row.items()}


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_layers_of_four_ranks_in_two_stages_are_read_by_other_numbers(tmp_path: Path, kind: str) -> None:
    saved = merged(run_ranks(save, 4, str(tmp_path), kind, 2))
    with_parameters = 10 if kind == "plain" else 9
    assert len(list(tmp_path.glob("layer_*-model_00-model_states.safetensors"))) == with_parameters
    for stages in (3, 1):
        found = merged(run_ranks(load, stages, str(tmp_path), kind, stages))
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], value) for name, value in saved.items())


def test_deepspeeds_files_are_read_and_a_hostile_one_is_not_run(tmp_path: Path) -> None:
    model = make()
    for index, layer in model._layers_with_files(every_tied=False):
        torch.save(layer.state_dict(), tmp_path / f"layer_{index:02d}-model_00-model_states.pt")
    other = make(base_seed=99)
    other.load_state_dir(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weight": Hostile()}, tmp_path / "layer_00-model_00-model_states.pt")
    with pytest.raises(CheckpointError):
        other.load_state_dir(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model = make()
    model.save_state_dict(tmp_path)
    model.layers["1"].norm = torch.nn.LayerNorm(5)
    with pytest.raises(LayerFileError, match=r"layer 1: norm.weight is \(12,\) in the file and \(5,\) here"):
        model.load_state_dir(tmp_path)
    model.layers["1"].extra = torch.nn.Linear(1, 1)
    with pytest.raises(LayerFileError, match=r"differ in extra\.bias, extra\.weight"):
        model.load_state_dir(tmp_path)
    (tmp_path / "layer_00-model_00-model_states.safetensors").unlink()
    with pytest.raises(LayerFileError, match=r"layer 0 has one file .*, not none"):
        model.load_state_dir(tmp_path)
    with pytest.raises(LayerFileError, match="this rank has layers 0 to 10"):
        model.ckpt_layer_path(tmp_path, 11)


def test_frozen_parameters_are_left_out_where_asked(tmp_path: Path) -> None:
    model = PipelineModule(layers("plain"), num_stages=1)
    model.layers["0"].weight.requires_grad_(False)
    model.save_state_dict(tmp_path, exclude_frozen_params=True)
    assert not model.ckpt_layer_path_list(tmp_path, 0)
    assert model.ckpt_layer_path_list(tmp_path, 1)


def test_a_prefix_names_the_stage(tmp_path: Path) -> None:
    assert make().ckpt_prefix(tmp_path, "step3") == str(tmp_path / "step3" / "module-pipe_00")


def tied_gradients() -> tuple[int, list[float], Any]:
    import ds_core
    from ds_core import comm

    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine = ds_core.initialize(model=make("tied", 2), config=config)[0]
    ties = engine.module.get_tied_weights_and_groups()
    for weight, _ in ties:
        weight.grad = torch.full_like(weight, comm.get_rank() + 1.0)
    engine.module.allreduce_tied_weight_gradients()
    found = len(ties), [float(weight.grad.mean()) for weight, _ in ties], engine.get_additional_losses()
    engine.destroy()
    return found


@pytest.mark.ranks
def test_gradients_of_tied_weights_are_added_up_by_hand() -> None:
    assert run_ranks(tied_gradients, 2) == [(1, [3.0], None)] * 2
