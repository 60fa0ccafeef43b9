"""Measures the layers of a language model of transformers, and what runs before and after them, one by one.

Note [What is measured]
    The model's own forward runs over stand-ins that note with what each layer is called: its masks, positions and
    rotary embeddings for such a batch. Then each layer runs alone, forward and backward, with that. So one layer at a
    time is on the device, beside what is outside of the layers. Where values are in pieces, random ones take their
    place: times hardly depend on them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from ds_core import comm
from ds_core.placeholder import is_placeholder
from ds_pipeline.anatomy import Anatomy
from ds_pipeline.errors import PartitionError
from ds_pipeline.partition import LayerCost
from ds_pipeline.profile import REPEATS, Kept, backward, timed
from ds_pipeline.stand_ins import HIDDEN, AbsentLayer, Call, Leave, with_hidden

__all__ = ["Sample", "measure_model"]


class Sample(NamedTuple):
    """Sizes of the batch that is measured with: of random tokens."""

    rows: int
    tokens: int


class _Cost(NamedTuple):
    """Milliseconds of forward and backward, and bytes that forward keeps."""

    ms: float
    bytes_: int


def measure_model(
    model: nn.Module,
    anatomy: Anatomy,
    layers: list[LayerCost],
    sample: Sample,
    device: torch.device,
    *,
    on_all_ranks: bool,
) -> list[LayerCost]:
    """`layers` with times and memory: those the first rank measures, on all ranks. Called on all ranks.

    What runs before the layers counts with the first, what runs after with the last.

    Args:
        model: left as it is.
        anatomy: its parts.
        layers: what is known of them.
        sample: one micro-batch.
        device: where to measure.
        on_all_ranks: every rank runs the same, for its layers need others to.

    Raises:
        PartitionError: on every rank, when the model does not run with such a batch.
    """
    mine: Any = None
    if on_all_ranks or comm.get_rank() == 0:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                mine = [list(cost) for cost in _Bench(model, anatomy, sample, device).costs()]
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
            mine = f"{type(error).__name__}: {error}"
    found = comm.gather_json(mine)[0]
    if isinstance(found, str):
        raise PartitionError(
            f"the layers of {type(model).__name__} could not be measured with {sample.rows} x {sample.tokens} tokens "
            f"(micro-batch x pipeline.sample_length): {found}; change them, or set pipeline.partition to 'parameters'"
        )
    return [replace(layer, ms=ms, bytes_=kept) for layer, (ms, kept) in zip(layers, found, strict=True)]


class _Bench:
    """One model and one batch."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, sample: Sample, device: torch.device) -> None:
        self._model: nn.Module = model
        self._anatomy: Anatomy = anatomy
        self._device: torch.device = device
        above, _, self._name = anatomy.layers.rpartition(".")
        self._parent: nn.Module = model.get_submodule(above)
        self._layers: list[nn.Module] = list(model.get_submodule(anatomy.layers).children())
        config: Any = model.config
        self._tokens: torch.Tensor = torch.randint(
            0, int(config.get_text_config().vocab_size), tuple(sample), device=device
        )
        with self._replaced([nn.Identity() for _ in self._layers]):  # without the layers
            self._outer: dict[str, torch.Tensor] = _values(model, device)

    def costs(self) -> list[_Cost]:
        """By layer."""
        doors = [_Door(layer, self._anatomy.returns) for layer in self._layers]
        with self._replaced(doors):
            with torch.no_grad():
                self._forward()
            doors[0].leaves = True
            before = self._measured(self._begin, self._outer)
            with torch.no_grad():
                begun = statistics.median(timed(self._begin) for _ in range(REPEATS))
            doors[0].leaves = False
            doors[-1].cuts = True
            after = self._measured(self._forward, self._outer)
        found = []
        for layer, door in zip(self._layers, doors, strict=True):
            values = _values(layer, self._device)
            found.append(self._measured(partial(_run, layer, values, door.call), values))
        found[0] = _Cost(found[0].ms + before.ms, found[0].bytes_ + before.bytes_)
        rest = _Cost(max(after.ms - begun, 0.0), max(after.bytes_ - before.bytes_, 0))
        found[-1] = _Cost(found[-1].ms + rest.ms, found[-1].bytes_ + rest.bytes_)
        return found

    def _forward(self) -> Any:
        given = {"input_ids": self._tokens, "labels": self._tokens, "use_cache": False}
        return functional_call(self._model, self._outer, (), given, strict=False).loss

    def _begin(self) -> Any:
        try:
            return self._forward()
        except Leave as left:
            return left.hidden

    def _measured(self, run: Callable[[], Any], values: dict[str, torch.Tensor]) -> _Cost:
        kept = Kept(values.values())
        with kept:
            output = run()
        backward(output)
        return _Cost(statistics.median(timed(run) for _ in range(REPEATS)), kept.bytes_)

    @contextmanager
    def _replaced(self, layers: Any) -> Iterator[None]:
        whole = self._parent._modules[self._name]
        self._parent._modules[self._name] = nn.ModuleList(layers)
        try:
            yield
        finally:
            self._parent._modules[self._name] = whole


class _Door(AbsentLayer):
    """Stands for a layer, notes with what it is called, and gives back the activation.

    Attributes:
        call: what it was called with last.
        leaves: whether it ends the forward.
        cuts: whether backward ends at it.
    """

    def __init__(self, layer: nn.Module, returns: int) -> None:
        super().__init__(layer, returns)
        self.call: Call = ((), {})
        self.leaves: bool = False
        self.cuts: bool = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden: torch.Tensor = args[0] if args else kwargs[HIDDEN]
        self.call = with_hidden((args, kwargs), hidden.detach())
        if self.leaves:
            raise Leave(hidden)
        if self.cuts:
            hidden = hidden.detach().requires_grad_(torch.is_grad_enabled())
        args, kwargs = with_hidden((args, kwargs), hidden)
        return super().forward(*args, **kwargs)


def _run(layer: nn.Module, values: dict[str, torch.Tensor], call: Call) -> Any:
    args, kwargs = call
    hidden = args[0] if args else kwargs[HIDDEN]
    args, kwargs = with_hidden(call, hidden.detach().requires_grad_())
    return functional_call(layer, values, args, kwargs)


def _values(module: nn.Module, device: torch.device) -> dict[str, torch.Tensor]:
    """Parameters and buffers on `device`; random ones for those in pieces."""
    found = {}
    for name, parameter in module.named_parameters():
        if is_placeholder(parameter.data):
            value = torch.randn(parameter.shape, dtype=parameter.dtype, device=device) * 0.02
        else:
            value = parameter.detach().to(device)
        found[name] = value.requires_grad_(parameter.requires_grad)
    return {**found, **{name: buffer.to(device) for name, buffer in module.named_buffers()}}
