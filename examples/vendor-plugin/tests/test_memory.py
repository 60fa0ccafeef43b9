from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ds_core.accelerator import select


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    select("openbox").reset_peak_memory()
    yield
    torch.openbox.set_memory_limit(None)


def allocated() -> int:
    return torch.openbox.memory_allocated()


def test_the_accelerator_reports_what_tensors_hold_and_held() -> None:
    accelerator = select("openbox")
    before = accelerator.memory()
    kept = torch.empty(1000, device="openbox")
    dropped = torch.empty(5000, device="openbox")
    del dropped
    after = accelerator.memory()
    assert after.allocated_bytes - before.allocated_bytes == kept.nbytes == 4000
    assert after.peak_bytes - before.allocated_bytes == 24_000
    assert accelerator.reset_peak_memory()
    assert accelerator.memory().peak_bytes == after.allocated_bytes


def test_each_device_counts_its_own() -> None:
    before = allocated()
    other = torch.empty(1000, device="openbox:1")
    assert other.device.index == 1
    assert allocated() == before
    assert torch.openbox.memory_allocated(1) >= 4000


def test_host_tensors_take_no_device_memory() -> None:
    before = allocated()
    host = torch.empty(1000)
    assert allocated() == before
    copy = host.to("openbox")
    copy.fill_(1)
    host.fill_(2)
    assert copy.cpu().unique().tolist() == [1]


def test_more_than_the_limit_is_out_of_memory() -> None:
    torch.openbox.set_memory_limit(allocated() + 4096)
    fits = torch.empty(1024, device="openbox")
    with pytest.raises(torch.OutOfMemoryError, match=r"device 0 of openbox.*tried to allocate 4 bytes"):
        torch.empty(1, device="openbox")
    del fits
    torch.empty(1024, device="openbox")
    assert select("openbox").memory().total_bytes == allocated() + 4096


def test_results_of_kernels_count_against_the_limit() -> None:
    tensor = torch.ones(1024, device="openbox")
    torch.openbox.set_memory_limit(allocated() + 1024)
    with pytest.raises(torch.OutOfMemoryError):
        tensor.nonzero()


def test_a_storage_gives_memory_back_and_takes_it_again() -> None:
    before = allocated()
    tensor = torch.arange(1000.0, device="openbox")
    tensor.untyped_storage().resize_(0)
    assert allocated() == before
    tensor.untyped_storage().resize_(4000)
    tensor.copy_(torch.arange(1000.0))
    assert tensor[-1].item() == 999.0


def test_host_memory_can_be_page_locked() -> None:
    accelerator = select("openbox")
    pinned = accelerator.pin(torch.arange(8.0))
    assert pinned.is_pinned()
    assert pinned[3:].is_pinned()
    assert not torch.arange(8.0).is_pinned()
    assert pinned.to("openbox", non_blocking=True).tolist() == torch.arange(8.0).tolist()
