"""Buffers that are used again are those that nobody else sees."""

from __future__ import annotations

from collections.abc import Iterator

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
