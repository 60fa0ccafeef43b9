"""Buffers that are used again are those that nobody else sees."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ds_core import buffers

NUMEL = 1 << 20
HOST = torch.device("cpu")


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    buffers.clear()
    yield
    buffers.clear()


def test_a_buffer_that_was_given_back_is_taken_again_in_any_dtype() -> None:
    first = buffers.take(NUMEL, torch.float32, HOST)
    address = first.data_ptr()
    buffers.give(first)
    del first
    again = buffers.take(2 * NUMEL, torch.bfloat16, HOST)
    assert (again.data_ptr(), again.dtype, again.shape) == (address, torch.bfloat16, (2 * NUMEL,))
    assert buffers.take(NUMEL, torch.float32, HOST).data_ptr() != address


def test_memory_with_another_view_is_left_to_it() -> None:
    first = buffers.take(NUMEL, torch.float32, HOST).fill_(3.0)
    view = first[10:20]
    buffers.give(first)
    del first
    buffers.take(NUMEL, torch.float32, HOST).fill_(0.0)
    assert torch.equal(view, torch.full((10,), 3.0))


def test_small_buffers_are_not_kept_and_larger_ones_not_lent() -> None:
    small = buffers.take(64, torch.float32, HOST)
    buffers.give(small)
    large = buffers.take(NUMEL, torch.float32, HOST)
    address = large.data_ptr()
    buffers.give(large)
    del large
    assert buffers.take(NUMEL // 2, torch.float32, HOST).data_ptr() != address


def test_few_buffers_are_kept() -> None:
    held = [buffers.take(NUMEL + 1024 * extra, torch.float32, HOST) for extra in range(5)]
    while held:
        buffers.give(held.pop())
    assert [raw.numel() for raw in buffers._KEPT] == [4 * (NUMEL + 1024 * extra) for extra in (3, 4)]


def _pages_of(tensor: torch.Tensor) -> dict[str, int]:
    """What the kernel says of the mappings a tensor lies in, in KiB."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            start, stop = (int(edge, 16) for edge in fields[0].split("-"))
            inside = start < tensor.data_ptr() + tensor.nbytes and tensor.data_ptr() < stop
        elif inside and fields[-1] == "kB":
            found[fields[0][:-1]] = found.get(fields[0][:-1], 0) + int(fields[1])
        elif inside and fields[0] == "VmFlags:":
            found["advised"] = found.get("advised", 0) + int("hg" in fields)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about its pages")
def test_a_large_buffer_asks_for_large_pages_and_becomes_resident_as_it_is_touched() -> None:
    large = buffers.empty((16 << 20) + 5, torch.uint8, HOST)
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel was built without large pages")
    assert large.data_ptr() % (2 << 20) == 0 and large.numel() == large.untyped_storage().nbytes() == (16 << 20) + 5
    assert _pages_of(large)["advised"] == 1
    before = _pages_of(large)["Rss"]
    large[: 1 << 20].fill_(1)
    assert 1 << 10 <= _pages_of(large)["Rss"] - before <= 2 << 10


def test_the_allocator_is_left_alone_where_the_user_asks_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_HOST_MALLOC", "default")
    assert _pages_of(buffers.empty(16 << 20, torch.uint8, HOST)).get("advised", 0) == 0
