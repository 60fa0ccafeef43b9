"""The ops of ds-core on the CPU: torch tensors in, raw addresses out to the kernels. Arguments were checked already."""

from __future__ import annotations

import torch

from ds_accel_cpu import _binding
from ds_core.ops._adam import scalars
from ds_core.ops.native import DTYPE_CODES, KernelLibrary

__all__ = ["CpuOps"]

_CODE = {getattr(torch, name): code for name, code in DTYPE_CODES.items()}


class CpuOps:
    """The ops of one kernel library. Each method has the signature of the op in `ds_core.ops`.

    Args:
        library: loaded and checked; any level that this machine runs.
    """

    def __init__(self, library: KernelLibrary) -> None:
        address = {name: kernel.address for name, kernel in library.kernels.items()}
        self.library = library
        self._adam = _binding.Adam(address["adam_"])
        self._sum_of_squares = _binding.SumOfSquares(address["sum_of_squares"])
        self._rms_norm_forward = _binding.RmsNormForward(address["rms_norm_forward"])
        self._rms_norm_backward = _binding.RmsNormBackward(address["rms_norm_backward"])
        self._layer_norm_forward = _binding.LayerNormForward(address["layer_norm_forward"])
        self._layer_norm_backward = _binding.LayerNormBackward(address["layer_norm_backward"])
        self._quantize_int8 = _binding.QuantizeInt8(address["quantize_int8"])
        self._dequantize_int8 = _binding.DequantizeInt8(address["dequantize_int8"])

    def adam_(
        self,
        param: torch.Tensor,
        grad: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        copy_out: torch.Tensor | None = None,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
        adamw: bool = True,
        bias_correction: bool = True,
        grad_factor: torch.Tensor | None = None,
        rounding_seed: int = -1,
        rounding_offset: int = 0,
    ) -> None:
        """See `ds_core.ops.adam_`."""
        self._adam(
            param.data_ptr(),
            grad.data_ptr(),
            exp_avg.data_ptr(),
            exp_avg_sq.data_ptr(),
            0 if copy_out is None else copy_out.data_ptr(),
            0 if grad_factor is None else grad_factor.data_ptr(),
            param.numel(),
            _CODE[param.dtype],
            _CODE[grad.dtype],
            _CODE[exp_avg.dtype],
            0 if copy_out is None else _CODE[copy_out.dtype],
            adamw,
            *scalars(lr, beta1, beta2, eps, weight_decay, step, bias_correction),
            rounding_seed,
            rounding_offset,
            torch.get_num_threads(),
        )

    def sum_of_squares(self, x: torch.Tensor) -> torch.Tensor:
        """See `ds_core.ops.sum_of_squares`."""
        out = torch.empty((), dtype=torch.float64)
        self._sum_of_squares(x.data_ptr(), out.data_ptr(), x.numel(), _CODE[x.dtype], torch.get_num_threads())
        return out

    def rms_norm_forward(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.rms_norm_forward`."""
        x, weight = x.contiguous(), weight.contiguous()
        y, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        self._rms_norm_forward(
            x.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            rstd.data_ptr(),
            rstd.numel(),
            x.shape[-1],
            _CODE[x.dtype],
            _CODE[weight.dtype],
            eps,
            torch.get_num_threads(),
        )
        return y, rstd

    def rms_norm_backward(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.rms_norm_backward`."""
        dy, x, weight, rstd = dy.contiguous(), x.contiguous(), weight.contiguous(), rstd.contiguous()
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        self._rms_norm_backward(
            dy.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            rstd.data_ptr(),
            dx.data_ptr(),
            dweight.data_ptr(),
            rstd.numel(),
            x.shape[-1],
            _CODE[x.dtype],
            _CODE[weight.dtype],
            torch.get_num_threads(),
        )
        return dx, dweight

    def layer_norm_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.layer_norm_forward`."""
        x, weight = x.contiguous(), weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        y, mean = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        rstd = torch.empty_like(mean)
        self._layer_norm_forward(
            x.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
            mean.numel(),
            x.shape[-1],
            _CODE[x.dtype],
            _CODE[weight.dtype],
            eps,
            torch.get_num_threads(),
        )
        return y, mean, rstd

    def layer_norm_backward(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.layer_norm_backward`."""
        dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
        mean, rstd = mean.contiguous(), rstd.contiguous()
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        self._layer_norm_backward(
            dy.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
            dx.data_ptr(),
            dweight.data_ptr(),
            dbias.data_ptr(),
            mean.numel(),
            x.shape[-1],
            _CODE[x.dtype],
            _CODE[weight.dtype],
            torch.get_num_threads(),
        )
        return dx, dweight, dbias

    def quantize_int8(self, x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ds_core.ops.quantize_int8`."""
        x = x.contiguous()
        q = torch.empty(x.shape, dtype=torch.int8)
        scales = torch.empty(((x.numel() + group_size - 1) // group_size,), dtype=torch.float32)
        self._quantize_int8(
            x.data_ptr(),
            q.data_ptr(),
            scales.data_ptr(),
            x.numel(),
            group_size,
            _CODE[x.dtype],
            torch.get_num_threads(),
        )
        return q, scales

    def dequantize_int8(
        self, q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `ds_core.ops.dequantize_int8`."""
        q, scales = q.contiguous(), scales.contiguous()
        x = torch.empty(q.shape, dtype=dtype)
        self._dequantize_int8(
            q.data_ptr(), scales.data_ptr(), x.data_ptr(), q.numel(), group_size, _CODE[dtype], torch.get_num_threads()
        )
        return x
