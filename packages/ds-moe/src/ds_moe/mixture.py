"""A mixture of experts as its parts: a gate, experts, and the way of tokens between them; run here, owned by layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ds_moe.dispatch import Dispatch
from ds_moe.experts import Experts
from ds_moe.routing import Routing
from ds_moe.stacked import StackedExperts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ds_moe.gate import TopKGate

__all__ = ["Mixed", "Mixture"]


class Mixed(NamedTuple):
    """What a mixture gives: `output` shaped like what went in, and what the gate decided."""

    output: torch.Tensor
    routing: Routing


class Mixture(torch.nn.Module):
    """What layers with experts share. Works on one rank until `connect` divides the experts over ranks.

    Args:
        gate: what chooses experts.
        experts: all of them.
        ep_size: ranks that shall share the experts, when an engine is made.

    Attributes:
        dispatch: the way of tokens to their experts.
    """

    def __init__(self, gate: TopKGate, experts: Experts | StackedExperts, ep_size: int = 1) -> None:
        super().__init__()
        self.gate: TopKGate = gate
        self.experts: Experts | StackedExperts = experts
        self.num_experts: int = gate.num_experts
        self.ep_size: int = ep_size
        self.dispatch: Dispatch = Dispatch(None, gate.num_experts)

    @property
    def num_local_experts(self) -> int:
        """Experts that this rank keeps."""
        return self.dispatch.local_experts

    def connect(self, group: ProcessGroup | None) -> None:
        """Sends tokens over the ranks of `group` from now on. The experts of others are to be taken out beforehand.

        Raises:
            MoeConfigError: the experts do not divide over the ranks.
        """
        self.dispatch = Dispatch(group, self.num_experts)
        self.gate.ep_group = group

    def mix(
        self, x: torch.Tensor, used_token: torch.Tensor | None = None, meanwhile: Callable[[], Any] | None = None
    ) -> Mixed:
        """Tokens through their experts. Called on all ranks that share them.

        Args:
            x: [..., features].
            used_token: [...] with zeros for tokens that go nowhere; None for all.
            meanwhile: called while tokens travel.
        """
        flat = x.reshape(-1, x.shape[-1])
        routing = self.gate.route(flat, used_token)
        made = self.dispatch.run(flat, routing.experts, routing.weights, self.experts, meanwhile=meanwhile)
        return Mixed(made.view(x.shape), routing)
