"""What stacked experts compute, in our way: each row once, on the rank that holds its expert, as grouped products.

Shapes: T tokens of this rank, K experts a token, H features, N rows that arrive on this rank, I inner features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ds_core.ops import grouped_matmul
from ds_moe.hugging_face.forward import ExpertsForward

if TYPE_CHECKING:
    from ds_moe.dispatch import Dispatch, Groups
    from ds_moe.hugging_face.find import Block
    from ds_moe.hugging_face.form import StackedForm

__all__ = ["StackedForward", "product"]


class StackedForward(ExpertsForward):
    """The forward of a module of stacked experts. It reads the module's tensors whenever it runs, and keeps none.

    Args:
        block: its experts have the tensors, of this rank's experts only, the activation and the norm.
        form: how they compute.
        dispatch: sends rows to their experts.
        use_grouped: one grouped product for all experts of this rank; else a product for each.
    """

    def __init__(self, block: Block, form: StackedForm, dispatch: Dispatch, *, use_grouped: bool) -> None:
        super().__init__(block, block.experts, dispatch, use_grouped=use_grouped)
        self._form: StackedForm = form

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
        chosen_TK = torch.where(top_k_index < self._form.experts, top_k_index, -1)
        self.count(chosen_TK)
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self._dispatch.run(x_TH, chosen_TK, top_k_weights, self._compute).view_as(hidden_states)

    def _compute(self, rows_NH: torch.Tensor, groups: Groups) -> torch.Tensor:
        form = self._form
        module: Any = self.block.experts
        inner_NI = self._activated(self._product(rows_NH, form.first, form.first_bias, groups))
        out_NH: torch.Tensor = self._product(inner_NI, "down_proj", form.last_bias, groups)
        return module.post_expert_norm(out_NH) if form.has_norm else out_NH

    def _activated(self, inner: torch.Tensor) -> torch.Tensor:
        module: Any = self.block.experts
        result: torch.Tensor
        if not self._form.is_gated:
            result = module.act_fn(inner)
        elif hasattr(module, "_apply_gate"):
            result = module._apply_gate(inner)
        else:
            gate, up = inner.chunk(2, dim=-1)
            result = module.act_fn(gate) * up
        return result

    def _product(self, rows: torch.Tensor, name: str, bias_name: str | None, groups: Groups) -> torch.Tensor:
        weight: torch.Tensor = getattr(self.block.experts, name)
        bias: torch.Tensor | None = None if bias_name is None else getattr(self.block.experts, bias_name)
        transposed = self._form.transposed
        return product(rows, weight, bias, groups, transposed=transposed, use_grouped=self._use_grouped)


def product(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    groups: Groups,
    *,
    transposed: bool,
    use_grouped: bool,
) -> torch.Tensor:
    """Each run of rows times the matrix of its expert, plus its bias, in the dtype that linear layers would use.

    Args:
        rows: [N, in], by expert.
        weight: [experts, in, out], or [experts, out, in] with `transposed`.
        bias: [experts, out], or None.
        groups: which rows are whose.
        transposed: see `weight`.
        use_grouped: one grouped product; else one after another.
    """
    kind = rows.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    rows, weight = rows.to(dtype), weight.to(dtype)
    if use_grouped:
        out = grouped_matmul(rows, weight, groups.offsets, transposed=transposed)
    else:
        matrices = weight.unbind(0) if transposed else weight.transpose(1, 2).unbind(0)
        out = torch.cat([F.linear(run, one) for run, one in zip(rows.split(groups.sizes), matrices, strict=True)])
    if bias is None:
        return out
    of_row = bias.to(dtype).repeat_interleave(groups.offsets.diff(), 0, output_size=rows.shape[0])
    return out + of_row
