"""Models by a line of text: a callable, a Hugging Face config file, a transformer's sizes, or a number of parameters.

All are made on the meta device: shapes without values, so a model of any size takes seconds and no memory.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_core.errors import ConfigError, DsError, MissingWheelError, did_you_mean
from ds_zero.estimate.shapes import from_shapes

__all__ = ["FORMS", "count", "model_of"]

FORMS = (
    "package.module:callable, a Hugging Face config.json, gpt:layers=..,dim=..,vocab=..,heads=.., or "
    "params:TOTAL,largest=ELEMENTS"
)
"""The forms a model is named in, for messages."""

GPT_KEYS = ("layers", "dim", "vocab", "heads")
GPT_DEFAULTS: Mapping[str, int] = {"ffn": 0, "kv_heads": 0, "positions": 2048, "gated": 0, "bias": 1, "tied": 1}
"""Sizes that may be left out: ffn is 4 dim then, kv_heads is heads; positions 0 has no table of positions."""

MOST_PARTS = 100_000
"""Parameters that ``params:`` is cut into at most."""


def model_of(spec: str) -> nn.Module:
    """The model that `spec` names; see `FORMS`.

    Raises:
        ConfigError: the text has none of the forms, a value in it is wrong, or the model cannot be made.
        MissingWheelError: it needs transformers, which is not installed.
    """
    kind, _, rest = spec.partition(":")
    if kind == "gpt":
        return _gpt(rest)
    if kind == "params":
        return _params(rest)
    if spec.endswith(".json"):
        return _hugging_face(Path(spec))
    if rest:
        return _called(spec, kind, rest)
    raise ConfigError(f"--model must be {FORMS}, got {spec!r}")


def count(text: str, what: str) -> int:
    """A whole number written as 12288, 50_257, 70e9 or 1.5e9.

    Raises:
        ConfigError: it is none, or below 0.
    """
    try:
        number = float(text.replace("_", ""))
        whole = int(number)
    except (ValueError, OverflowError):
        whole, number = -1, 0.0
    if whole != number or whole < 0:
        raise ConfigError(f"{what} must be a whole number of 0 or more, like 12288 or 70e9, got {text!r}")
    return int(text.replace("_", "")) if text.replace("_", "").isdecimal() else whole


def _pairs(text: str, form: str, known: tuple[str, ...]) -> dict[str, int]:
    """``key=value,key=value`` as numbers."""
    found: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key not in known:
            raise ConfigError(
                f"--model {form}: has no setting {item.strip()!r}.{did_you_mean(key, known)} Known, each as "
                f"key=number: {', '.join(known)}"
            )
        found[key] = count(value, f"--model {form}:{key}")
    return found


# --- sizes ----------------------------------------------------------------------------------------------------------


class Linear(nn.Linear):
    """Without values, which take most of the time to make even where there are none."""

    def reset_parameters(self) -> None:
        """Does nothing."""


class Embedding(nn.Embedding):
    """As `Linear`."""

    def reset_parameters(self) -> None:
        """Does nothing."""


class LayerNorm(nn.LayerNorm):
    """As `Linear`."""

    def reset_parameters(self) -> None:
        """Does nothing."""


def _gpt(text: str) -> nn.Module:
    """A decoder-only transformer: embeddings, blocks of attention and feed-forward, a last norm, a head."""
    given = _pairs(text, "gpt", (*GPT_KEYS, *GPT_DEFAULTS))
    missing = [key for key in GPT_KEYS if not given.get(key)]
    if missing:
        raise ConfigError(f"--model gpt: must also give {', '.join(missing)}, above 0; got {text!r}")
    sizes = {**GPT_DEFAULTS, **given}
    dim, heads = sizes["dim"], sizes["heads"]
    kv_heads = sizes["kv_heads"] or heads
    if dim % heads or heads % kv_heads:
        raise ConfigError(f"--model gpt: dim {dim} must divide by heads {heads}, and heads by kv_heads {kv_heads}")
    kv = dim // heads * kv_heads
    with torch.device("meta"):
        model = nn.Module()
        model.tokens = Embedding(sizes["vocab"], dim)
        if sizes["positions"]:
            model.positions = Embedding(sizes["positions"], dim)
        model.blocks = nn.ModuleList(
            _block(dim, kv, sizes["ffn"] or 4 * dim, bool(sizes["bias"]), bool(sizes["gated"]))
            for _ in range(sizes["layers"])
        )
        model.norm = LayerNorm(dim, bias=bool(sizes["bias"]))
        model.head = Linear(dim, sizes["vocab"], bias=False)
    if sizes["tied"]:
        model.head.weight = model.tokens.weight
    return model


def _block(dim: int, kv: int, ffn: int, bias: bool, gated: bool) -> nn.Module:
    block = nn.Module()
    block.norm_1 = LayerNorm(dim, bias=bias)
    block.qkv = Linear(dim, dim + 2 * kv, bias=bias)
    block.out = Linear(dim, dim, bias=bias)
    block.norm_2 = LayerNorm(dim, bias=bias)
    if gated:
        block.gate = Linear(dim, ffn, bias=bias)
    block.up = Linear(dim, ffn, bias=bias)
    block.down = Linear(ffn, dim, bias=bias)
    return block


def _params(text: str) -> nn.Module:
    """As many parameters of one size as come to the total; all that is known of a model one has not seen."""
    total_text, _, rest = text.partition(",")
    total = count(total_text, "--model params:")
    largest = _pairs(rest, "params", ("largest",)).get("largest", total)
    if not 0 < largest <= total:
        raise ConfigError(f"--model params: largest must be from 1 to the total of {total}, got {largest}")
    if total // largest > MOST_PARTS:
        raise ConfigError(
            f"--model params: {total} elements in parameters of {largest} are more than {MOST_PARTS}; raise largest"
        )
    sizes = [largest] * (total // largest) + [total % largest] * bool(total % largest)
    return from_shapes({f"parts.{place}.weight": (size,) for place, size in enumerate(sizes)})


# --- modules --------------------------------------------------------------------------------------------------------


@contextmanager
def _importable_here() -> Iterator[None]:
    """Modules of the current folder can be imported inside, as in a script that lies there."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _called(spec: str, module_name: str, path: str) -> nn.Module:
    with _importable_here():
        try:
            found: Any = importlib.import_module(module_name)
        except ImportError as error:
            raise ConfigError(f"--model {spec!r}: {module_name!r} cannot be imported: {error}") from error
        for name in path.split("."):
            if not hasattr(found, name):
                raise ConfigError(f"--model {spec!r}: there is no {name!r}.{did_you_mean(name, dir(found))}")
            found = getattr(found, name)
        if not callable(found):
            raise ConfigError(f"--model {spec!r} names a {type(found).__name__}; it must be callable without arguments")
        try:
            with torch.device("meta"):
                model = found()
        except DsError:
            raise
        except Exception as error:
            raise ConfigError(
                f"--model {spec!r} failed under torch.device('meta'), {type(error).__name__}: {error}. A model is "
                "planned without values: its constructor must not read any"
            ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {spec!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _hugging_face(path: Path) -> nn.Module:
    """The architecture a Hugging Face ``config.json`` names, untrained; nothing is downloaded."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or "model_type" not in data:
        raise ConfigError(f"--model {str(path)!r} is not a Hugging Face model config: it has no model_type")
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingWheelError(
            f"--model {str(path)!r} is a Hugging Face config, which needs transformers: pip install transformers"
        ) from error
    try:
        config = transformers.AutoConfig.for_model(**{key: data[key] for key in data if key != "transformers_version"})
        architecture = getattr(transformers, (data.get("architectures") or [""])[0], None)
        with torch.device("meta"):
            model = (architecture or transformers.AutoModel.from_config)(config)
    except Exception as error:
        raise ConfigError(
            f"--model {str(path)!r}: transformers cannot make it, {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {str(path)!r}: {type(model).__name__} is not a torch.nn.Module")
    return model
