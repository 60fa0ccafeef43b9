from __future__ import annotations

import pytest
import torch

from ds_accel_cpu import _binding
from ds_accel_cpu.isa import library


def test_a_kernel_knows_its_name() -> None:
    for kind, name in ((_binding.Adam, "adam_"), (_binding.QuantizeInt8, "quantize_int8")):
        assert kind(library().kernels[name].address).name == name


def test_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be 0"):
        _binding.Adam(0)


def test_a_kernel_that_refuses_says_why() -> None:
    x, out = torch.ones(4), torch.zeros((), dtype=torch.float64)
    kernel = _binding.SumOfSquares(library().kernels["sum_of_squares"].address)
    with pytest.raises(RuntimeError, match=r"kernel sum_of_squares refused the call \(status 2\): the dtypes are not"):
        kernel(x.data_ptr(), out.data_ptr(), 4, 99, 1)
    with pytest.raises(RuntimeError, match=r"\(status 1\): an argument is outside"):
        kernel(x.data_ptr(), out.data_ptr(), -1, 1, 1)
    kernel(x.data_ptr(), out.data_ptr(), 4, 1, 1)
    assert out.item() == 4.0
