from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ds_core.aio.contract import ALIGNMENT
from ds_core.aio.pieces import Piece, Way, cut, deal, runs

SIZES = st.integers(0, 5 * ALIGNMENT)
ADDRESSES = st.sampled_from([0, 64, ALIGNMENT]) | SIZES
BLOCKS = st.sampled_from([ALIGNMENT, 2 * ALIGNMENT])


@given(nbytes=SIZES, offset=SIZES, address=ADDRESSES, block=BLOCKS, writes=st.booleans(), direct=st.booleans())
def test_pieces_cover_the_tensor_once_and_in_order(nbytes, offset, address, block, writes, direct):
    pieces = cut(nbytes, offset, address, block, writes=writes, direct=direct)
    at = 0
    for piece in pieces:
        assert piece.start == at
        assert 0 < piece.nbytes <= block
        at += piece.nbytes
    assert at == nbytes


@given(nbytes=SIZES, offset=SIZES, address=ADDRESSES, block=BLOCKS, writes=st.booleans())
def test_what_goes_past_the_page_cache_is_on_block_boundaries(nbytes, offset, address, block, writes):
    for piece in cut(nbytes, offset, address, block, writes=writes, direct=True):
        at = offset + piece.start
        if piece.way is Way.DIRECT:
            assert (address + piece.start) % ALIGNMENT == 0
        if piece.way is Way.DIRECT or (writes and piece.way is Way.STAGED):
            assert at % ALIGNMENT == 0
            assert piece.nbytes % ALIGNMENT == 0
        if not writes and piece.way is Way.STAGED:
            assert at % ALIGNMENT + piece.nbytes <= block


def test_an_aligned_request_is_never_copied():
    pieces = cut(10 * ALIGNMENT, 2 * ALIGNMENT, 7 * ALIGNMENT, 4 * ALIGNMENT, writes=True, direct=True)
    assert pieces == [
        Piece(0, 4 * ALIGNMENT, Way.DIRECT),
        Piece(4 * ALIGNMENT, 4 * ALIGNMENT, Way.DIRECT),
        Piece(8 * ALIGNMENT, 2 * ALIGNMENT, Way.DIRECT),
    ]


def test_ragged_ends_of_a_write_go_through_the_page_cache():
    ways = [piece.way for piece in cut(2 * ALIGNMENT, 100, 0, ALIGNMENT, writes=True, direct=True)]
    assert ways == [Way.BUFFERED, Way.STAGED, Way.BUFFERED]


@given(count=st.integers(0, 40), hands=st.integers(1, 9))
def test_pieces_are_dealt_in_runs_of_neighbours(count, hands):
    pieces = [Piece(index, 1, Way.DIRECT) for index in range(count)]
    runs = deal(pieces, hands)
    assert [piece for run in runs for piece in run] == pieces
    assert len(runs) == min(count, hands)
    assert all(runs)
    if runs:
        assert max(map(len, runs)) - min(map(len, runs)) <= 1


@given(
    nbytes=st.integers(0, 40 * ALIGNMENT),
    offset=SIZES,
    address=ADDRESSES,
    block=BLOCKS,
    writes=st.booleans(),
    direct=st.booleans(),
    hands=st.integers(1, 5),
)
def test_runs_are_the_pieces_that_are_dealt(nbytes, offset, address, block, writes, direct, hands):
    how = {"writes": writes, "direct": direct}
    found = runs(nbytes, offset, address, block, hands=hands, **how)
    again = [
        [
            Piece(start, min(block, span.start + span.nbytes - start), span.way)
            for span in run
            for start in range(span.start, span.start + span.nbytes, block)
        ]
        for run in found
    ]
    assert again == deal(cut(nbytes, offset, address, block, **how), hands)
    assert all(len(run) <= 3 for run in found)
