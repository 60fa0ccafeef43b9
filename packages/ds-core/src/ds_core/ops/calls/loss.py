"""Losses."""

from __future__ import annotations

import torch

from ds_core.ops.calls.kernels import CallableKernel, Kernels, Launcher, address, code
from ds_core.ops.checks import expect_rows_exist
from ds_core.ops.native import KernelLibrary

__all__ = ["LossOps"]


class LossOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._cross_entropy_forward = self.kernel("cross_entropy_forward")
        self._cross_entropy_backward = self.kernel("cross_entropy_backward")
        self._cross_entropy = self.kernel("cross_entropy_")

    def cross_entropy_forward(
        self, logits: torch.Tensor, target: torch.Tensor, ignore_index: int, label_smoothing: float, z_loss: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses, lse) of the rows."""
        logits, target = logits.contiguous(), target.contiguous()
        losses, lse = (logits.new_empty(target.shape, dtype=torch.float32) for _ in range(2))
        self._call(
            self._cross_entropy_forward,
            logits,
            target,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            losses=address(losses),
            lse=address(lse),
        )
        return losses, lse

    def cross_entropy_backward(
        self,
        dlosses: torch.Tensor,
        logits: torch.Tensor,
        target: torch.Tensor,
        lse: torch.Tensor,
        ignore_index: int,
        label_smoothing: float,
        z_loss: float,
    ) -> torch.Tensor:
        """Gradient of the logits."""
        dlosses, logits, target, lse = (t.contiguous() for t in (dlosses, logits, target, lse))
        dlogits = torch.empty_like(logits)
        self._call(
            self._cross_entropy_backward,
            logits,
            target,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            dlosses=address(dlosses),
            lse=address(lse),
            dlogits=address(dlogits),
        )
        return dlogits

    def cross_entropy_(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        factor: float,
        ignore_index: int,
        label_smoothing: float,
        z_loss: float,
    ) -> torch.Tensor:
        """See `ds_core.ops.cross_entropy_`."""
        target = target.contiguous()
        losses = logits.new_empty(target.shape, dtype=torch.float32)
        self._call(
            self._cross_entropy,
            logits,
            target,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            factor=factor,
            losses=address(losses),
        )
        return losses

    def _call(
        self,
        kernel: CallableKernel,
        logits: torch.Tensor,
        target: torch.Tensor,
        *,
        ignore_index: int,
        **more: float,
    ) -> None:
        columns = logits.shape[-1]
        try:
            kernel(
                logits.device,
                dtype=code(logits),
                rows=target.numel(),
                columns=columns,
                ignore_index=ignore_index,
                logits=address(logits),
                target=address(target),
                **more,
            )
        except IndexError:
            expect_rows_exist("cross_entropy", "target", target, columns, ignore_index, " (ignore_index)")
            raise
