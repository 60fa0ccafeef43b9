"""Measures layers one by one: time of forward and backward, and memory that forward keeps for backward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ds_core import comm
from ds_pipeline.errors import PartitionError
from ds_pipeline.partition import LayerCost

__all__ = ["REPEATS", "Kept", "backward", "measure_on_first_rank", "timed"]

REPEATS = 5
"""Passes that are timed; one before them is not. Their median counts."""


def measure_on_first_rank(
    layers: list[LayerCost], make: Callable[[int], Callable[[Any], Any]], sample: Any
) -> list[LayerCost]:
    """`layers` with times and memory, measured by the first rank of the job and the same on all. Called on all ranks.

    Args:
        layers: what is known of them.
        make: makes a layer by its index; only one is alive at a time.
        sample: input of the first layer for one micro-batch, on the device to measure on.

    Raises:
        PartitionError: on every rank, when a layer fails with what the layer before it gave.
    """
    mine: Any = None
    if comm.get_rank() == 0:
        try:
            mine = list(_measured(len(layers), make, sample))
        except _LayerError as error:
            mine = str(error)
    found = comm.gather_json(mine)[0]
    if isinstance(found, str):
        raise PartitionError(found)
    return [replace(layer, ms=ms, bytes_=kept) for layer, (ms, kept) in zip(layers, found, strict=True)]


class _LayerError(Exception):
    """A layer could not be run alone."""


def _measured(count: int, make: Callable[[int], Callable[[Any], Any]], sample: Any) -> Iterable[tuple[float, int]]:
    inputs = sample
    for index in range(count):
        layer = make(index)
        try:
            inputs = _as_inputs(inputs)
            kept = Kept(_parameters_of(layer))
            with kept:
                outputs = layer(inputs)
            backward(outputs)
            times = [timed(partial(layer, inputs)) for _ in range(REPEATS)]
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _LayerError(
                f"partition 'profile' could not run layer {index} ({type(layer).__name__}): {error}; check sample=, or "
                "choose partition 'parameters'"
            ) from error
        inputs = tree_map(lambda value: value.detach() if isinstance(value, torch.Tensor) else value, outputs)
        yield statistics.median(times), kept.bytes_


def _as_inputs(value: Any) -> Any:
    def leaf(each: Any) -> Any:
        if isinstance(each, torch.Tensor):
            return each.detach().requires_grad_(each.is_floating_point())
        return each

    return tree_map(leaf, value)


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds of `run` and of the backward of what it gives."""
    _settle()
    start = time.perf_counter()
    backward(run())
    _settle()
    return (time.perf_counter() - start) * 1000


def _settle() -> None:
    from ds_core.accelerator import in_use

    accelerator = in_use()
    if accelerator is not None:
        accelerator.synchronize()


def backward(outputs: Any) -> None:
    """From whatever in `outputs` has a graph, with ones."""
    ends = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if ends:
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])


def _parameters_of(layer: Any) -> list[torch.Tensor]:
    """Of a module, or of a partial function of one."""
    modules = [each for each in (layer, *getattr(layer, "args", ())) if isinstance(each, torch.nn.Module)]
    return [parameter for module in modules for parameter in module.parameters()]


class Kept:
    """A context that adds up what autograd keeps in it, parameters aside, each storage once.

    Args:
        parameters: what is not counted.

    Attributes:
        bytes_: the sum.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._known: set[int] = {parameter.untyped_storage()._cdata for parameter in parameters}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.bytes_: int = 0

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.bytes_ += storage.nbytes()
        return tensor

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._hooks.__exit__(*exc)
