"""The kernels on a CPU OpenCL device: what the conformance cases (conformance/run.py) do not ask."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ds_accel_xpu.cpu_device import CpuDevice, why_no_cpu_device
from ds_accel_xpu.libraries import built
from ds_core.errors import OpError

NEWEST = max(built().libraries, default="")
REASON = why_no_cpu_device(NEWEST) if NEWEST else f"no host half in the wheel: {built().left_out.get('sycl')}"

pytestmark = pytest.mark.skipif(bool(REASON), reason=f"{REASON} (nox -s xpu has all of it)")


@pytest.fixture(scope="module")
def device() -> CpuDevice:
    return CpuDevice(NEWEST)


def test_an_index_out_of_range_is_an_error_and_nothing_is_written(device: CpuDevice) -> None:
    x, y = torch.arange(6.0).view(3, 2), torch.full((2, 2), -1.0)
    with pytest.raises(OpError, match=r"gather_rows: index\[1\] is 3; allowed: 0 to 2"):
        device.ops.gather_rows(x, torch.tensor([0, 3]))
    logits = y.clone()
    with pytest.raises(OpError, match="target"):
        device.ops.cross_entropy_(logits, torch.tensor([0, 2]), 1.0, -100, 0.0, 0.0)
    assert torch.equal(logits, y)


def test_an_index_is_refused_where_there_is_no_row(device: CpuDevice) -> None:
    with pytest.raises(OpError):
        device.ops.gather_rows(torch.zeros(0, 4), torch.tensor([0]))


def test_rows_that_do_not_rise_are_refused(device: CpuDevice) -> None:
    base = torch.zeros(4, 2)
    for index in ([2, 1], [1, 1]):
        with pytest.raises(OpError, match="ris"):
            device.ops.replace_rows(base, None, torch.tensor(index))


def test_after_a_bad_index_the_next_call_is_served(device: CpuDevice) -> None:
    x = torch.arange(6.0).view(3, 2)
    with pytest.raises(OpError):
        device.ops.gather_rows(x, torch.tensor([-1]))
    assert torch.equal(device.ops.gather_rows(x, torch.tensor([2])), x[2:])


def test_sums_are_the_same_every_time(device: CpuDevice) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(3000, 70, generator=generator) for _ in range(2))
    index = torch.randint(0, 40, (3000,), generator=generator)
    weight = torch.randn(70, generator=generator)
    results = []
    for _ in range(3):
        y, rstd = device.ops.rms_norm_forward(x, weight, 1e-6)
        dx, dweight = device.ops.rms_norm_backward(dy, x, weight, rstd)
        sums = device.ops.scatter_rows(x, index, None, 40)
        results.append([y, rstd, dx, dweight, sums, device.ops.sum_of_squares(x.view(-1))])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_many_sources_of_one_row_are_added_in_order(device: CpuDevice) -> None:
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(2000).fmod(7)[:, None]
    index = torch.zeros(2000, dtype=torch.int64)
    want = torch.zeros(3)
    for row in x:
        want = want + row
    assert torch.equal(device.ops.scatter_rows(x, index, None, 2)[0], want)


def test_there_may_be_more_rows_than_work_groups(device: CpuDevice) -> None:
    x = torch.randn(70_001, 3, generator=torch.Generator().manual_seed(0))
    y, _ = device.ops.rms_norm_forward(x, torch.ones(3), 1e-6)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (3,), eps=1e-6))
    index = torch.randperm(70_001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(device.ops.gather_rows(x, index), x[index])


def test_there_may_be_more_elements_than_work_items(device: CpuDevice) -> None:
    p = torch.zeros(64 * 1024 * 256 + 1001, dtype=torch.bfloat16)
    device.ops.sgd_(p, torch.ones_like(p), lr=2.0)
    assert bool((p == -2).all())


def test_threads_may_call_at_once(device: CpuDevice) -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    want = x.softmax(-1)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: device.ops.softmax_forward(x, None, None, 1.0, False), range(40)))
    assert all(torch.allclose(result, want) for result in results)


def test_float64_sums_made_of_integers_round_as_those_of_float64(device: CpuDevice) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(400, 2, generator=generator) * 2.0 ** torch.randint(-70, 60, (400, 1), generator=generator)
    pairs[:, 1] *= 2.0 ** torch.randint(-30, 3, (400,), generator=generator)
    pairs[:4] = torch.tensor([[2.0**-149, 2.0**-149], [0.0, -3.0], [3e38, 3e38], [2.0**-140, 1.0]])
    for pair in pairs:
        a, b = pair.double().tolist()
        assert device.ops.sum_of_squares(pair.clone()).item() == a * a + b * b


def every_kind_of_float() -> torch.Tensor:
    """Each exponent and sign, with mantissas at and around ties of bfloat16 and float16."""
    tails = [0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x18000, 0x7FF000, 0x7FFFFF]
    bits = torch.arange(-256, 256)[:, None] * 2**23 + torch.tensor(tails)
    return bits.view(-1).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_kind_of_float_rounds_as_in_torch(device: CpuDevice, dtype: torch.dtype) -> None:
    p = every_kind_of_float()
    copy = torch.empty_like(p, dtype=dtype)
    device.ops.sgd_(p, torch.zeros_like(p), None, copy, lr=0.0)
    numbers = ~p.isnan()
    assert torch.equal(copy[numbers].view(torch.int16), p.to(dtype)[numbers].view(torch.int16))
    assert copy[~numbers].isnan().all()


def test_every_half_is_read_as_in_torch(device: CpuDevice) -> None:
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    copy = torch.empty(halves.numel())
    device.ops.sgd_(halves.clone(), torch.zeros(halves.numel()), None, copy, lr=0.0)
    numbers = ~halves.isnan()
    assert torch.equal(copy[numbers], halves[numbers].float()) and copy[~numbers].isnan().all()


def test_a_refusal_says_what_the_driver_said(device: CpuDevice) -> None:
    x = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"kernel sum_of_squares refused the call \(status 2\)"):
        device.ops.sum_of_squares(x.to(torch.int8))
