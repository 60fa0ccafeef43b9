from __future__ import annotations

import pytest
import torch

from ds_accel_cpu import _binding
from ds_accel_cpu.isa import library
from ds_accel_cpu.launching import callable_kernel


def test_a_kernel_knows_its_name() -> None:
    for name in ("adam_", "quantize"):
        assert _binding.Kernel(library().kernels[name].address).name == name


def test_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be 0"):
        _binding.Kernel(0)


def test_a_kernel_that_refuses_says_why() -> None:
    x, out = torch.ones(4), torch.zeros((), dtype=torch.float64)
    kernel = callable_kernel(library(), "sum_of_squares")
    with pytest.raises(RuntimeError, match=r"kernel sum_of_squares refused the call \(status 2\): the dtypes are not"):
        kernel(x.device, dtype=99, numel=4, x=x.data_ptr(), out=out.data_ptr())
    with pytest.raises(RuntimeError, match=r"\(status 1\): an argument is outside"):
        kernel(x.device, dtype=1, numel=-1, x=x.data_ptr(), out=out.data_ptr())
    kernel(x.device, dtype=1, numel=4, x=x.data_ptr(), out=out.data_ptr())
    assert out.item() == 4.0
