"""Finds the parts of a causal language model of transformers: what runs before its layers, the layers, what runs after.

Nothing is known of any family. The layers are the list of equal blocks with the most parameters; what comes before and
after is seen in one forward over two tokens, in which only the first layer runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ds_core.errors import ModelError
from ds_core.placeholder import placeholder

__all__ = ["Anatomy", "examine", "refuse"]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model.

    Attributes:
        layers: path of the list of layers.
        count: how many layers.
        returns: elements of the tuple a layer returns; 0 where it returns a tensor.
        before: paths of modules with parameters that run before the layers.
        after: paths of those that run after.
    """

    layers: str
    count: int
    returns: int
    before: tuple[str, ...]
    after: tuple[str, ...]


def refuse(model: nn.Module, why: str) -> ModelError:
    """The error for a model that cannot be cut."""
    return ModelError(
        f"{type(model).__name__} cannot be divided into stages (pipeline.stages): {why}. Pass a "
        "ds_pipeline.PipelineModule, which takes any layers, or set pipeline.stages to 1"
    )


def examine(model: nn.Module) -> Anatomy:
    """The parts of `model`, which is left as it was.

    Raises:
        ModelError: it is not like a causal language model of transformers; the message says in what.
    """
    known = inspect.signature(model.forward).parameters
    missing = [name for name in ("input_ids", "inputs_embeds", "labels") if name not in known]
    if missing or not hasattr(model, "config"):
        raise refuse(model, "it is no causal language model of transformers (a config, and input_ids, labels)")
    path, layers = _layers(model)
    seen = _Seen()
    _probe(model, path, layers, seen)
    if seen.echoes != list(range(1, len(layers))):
        raise refuse(model, f"its forward does not run {path} one after the other")
    owners = [name for name, module in model.named_modules() if module._parameters and not _is_in(name, path)]
    silent = [name for name in owners if name not in seen.before and name not in seen.after]
    if silent:
        raise refuse(model, f"forward does not run {silent[0]!r}, which has parameters")
    return Anatomy(path, len(layers), seen.returns, tuple(seen.before), tuple(seen.after))


def _is_in(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    found: list[tuple[int, str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and len({type(layer) for layer in module}) == 1:
            found.append((sum(p.numel() for p in module.parameters()), name, module))
    if not found:
        raise refuse(model, "it has no list of equal layers")
    _, name, layers = max(found, key=lambda entry: entry[0])
    return name, layers


@dataclass
class _Seen:
    """What a forward ran, in order."""

    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    echoes: list[int] = field(default_factory=list)
    returns: int = 0
    output: Any = None
    began: bool = False


class _Echo(nn.Module):
    """Stands for a layer that need not run: gives what the first gave."""

    def __init__(self, layer: nn.Module, index: int, seen: _Seen) -> None:
        super().__init__()
        self.__dict__.update({k: v for k, v in vars(layer).items() if isinstance(v, str | int | float | bool)})
        self._index: int = index
        self._seen: _Seen = seen

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._seen.echoes.append(self._index)
        return self._seen.output


def _probe(model: nn.Module, path: str, layers: nn.ModuleList, seen: _Seen) -> None:
    is_hollow = next(model.parameters()).is_meta
    device = torch.device("cpu") if is_hollow else next(model.parameters()).device
    with _watching(model, path, layers, seen), torch.no_grad(), torch.random.fork_rng(devices=[]):
        tokens = torch.zeros((1, 2), dtype=torch.int64, device=device)
        values = _stand_ins(model) if is_hollow else {}
        try:
            functional_call(model, values, (), {"input_ids": tokens, "use_cache": False}, strict=False)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise refuse(model, f"a forward over two tokens fails: {type(error).__name__}: {error}") from error


def _stand_ins(model: nn.Module) -> dict[str, torch.Tensor]:
    """Values for a model without any, an element of memory each; buffers are zeros."""
    cpu = torch.device("cpu")
    found = {
        name: placeholder(p.shape, p.dtype, cpu) if p.dim() else torch.zeros((), dtype=p.dtype)
        for name, p in model.named_parameters()
    }
    return {**found, **{name: torch.zeros(b.shape, dtype=b.dtype) for name, b in model.named_buffers() if b.is_meta}}


@contextmanager
def _watching(model: nn.Module, path: str, layers: nn.ModuleList, seen: _Seen) -> Iterator[None]:
    handles = []
    first = layers[0]

    def begin(module: nn.Module, args: Any) -> None:
        seen.began = True

    def end(module: nn.Module, args: Any, output: Any) -> None:
        seen.output, seen.returns = output, len(output) if isinstance(output, tuple) else 0

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            found = seen.after if seen.began else seen.before
            if name not in found:
                found.append(name)

        return hook

    for name, module in model.named_modules():
        if module._parameters and not _is_in(name, path):
            handles.append(module.register_forward_pre_hook(note(name)))
    handles.append(first.register_forward_pre_hook(begin))
    handles.append(first.register_forward_hook(end))
    parent, name = _parent(model, path)
    echoes = [_Echo(layer, index, seen) for index, layer in enumerate(layers) if index]
    parent._modules[name] = nn.ModuleList([first, *echoes])
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        parent._modules[name] = layers
        model.train(was_training)
        for handle in handles:
            handle.remove()


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    above, _, name = path.rpartition(".")
    return model.get_submodule(above), name
