"""Blocks: the bytes that go in come out, in order, in bounded memory."""

from __future__ import annotations

import threading

import pytest
import torch

from ds_core.checkpoint.saving.blocks import BlockPool, BlockSink, SinkClosedError
from ds_core.checkpoint.storage.manifest import BLOCK_BYTES


class Reader:
    """Takes blocks out of a sink in a thread, as the writer of a file does."""

    def __init__(self, sink: BlockSink, *, fails_at: int | None = None) -> None:
        self.parts: list[torch.Tensor] = []
        self.error: BaseException | None = None
        self._sink, self._fails_at = sink, fails_at
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            for block in self._sink.blocks():
                if len(self.parts) == self._fails_at:
                    self._sink.abort()
                    return
                self.parts.append(block.memory[: block.used_bytes].clone())
        except SinkClosedError as error:
            self.error = error


@pytest.mark.parametrize("limit", [1, 2, 99])
def test_bytes_come_out_as_they_went_in_whatever_the_limit(limit):
    pool = BlockPool(limit)
    sink = BlockSink(pool)
    reader = Reader(sink)
    values = [torch.arange(n, dtype=dtype) for n, dtype in ((BLOCK_BYTES // 3, torch.int64), (5, torch.int16))]
    for tensor in (*values, torch.empty(0), values[0]):
        sink.write(tensor)
    sink.close()
    reader.thread.join()
    expected = torch.cat([tensor.view(torch.uint8) for tensor in (*values, values[0])])
    assert torch.equal(torch.cat(reader.parts), expected)
    assert pool.made == min(limit, -(-expected.numel() // BLOCK_BYTES))


def test_nothing_is_taken_out_while_the_pool_has_blocks_left():
    pool = BlockPool(3)
    sink = BlockSink(pool)
    reader = Reader(sink)
    sink.write(torch.zeros(2 * BLOCK_BYTES, dtype=torch.uint8))
    assert not reader.parts
    sink.close()
    reader.thread.join()
    assert len(reader.parts) == 2


def test_a_writer_that_gives_up_ends_the_copy():
    sink = BlockSink(BlockPool(1))
    reader = Reader(sink, fails_at=1)
    with pytest.raises(SinkClosedError):
        sink.write(torch.zeros(4 * BLOCK_BYTES, dtype=torch.uint8))
    reader.thread.join()


def test_a_copy_that_gives_up_ends_the_writer():
    sink = BlockSink(BlockPool(2))
    reader = Reader(sink)
    sink.write(torch.zeros(8))
    sink.abort()
    reader.thread.join()
    assert isinstance(reader.error, SinkClosedError)


def test_memory_is_used_again_and_given_back():
    pool = BlockPool(9)
    for _ in range(3):
        sink = BlockSink(pool)
        reader = Reader(sink)
        sink.write(torch.zeros(BLOCK_BYTES + 1, dtype=torch.uint8))
        sink.close()
        reader.thread.join()
    assert pool.made == 2
    pool.clear()
    assert pool.made == 0
