"""Balances experts without a loss: after every step, what a router adds to its scores moves towards even loads.

Source: L. Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", 2024, algorithm 1;
DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.1.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ds_core import comm
from ds_core.part import Part, Update
from ds_moe.errors import ConversionError
from ds_moe.hugging_face.forward import ExpertsForward, forwards_in

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ds_core.build import Build
    from ds_moe.hugging_face.find import Block

__all__ = ["CorrectionBias"]

_NAMES = ("e_score_correction_bias", "expert_bias")


class _Balanced(NamedTuple):
    """A layer: what counts its loads, and the buffer that steers them."""

    forward: ExpertsForward
    owner: nn.Module
    name: str


class CorrectionBias(Part):
    """Adds ``load_balance_coeff`` to the bias of experts with less than the mean load, and takes it from the others.

    Loads are those of all micro-batches of a step on all ranks of the batch; a step that is skipped changes nothing.
    """

    name = "expert_correction_bias"
    after = ("precision",)

    def __init__(self) -> None:
        self._coefficient: float = 0.0
        self._layers: list[_Balanced] = []
        self._group: ProcessGroup | None = None
        self._loads: list[torch.Tensor] = []

    def prepare(self, build: Build) -> None:
        """Finds the buffers, and keeps them in float32: steps are smaller than what lower precision resolves.

        Raises:
            ConversionError: a block has none.
        """
        self._coefficient = build.config["expert_parallel"].load_balance_coeff
        self._group = build.mesh.group(*build.mesh.batch_axes)
        for forward in forwards_in(build.module):
            owner, name = _buffer_of(forward.block, build.module)
            owner._buffers[name] = owner.get_buffer(name).float()
            forward.step_counts = self._zeros(forward, build.device)
            self._layers.append(_Balanced(forward, owner, name))

    def before_update(self, update: Update) -> None:
        """Adds the counts of all ranks, in one exchange."""
        counts = [layer.forward.step_counts for layer in self._layers]
        self._loads = [count for count in counts if count is not None]
        if self._group is not None and self._loads:
            joined = torch.cat(self._loads)
            with comm.scope("expert loads"):
                comm.all_reduce(joined, group=self._group)
            self._loads = list(joined.split([len(load) for load in self._loads]))

    def update(self, update: Update) -> None:
        """Moves every bias by one step."""
        with torch.no_grad():
            for layer, load in zip(self._layers, self._loads, strict=True):
                bias = layer.owner.get_buffer(layer.name)
                bias.add_(torch.sign(load.double().mean() - load), alpha=self._coefficient)

    def zero_grad(self) -> None:
        """Counts from zero."""
        for forward, _, _ in self._layers:
            if forward.step_counts is not None:
                forward.step_counts = torch.zeros_like(forward.step_counts)

    def _zeros(self, forward: ExpertsForward, device: torch.device) -> torch.Tensor:
        return torch.zeros(forward.block.count, dtype=torch.int64, device=device)


def _buffer_of(block: Block, model: nn.Module) -> tuple[nn.Module, str]:
    for owner in (block.router, block.module):
        for name in _NAMES:
            if owner is not None and owner._buffers.get(name) is not None:
                return owner, name
    raise ConversionError(
        "expert_parallel.load_balance_coeff moves the correction bias of routers, a buffer named "
        f"{' or '.join(_NAMES)} as in DeepSeek-V3, and {block.title} of {type(model).__name__} has none; take it out, "
        "and balance by the model's own auxiliary loss (router_aux_loss_coef of its config)"
    )
