"""Collectives that send few bits: quantized in groups before they are sent, restored and added in float32 after.

Note [What a quantized call sends]
    A rank's tensor (or its piece for each other rank) becomes one message of bytes: the float32 scales of its groups,
    then the codes, rounded up to 16 bytes. The messages go over whatever backend the group has, as one all-gather or
    one all-to-all of bytes, and that is what is counted. With groups of 256 an element costs 1.016 bytes in int8 and
    0.516 in int4. One rank sends nothing, so nothing is quantized: the call is an identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch
from torch.distributed import ProcessGroup

from ds_core import ops
from ds_core.comm.issue import DONE, Waitable
from ds_core.comm.pieces import all_gather_into_tensor, all_to_all_single
from ds_core.comm.state import facts, is_member
from ds_core.errors import CommError

__all__ = ["GROUP_SIZE", "QuantizedHandle", "all_gather_quantized", "reduce_scatter_quantized"]

GROUP_SIZE = 256
"""Elements that share a scale, where the caller does not say."""

_FORMATS = {8: "int8", 4: "int4"}
"""By bits of an element, its format in `ds_core.ops.quantize`."""
_ALIGN = 16


class _Wire(NamedTuple):
    """How a tensor of so many elements lies in a message."""

    format: str
    bits: int
    group_size: int
    numel: int

    @property
    def scale_bytes(self) -> int:
        return 4 * math.ceil(self.numel / self.group_size)

    @property
    def code_bytes(self) -> int:
        return math.ceil(self.numel * self.bits / 8)

    @property
    def message_bytes(self) -> int:
        return math.ceil((self.scale_bytes + self.code_bytes) / _ALIGN) * _ALIGN

    def write(self, tensor: torch.Tensor, message: torch.Tensor) -> None:
        """Quantizes a flat tensor into a message of bytes."""
        if not self.numel:
            return
        codes, scales, _ = ops.quantize(tensor, self.format, self.group_size)
        message[: self.scale_bytes].view(torch.float32).copy_(scales)
        message[self.scale_bytes : self.scale_bytes + self.code_bytes].copy_(codes.view(-1).view(torch.uint8))

    def read(self, message: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The flat tensor that a message stands for."""
        if not self.numel:
            return torch.empty(0, dtype=dtype, device=message.device)
        scales = message[: self.scale_bytes].view(torch.float32)
        codes = message[self.scale_bytes : self.scale_bytes + self.code_bytes]
        if self.bits == 8:
            codes = codes.view(torch.int8)
        return ops.dequantize(codes, scales, None, self.format, self.group_size, (self.numel,), dtype)


class QuantizedHandle:
    """A quantized collective under way; `wait` restores the numbers and leaves them in the output."""

    def __init__(self, handle: Waitable, finish: Callable[[], None]) -> None:
        self._handle = handle
        self._finish: Callable[[], None] | None = finish

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Waits for the bytes and restores the numbers, once."""
        self._handle.wait(timeout)
        if self._finish is not None:
            finish, self._finish = self._finish, None
            finish()
        return True

    def is_completed(self) -> bool:
        """Whether the bytes are here."""
        return self._finish is None or self._handle.is_completed()


def all_gather_quantized(
    output: torch.Tensor,
    input: torch.Tensor,
    group: ProcessGroup | None = None,
    bits: int = 8,
    group_size: int = GROUP_SIZE,
    async_op: bool = False,
) -> QuantizedHandle | Waitable | None:
    """Concatenate every rank's `input` in `output`, sent in `bits` bits an element. Called on all ranks of the group.

    All ranks get the same numbers: also a rank's own are quantized and restored.

    Args:
        output: contiguous, ranks times as many elements as `input`, which may be a part of it.
        input: float32, bfloat16 or float16, contiguous.
        group: the ranks; None for all.
        bits: 8 or 4.
        group_size: elements that share a scale.
        async_op: return a handle, whose `wait` completes the call.

    Raises:
        CommError: the sizes do not fit, `bits` is not served, or the collective failed.
    """
    if not is_member(group):
        return None
    size = facts(group).size
    wire = _wire("all_gather_quantized", output, input, size, bits, group_size)
    if size == 1:
        output.view(-1).copy_(input.view(-1))
        return DONE if async_op else None
    mine = torch.zeros(wire.message_bytes, dtype=torch.uint8, device=input.device)
    wire.write(input.detach().view(-1), mine)
    every = torch.empty(size * wire.message_bytes, dtype=torch.uint8, device=input.device)
    handle = all_gather_into_tensor(every, mine, group, True)

    def finish() -> None:
        for block, message in zip(output.detach().view(size, -1), every.view(size, -1), strict=True):
            block.copy_(wire.read(message, output.dtype))

    return _completed(handle, finish, async_op)


def reduce_scatter_quantized(
    output: torch.Tensor,
    input: torch.Tensor,
    group: ProcessGroup | None = None,
    bits: int = 8,
    group_size: int = GROUP_SIZE,
    async_op: bool = False,
) -> QuantizedHandle | Waitable | None:
    """Add `input` over the group and keep this rank's piece in `output`; sent in `bits` bits an element.

    Called on all ranks of the group. The pieces of all ranks, this one's too, are restored to float32, added in rank
    order and rounded once.

    Args:
        output: contiguous; may be this rank's piece of `input`.
        input: float32, bfloat16 or float16, contiguous, ranks times as many elements as `output`. It is read before
            this returns, also with ``async_op=True``.
        group: the ranks; None for all.
        bits: 8 or 4.
        group_size: elements that share a scale; groups begin anew with every piece.
        async_op: return a handle, whose `wait` completes the call.

    Raises:
        CommError: the sizes do not fit, `bits` is not served, or the collective failed.
    """
    if not is_member(group):
        return None
    size = facts(group).size
    wire = _wire("reduce_scatter_quantized", input, output, size, bits, group_size)
    if size == 1:
        output.view(-1).copy_(input.view(-1))
        return DONE if async_op else None
    sent = torch.zeros(size * wire.message_bytes, dtype=torch.uint8, device=input.device)
    for piece, message in zip(input.detach().view(size, -1), sent.view(size, -1), strict=True):
        wire.write(piece, message)
    received = torch.empty_like(sent)
    handle = all_to_all_single(received, sent, group=group, async_op=True)

    def finish() -> None:
        messages = received.view(size, -1)
        total = wire.read(messages[0], torch.float32)
        for message in messages[1:]:
            total.add_(wire.read(message, torch.float32))
        output.detach().view(-1).copy_(total)

    return _completed(handle, finish, async_op)


def _completed(handle: Waitable | None, finish: Callable[[], None], async_op: bool) -> QuantizedHandle | None:
    under_way = QuantizedHandle(DONE if handle is None else handle, finish)
    if async_op:
        return under_way
    under_way.wait()
    return None


def _wire(op: str, whole: torch.Tensor, piece: torch.Tensor, ranks: int, bits: int, group_size: int) -> _Wire:
    if bits not in _FORMATS:
        raise CommError(f"{op}: bits must be one of {', '.join(map(str, sorted(_FORMATS)))}, got {bits}")
    if whole.numel() != ranks * piece.numel():
        raise CommError(
            f"{op}: a tensor of {whole.numel()} elements and pieces of {piece.numel()} for {ranks} ranks: it must have "
            f"{ranks} x {piece.numel()} = {ranks * piece.numel()}"
        )
    if not (whole.is_contiguous() and piece.is_contiguous()):
        raise CommError(f"{op}: tensors must be contiguous; call .contiguous() on them")
    if group_size < 1 or group_size * bits % 8:
        raise CommError(f"{op}: group_size must be at least 1 and whole bytes of {bits}-bit codes, got {group_size}")
    return _Wire(_FORMATS[bits], bits, group_size, piece.numel())
