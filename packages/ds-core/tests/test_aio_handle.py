"""The handle under DeepSpeed's names: what its methods move, return and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ds_core.aio import aio_handle, aio_read, aio_write
from ds_core.errors import OffloadError


@pytest.fixture
def handle():
    made = aio_handle(block_size=8192, queue_depth=4, single_submit=True, overlap_events=True, intra_op_parallelism=2)
    yield made
    made.close()


def values(seed: int, numel: int = 10_007) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def test_settings_are_told(handle):
    assert (handle.get_block_size(), handle.get_queue_depth(), handle.get_intra_op_parallelism()) == (8192, 4, 2)
    assert (handle.get_single_submit(), handle.get_overlap_events(), handle.get_alignment()) == (True, True, 4096)
    other = aio_handle()
    assert (other.get_block_size(), other.get_queue_depth(), other.get_intra_op_parallelism()) == (1 << 20, 128, 1)
    assert (other.get_single_submit(), other.get_overlap_events()) == (False, False)
    other.close()


@pytest.mark.parametrize("validate", [False, True])
def test_what_is_written_is_read(tmp_path, handle, validate):
    tensor, out = values(0), torch.zeros(10_007)
    assert handle.write(tensor, str(tmp_path / "file"), validate) == 1
    assert handle.read(out, tmp_path / "file", validate) == 1
    assert torch.equal(out, tensor)


def test_transfers_go_on_until_wait_counts_them(tmp_path, handle):
    tensors, outs = [values(seed) for seed in range(5)], [torch.zeros(10_007) for _ in range(5)]
    for index, tensor in enumerate(tensors):
        assert handle.async_pwrite(tensor, tmp_path / "file", index * 50_000) == 0
    assert handle.wait() == 5
    for index, out in enumerate(outs):
        assert handle.pread(out, tmp_path / "file", index % 2 == 0, True, index * 50_000) == 0
    assert handle.wait() == 5
    assert all(torch.equal(a, b) for a, b in zip(tensors, outs, strict=True))
    assert handle.wait() == 0


def test_offsets_leave_the_rest_of_a_file_alone(tmp_path, handle):
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert handle.sync_pwrite(torch.arange(10, dtype=torch.uint8), tmp_path / "file", 50) == 1
    assert (tmp_path / "file").read_bytes() == b"x" * 50 + bytes(range(10)) + b"x" * 40
    out = torch.zeros(3, dtype=torch.uint8)
    assert handle.sync_pread(out, tmp_path / "file", 52) == 1
    assert out.tolist() == [2, 3, 4]


def test_wait_raises_the_first_failure_when_all_have_ended(tmp_path, handle):
    tensor = values(1)
    handle.async_pwrite(tensor, tmp_path / "fine", 0)
    handle.async_pread(torch.zeros(5), tmp_path / "none", 0)
    handle.async_pwrite(tensor, tmp_path / "later", 0)
    with pytest.raises(OffloadError, match=r"none failed: .*ENOENT"):
        handle.wait()
    assert (tmp_path / "fine").read_bytes() == (tmp_path / "later").read_bytes() == tensor.numpy().tobytes()
    assert handle.wait() == 0


def test_validation_sees_what_another_program_changed(tmp_path, handle):
    tensor = values(2)
    handle.pwrite(tensor, tmp_path / "file", True, True)
    handle._pending[0].handle.wait()
    with (tmp_path / "file").open("r+b") as file:
        file.seek(1000)
        file.write(b"other")
    with pytest.raises(
        OffloadError, match=r"what was written to .*file between bytes 0 and 40028 is not what is there"
    ):
        handle.wait()


def test_locked_tensors_are_known_as_long_as_they_are_locked(tmp_path, handle):
    tensor = handle.new_cpu_locked_tensor(5000, torch.empty(0, dtype=torch.bfloat16))
    assert (tensor.shape, tensor.dtype, tensor.data_ptr() % 4096) == ((5000,), torch.bfloat16, 0)
    if not handle.is_pinned(tensor):
        pytest.skip("ulimit -l allows no locked memory here")
    assert locked_bytes() >= 3 * 4096
    assert handle.is_pinned(tensor[10:20])
    assert not handle.is_pinned(torch.zeros(3))
    handle.write(tensor.fill_(2), tmp_path / "file")
    assert handle.free_cpu_locked_tensor(tensor)
    assert not handle.is_pinned(tensor)
    assert not handle.free_cpu_locked_tensor(tensor)
    handle.read(tensor.zero_(), tmp_path / "file")
    assert tensor.unique().tolist() == [2]


def locked_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmLck")).split()[1]) * 1024


def test_functions_need_no_handle(tmp_path):
    tensor, out = values(3), torch.zeros(10_007)
    assert aio_write(tensor, tmp_path / "file", block_size=4096, queue_depth=2, validate=True) == 1
    assert aio_read(out, tmp_path / "file", single_submit=True) == 1
    assert torch.equal(out, tensor)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(OffloadError, match="block_size must be a positive multiple of 4096, got 1000"):
        aio_handle(1000)
