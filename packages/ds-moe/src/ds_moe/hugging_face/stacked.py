"""What stacked experts compute, in our way: each row once, on the rank that holds its expert, as grouped products.

Shapes: T tokens of this rank, K experts a token, H features, N rows that arrive on this rank, I inner features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from ds_core.ops import grouped_matmul

if TYPE_CHECKING:
    from ds_moe.dispatch import Dispatch, Groups
    from ds_moe.hugging_face.form import StackedForm

__all__ = ["StackedForward", "count_experts"]


class StackedForward:
    """The forward of a module of stacked experts. It reads the module's tensors whenever it runs, and keeps none.

    Args:
        module: has the tensors, this rank's experts only, the activation and the norm.
        form: how it computes.
        dispatch: sends rows to their experts.
        use_grouped: one grouped product for all experts of this rank; else a product for each.
    """

    def __init__(self, module: nn.Module, form: StackedForm, dispatch: Dispatch, *, use_grouped: bool) -> None:
        self._module: nn.Module = module
        self._form: StackedForm = form
        self._dispatch: Dispatch = dispatch
        self._use_grouped: bool = use_grouped

    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Each token the weighted sum of what its experts made of it.

        Args:
            hidden_states: [T, H].
            top_k_index: [T, K] numbers of experts over all ranks; one past the last for none.
            top_k_weights: [T, K].

        Returns:
            [T, H] in the dtype of `hidden_states`.
        """
        experts = self._form.experts
        chosen_TK = torch.where(top_k_index < experts, top_k_index, -1)
        count_experts(self._module, chosen_TK, experts)
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        y_TH = self._dispatch.run(x_TH, chosen_TK, top_k_weights, self._compute)
        return y_TH.view_as(hidden_states)

    def _compute(self, rows_NH: torch.Tensor, groups: Groups) -> torch.Tensor:
        form = self._form
        module: Any = self._module
        inner = self._product(rows_NH, form.first, form.first_bias, groups)
        inner_NI = self._activated(inner)
        out_NH = self._product(inner_NI, "down_proj", form.last_bias, groups)
        return module.post_expert_norm(out_NH) if form.has_norm else out_NH

    def _activated(self, inner: torch.Tensor) -> torch.Tensor:
        module: Any = self._module
        if not self._form.is_gated:
            return module.act_fn(inner)  # type: ignore[no-any-return]
        if hasattr(module, "_apply_gate"):
            return module._apply_gate(inner)  # type: ignore[no-any-return]
        gate, up = inner.chunk(2, dim=-1)
        return module.act_fn(gate) * up  # type: ignore[no-any-return]

    def _product(self, rows: torch.Tensor, name: str, bias_name: str | None, groups: Groups) -> torch.Tensor:
        weight: torch.Tensor = getattr(self._module, name)
        bias: torch.Tensor | None = None if bias_name is None else getattr(self._module, bias_name)
        rows, weight = _alike(rows, weight)
        if self._use_grouped:
            out = grouped_matmul(rows, weight, groups.offsets, transposed=self._form.transposed)
        else:
            matrices = weight.unbind(0) if self._form.transposed else weight.transpose(1, 2).unbind(0)
            out = torch.cat([F.linear(run, one) for run, one in zip(rows.split(groups.sizes), matrices, strict=True)])
        if bias is None:
            return out
        of_row = bias.to(out.dtype).repeat_interleave(groups.offsets.diff(), 0, output_size=rows.shape[0])
        return out + of_row


def count_experts(module: Any, chosen_TK: torch.Tensor, experts: int) -> None:
    """Leaves in ``module._last_counts`` how often this rank's tokens chose each expert, [experts] int64.

    Steps of training add up in ``module._step_counts``, where something asked for that by setting it.
    """
    with torch.no_grad():
        flat = chosen_TK.flatten()
        counts = torch.bincount(flat + 1, minlength=experts + 1)[1:]
        module._last_counts = counts
        if module.training and getattr(module, "_step_counts", None) is not None:
            module._step_counts = module._step_counts + counts


def _alike(rows: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in one dtype, as linear layers have them: that of autocast, where it is on, else that of the weight."""
    kind = rows.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return rows.to(dtype), weight.to(dtype)
