"""The small files of a Hugging Face folder: configuration, generation defaults, tokenizer; no weights.

Note [The dtype a configuration names]
    transformers loads weights in the dtype that ``config.json`` names, whatever the files hold. So it is set to what
    is written, at every level that names one; else weights exported in fp32 would be rounded when they are loaded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ds_core.errors import CheckpointError

__all__ = ["copied_files", "model_files"]

CONFIG = "config.json"
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
"""What a model's folder keeps besides weights: tokenizers have vocabularies of all these kinds, some models code."""
LEFT_OUT = ("*.index.json", "trainer_state.json", "*_results.json")
_DTYPE_KEYS = ("dtype", "torch_dtype")
_FLOATS = {"float64", "float32", "float16", "bfloat16"}


def model_files(module: torch.nn.Module, dtype: torch.dtype | None) -> dict[str, bytes]:
    """Name to content for a module of transformers, as its ``save_pretrained`` would write them; none for another.

    Args:
        module: asked for its ``config`` and, if it generates, its ``generation_config``.
        dtype: the weights' dtype; None: what the parameters have.
    """
    config: Any = getattr(module, "config", None)
    if not callable(getattr(config, "save_pretrained", None)):
        return {}
    made: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name:
        config.save_pretrained(name)
        generation: Any = getattr(module, "generation_config", None)
        if callable(getattr(generation, "save_pretrained", None)):
            generation.save_pretrained(name)
        made = {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}
    settings = json.loads(made[CONFIG])
    settings["architectures"] = [type(module).__name__]
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    made[CONFIG] = _with_dtype(settings, dtype or own)
    return made


def copied_files(folder: Path, dtype: torch.dtype | None) -> dict[str, bytes]:
    """Name to content of the small files of a Hugging Face folder.

    Args:
        folder: a model's folder.
        dtype: the dtype ``config.json`` shall name; None leaves it.

    Raises:
        CheckpointError: `folder` has no ``config.json``, or that is no JSON object.
    """
    try:
        settings = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not a Hugging Face model folder: {CONFIG} cannot be read: {error}"
        ) from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{folder / CONFIG} is not a JSON object")
    files = {path.name: path.read_bytes() for path in _small(folder)}
    if dtype is not None:
        files[CONFIG] = _with_dtype(settings, dtype)
    return files


def _small(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(map(path.match, COPIED)) and not any(map(path.match, LEFT_OUT)):
            yield path


def _with_dtype(settings: dict[str, Any], dtype: torch.dtype) -> bytes:
    """See Note [The dtype a configuration names]."""
    name = str(dtype).removeprefix("torch.")

    def change(level: dict[str, Any]) -> None:
        for key, value in level.items():
            if isinstance(value, dict) and "quant" not in key:
                change(value)
            elif key in _DTYPE_KEYS and value in _FLOATS:
                level[key] = name

    change(settings)
    if not any(key in settings for key in _DTYPE_KEYS):
        settings["dtype"] = name
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
