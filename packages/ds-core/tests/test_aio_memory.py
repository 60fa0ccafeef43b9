from __future__ import annotations

import mmap

import pytest
import torch

from ds_core.aio import ALIGNMENT, BufferPool, aligned_empty
from ds_core.aio.memory import byte_view, with_padding
from ds_core.errors import OffloadError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.complex128])
@pytest.mark.parametrize("numel", [0, 1, 4095, 100_003])
def test_aligned_tensors_start_on_a_block(dtype, numel):
    for _ in range(4):
        tensor = aligned_empty(numel, dtype)
        assert (tensor.shape, tensor.dtype) == ((numel,), dtype)
        assert numel == 0 or tensor.data_ptr() % ALIGNMENT == 0


def test_the_last_block_of_an_aligned_tensor_is_its_own():
    tensor = aligned_empty(3, torch.float32)
    assert with_padding(tensor).shape == (ALIGNMENT,)
    assert with_padding(tensor).data_ptr() == tensor.data_ptr()


def test_padding_never_leaves_the_storage():
    whole = aligned_empty(ALIGNMENT // 2, torch.int16)
    exact = torch.frombuffer(mmap.mmap(-1, ALIGNMENT + 8), dtype=torch.uint8)
    assert exact.data_ptr() % ALIGNMENT == 0
    assert with_padding(whole[1:3]).shape == (4,)
    assert with_padding(exact).shape == (ALIGNMENT + 8,)


def test_bytes_of_a_tensor_are_its_memory():
    tensor = torch.arange(5, dtype=torch.bfloat16)
    view = byte_view(tensor)
    assert bytes(view) == bytes(tensor.view(torch.uint8).tolist())
    view[:2] = b"\0\0"
    view[2:4] = view[4:6]
    assert tensor.tolist() == [0, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(8)[::2], r"strides \(2,\)"),
        (torch.zeros(8, device="meta"), "on meta"),
        (torch.zeros(2, 2).to_sparse(), "layout torch.sparse_coo"),
    ],
)
def test_what_has_no_bytes_in_a_row_is_refused(tensor, words):
    with pytest.raises(OffloadError, match=words):
        byte_view(tensor)


def test_a_pool_gives_each_buffer_to_one_holder():
    pool = BufferPool(3, 10, torch.float32)
    held = [pool.acquire() for _ in range(3)]
    assert len({buffer.data_ptr() for buffer in held}) == 3
    pool.release(held[1])
    assert pool.acquire() is held[1]
    assert pool.nbytes == 3 * ALIGNMENT


def test_an_exhausted_pool_names_the_setting():
    pool = BufferPool(1, 10, torch.float32, setting="zero_optimization.offload_optimizer.buffer_count")
    pool.acquire()
    with pytest.raises(OffloadError, match=r"zero_optimization\.offload_optimizer\.buffer_count is 1 .* at least 2"):
        pool.acquire()


def test_a_pool_takes_back_only_what_it_gave():
    pool = BufferPool(2, 10, torch.float32)
    buffer = pool.acquire()
    with pytest.raises(OffloadError, match="not one of this pool's"):
        pool.release(torch.zeros(10))
    pool.release(buffer)
    with pytest.raises(OffloadError, match="released before"):
        pool.release(buffer)
