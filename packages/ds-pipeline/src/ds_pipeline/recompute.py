"""Runs a row of layers, keeping only what enters each group of them and running the group again in backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed", "run_layers"]

checkpointed: Callable[..., Any] = partial(checkpoint, use_reentrant=False, preserve_rng_state=True)
"""torch's recomputation without re-entrance: random numbers of the second run are those of the first."""


def run_layers(
    layers: Sequence[Callable[[Any], Any]],
    value: Any,
    *,
    interval: int = 0,
    function: Callable[..., Any] = checkpointed,
    classes: Collection[str] | None = None,
) -> Any:
    """`value` through `layers`.

    Args:
        layers: each takes what the one before gave.
        value: a tensor or tuple.
        interval: layers in a group; 0 recomputes nothing.
        function: called with a function and its inputs for each group that is recomputed.
        classes: only groups of these classes are; None: those with parameters.
    """
    if interval == 0 or not torch.is_grad_enabled():
        for layer in layers:
            value = layer(value)
        return value
    for start in range(0, len(layers), interval):
        group = layers[start : start + interval]
        if _is_worth_it(group, classes):
            value = function(partial(run_layers, group), value)
        else:
            value = run_layers(group, value)
    return value


def _is_worth_it(group: Sequence[Callable[[Any], Any]], classes: Collection[str] | None) -> bool:
    if classes is not None:
        return all(type(layer).__name__ in classes for layer in group)
    return any(next(layer.parameters(), None) is not None for layer in group if isinstance(layer, torch.nn.Module))
