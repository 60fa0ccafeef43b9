"""One file for each layer of a `PipelineModule`, named by its number in the model, for any number of stages.

Written are safetensors files, ``layer_03-model_00-model_states.safetensors``, with the layer's own names. Read are
these and DeepSpeed's, of the same name with ``.pt``, which are pickles and therefore read without being run.

Source: the names of the files are those that DeepSpeed documents for checkpoints of pipelines.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.checkpoint.foreign.torch_file import read_torch_file
from ds_core.placeholder import is_placeholder
from ds_pipeline.errors import LayerFileError

__all__ = ["layer_path", "layer_paths", "load_layer", "save_layer"]

_ENDINGS = (".safetensors", ".pt")


def layer_path(folder: str | Path, index: int) -> Path:
    """Where the layer with this number is written."""
    return Path(folder) / f"layer_{index:02d}-model_00-model_states{_ENDINGS[0]}"


def layer_paths(folder: str | Path, index: int) -> list[Path]:
    """The files there are of the layer with this number: ours, else DeepSpeed's, one for each slice of the layer."""
    for ending in _ENDINGS:
        found = sorted(Path(folder).glob(f"layer_{index:02d}-*model_states{ending}"))
        if found:
            return found
    return []


def save_layer(folder: str | Path, index: int, layer: nn.Module, leave_out: Iterable[nn.Parameter] = ()) -> None:
    """Writes the layer's parameters and buffers; a layer without any has no file.

    Raises:
        LayerFileError: a parameter is in shards.
    """
    from safetensors.torch import save_file

    hidden = {id(parameter) for parameter in leave_out}
    state = {}
    for name, value in layer.state_dict(keep_vars=True).items():
        if id(value) in hidden:
            continue
        if is_placeholder(value.data):
            raise LayerFileError(
                f"layer {index}: {name} is in shards (ZeRO stage 3); inside GatheredParameters it is whole, and "
                "engine.save_checkpoint writes it as it is"
            )
        state[name] = value.detach().cpu().contiguous().clone()  # of its own: tied tensors are written twice
    if state:
        path = layer_path(folder, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, path)


def load_layer(folder: str | Path, index: int, layer: nn.Module, *, strict: bool = True) -> None:
    """Gives the layer the values in its file.

    Raises:
        LayerFileError: there is no file, or several; names or shapes are others.
    """
    names = layer.state_dict()
    if not names:
        return
    paths = layer_paths(folder, index)
    if len(paths) != 1:
        held = ", ".join(path.name for path in paths) or "none"
        raise LayerFileError(
            f"layer {index} has one file layer_{index:02d}-*model_states.safetensors or .pt in {folder}, not {held}"
            ". Layers divided by tensor parallelism are merged by DeepSpeed's ds_to_universal"
        )
    state = _read(paths[0])
    others = sorted(set(state) ^ set(names)) if strict else []
    if others:
        raise LayerFileError(f"layer {index}: {paths[0].name} and the layer differ in {', '.join(others[:5])}")
    wrong = [name for name in names if name in state and state[name].shape != names[name].shape]
    if wrong:
        shapes = f"{tuple(state[wrong[0]].shape)} in the file and {tuple(names[wrong[0]].shape)} here"
        raise LayerFileError(f"layer {index}: {wrong[0]} is {shapes}")
    with torch.no_grad():
        for name, value in layer.state_dict(keep_vars=True).items():
            if name in state:
                if is_placeholder(value.data):
                    raise LayerFileError(f"layer {index}: {name} is in shards; load before initialize")
                value.data.copy_(state[name])


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == _ENDINGS[0]:
        from safetensors.torch import load_file

        return load_file(path)
    held: Any = read_torch_file(path)
    if not isinstance(held, dict):
        raise LayerFileError(f"{path} holds {type(held).__name__}, not tensors by name")
    return {str(name): value.full() for name, value in held.items() if isinstance(value, StoredTensor)}
