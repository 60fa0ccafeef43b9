"""How one request is cut into system calls and dealt to lanes: a pure plan."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ds_core.aio.contract import ALIGNMENT

__all__ = ["Piece", "Way", "cut", "deal", "runs"]

_WHOLE = 1 << 62  # a block no tensor fills


class Way(enum.Enum):
    """How a piece travels."""

    DIRECT = "between file and tensor, past the page cache"
    STAGED = "past the page cache, through an aligned buffer"
    BUFFERED = "through the page cache"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `start + nbytes` of the tensor, moved by one system call, or by several in a plan of `runs`."""

    start: int
    nbytes: int
    way: Way


def cut(nbytes: int, offset: int, address: int, block: int, *, writes: bool, direct: bool) -> list[Piece]:
    """Pieces of at most `block` bytes that cover the tensor once, in order.

    Direct pieces need whole blocks in the file. A read takes whole blocks through a buffer and drops what is not
    asked for. A write must not touch its neighbours' bytes, so its ragged ends go through the page cache.

    Args:
        nbytes: size of the tensor.
        offset: where it begins in the file.
        address: where it begins in memory.
        block: largest piece, a multiple of the alignment.
        writes: whether the request writes.
        direct: whether the file system moves data past its page cache.
    """
    if not direct:
        return [Piece(start, min(block, nbytes - start), Way.BUFFERED) for start in range(0, nbytes, block)]
    head = min(-offset % ALIGNMENT, nbytes)
    tail = (offset + nbytes) % ALIGNMENT if nbytes > head else 0
    ragged = Way.BUFFERED if writes else Way.STAGED
    whole = Way.DIRECT if (address + head) % ALIGNMENT == 0 else Way.STAGED
    pieces = [Piece(0, head, ragged)] if head else []
    end = nbytes - tail
    pieces += [Piece(start, min(block, end - start), whole) for start in range(head, end, block)]
    return [*pieces, Piece(end, tail, ragged)] if tail else pieces


def deal(pieces: list[Piece], hands: int) -> list[list[Piece]]:
    """`pieces` in at most `hands` runs of neighbours, sizes as equal as can be; no run is empty."""
    hands = min(hands, len(pieces))
    ends = [len(pieces) * (hand + 1) // hands for hand in range(hands)]
    return [pieces[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def runs(
    nbytes: int, offset: int, address: int, block: int, *, writes: bool, direct: bool, hands: int
) -> list[list[Piece]]:
    """`deal(cut(...), hands)` with neighbours of one way joined: what an engine gets that cuts blocks off by itself."""
    spans = cut(nbytes, offset, address, _WHOLE, writes=writes, direct=direct)
    counts = [-(-span.nbytes // block) for span in spans]
    total = sum(counts)
    hands = min(hands, total)
    found: list[list[Piece]] = []
    for hand in range(hands):
        first, last = total * hand // hands, total * (hand + 1) // hands
        run, at = [], 0
        for span, count in zip(spans, counts, strict=True):
            start = max(first - at, 0) * block
            end = min((last - at) * block, span.nbytes)
            if start < end:
                run.append(Piece(span.start + start, end - start, span.way))
            at += count
        found.append(run)
    return found
