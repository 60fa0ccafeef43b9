"""The emulation finds what is wrong with a kernel, whatever the width of a warp, and runs what is right."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from ds_accel_cuda.libraries import built
from ds_core.testing.emulation import ORDERS, Emulation, Order

BLOCK = 128
INDEX_OUT_OF_RANGE = 5
DEVICE_ERROR = 4


class Exec(ctypes.Structure):
    """``ds_exec`` of ABI 1.0."""

    _fields_ = [
        ("struct_size", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_uint64),
        ("parallel_for", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
    ]


class Faults(Emulation):
    """The library of small kernels, most of them wrong."""

    def __init__(self, path: Path, warp: int) -> None:
        super().__init__(path)
        self.warp = warp
        self._run = self._library.dsk_emulation_fault
        self._run.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]

    def run(self, name: str, out: torch.Tensor, order: Order = ORDERS[0], threads: int = 1) -> int:
        x = torch.arange(1024, dtype=torch.float32)
        context = Exec(struct_size=ctypes.sizeof(Exec), threads=threads)
        with self.order(order):
            status = self._run(name.encode(), x.data_ptr(), out.data_ptr(), ctypes.byref(context))
        assert status >= 0, f"no kernel {name}"
        return int(status)


@pytest.fixture(params=["faults_32", "faults_64"])
def faults(request: pytest.FixtureRequest) -> Faults:
    """For warps of 32 lanes with switches in assembly, and of 64 with the system's ucontext."""
    emulated = built().emulated
    if request.param not in emulated:
        pytest.skip(f"built without the tests' kernels: {built().left_out.get('sanitized')}")
    return Faults(emulated[request.param], int(request.param.removeprefix("faults_")))


def result(faults: Faults, name: str, order: Order = ORDERS[0], threads: int = 1, size: int = 2048) -> torch.Tensor:
    out = torch.zeros(size)
    assert faults.run(name, out, order, threads) == 0, faults.error()
    return out


# --- what is right ---


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_barrier_parts_writes_from_reads(faults: Faults, order: Order) -> None:
    out = result(faults, "neighbour", order)
    assert torch.equal(out[:BLOCK], torch.arange(BLOCK, dtype=torch.float32).roll(-1))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_halves_of_a_warp_may_go_separate_ways(faults: Faults, order: Order) -> None:
    thread = torch.arange(BLOCK)
    want = torch.where(thread % faults.warp < faults.warp // 2, thread ^ 1, thread ^ 2)
    assert torch.equal(result(faults, "half_warps", order)[:BLOCK], want.float())


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_votes_and_shuffles_give_what_cuda_says(faults: Faults, order: Order) -> None:
    rows = result(faults, "votes_and_shuffles", order).view(-1, BLOCK)
    thread, warp = torch.arange(BLOCK), faults.warp
    lane = thread % warp
    special = thread // warp == (warp + 1) // warp  # the warp that thread warp + 1 is in
    want = [
        thread - lane + 3,
        torch.where(lane >= 2, thread - 2, thread),
        torch.where(lane % 8 + 2 < 8, thread + 2, thread),
        thread ^ 5,
        torch.full((BLOCK,), len(range(0, warp, 3))),
        special,
        ~special,
        torch.full((BLOCK,), 100),
        torch.zeros(BLOCK),
        torch.ones(BLOCK),
    ]
    for row, values in enumerate(want):
        assert torch.equal(rows[row], values.float()), row


def test_a_sum_over_a_block_is_a_tree_that_the_width_of_a_warp_does_not_change(faults: Faults) -> None:
    tree = 1 / (1 + torch.arange(BLOCK, dtype=torch.float32))
    while tree.numel() > 1:
        tree = tree[0::2] + tree[1::2]
    assert (result(faults, "votes_and_shuffles").view(-1, BLOCK)[10] == tree).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_atomics_count_every_thread(faults: Faults, threads: int) -> None:
    words = result(faults, "count_atomically", threads=threads).view(torch.int32)
    assert words[:4].tolist() == [50 * sum(range(BLOCK)), 50 * BLOCK - 1, 255, 7]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_every_thread_of_every_block_runs_once_in_three_dimensions(faults: Faults, order: Order, threads: int) -> None:
    assert torch.equal(result(faults, "whole_place", order, threads)[:768], torch.arange(768, dtype=torch.float32))


# --- races: found by comparing orders ---


@pytest.mark.parametrize(
    "name",
    [
        "neighbour_without_barrier",
        "neighbour_overwritten",
        "warp_without_syncwarp",
        "block_after_block",
    ],
)
def test_a_race_changes_the_result_with_the_order(faults: Faults, name: str) -> None:
    forward, backward, mixed = (result(faults, name, order).nan_to_num(-7.0) for order in ORDERS)
    assert not torch.equal(forward, backward) and not torch.equal(forward, mixed)


def test_a_float_sum_by_atomics_is_seen_to_depend_on_the_order(faults: Faults) -> None:
    found = set()
    for order in (*ORDERS, Order("shuffled", 2)):
        out = torch.tensor([1e8])
        assert faults.run("sum_by_atomics", out, order) == 0
        found.add(out.item())
    assert len(found) > 1


def test_the_same_seed_gives_the_same_order_of_blocks_and_another_seed_another(faults: Faults) -> None:
    def blocks(seed: int) -> list[float]:
        return result(faults, "block_after_block", Order("shuffled", seed), size=64).tolist()

    assert len({tuple(blocks(seed)) for seed in range(4)}) > 1


def test_what_was_never_written_in_shared_memory_is_nan(faults: Faults) -> None:
    assert result(faults, "read_of_nothing")[: 3 * BLOCK].isnan().all()


# --- what a device would hang on, or leave undefined ---


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("barrier_in_a_branch", "barrier at checks/faults.cu:{line} by threads 0-95; threads 96-127 have ended"),
        ("barriers_of_two_branches", "divergent barriers"),
        ("shuffle_after_return", "have ended"),
        ("shuffle_in_a_branch", "reached by only some of the 128 threads"),
        ("mask_without_self", "the mask does not name lane 5"),
        ("masks_that_differ", "for lanes 0-"),
        ("source_outside_of_mask", "which the mask does not name"),
        ("half_a_warp", "which have ended or never existed"),
    ],
)
def test_undefined_behaviour_ends_the_launch_with_a_message(faults: Faults, name: str, text: str, order: Order) -> None:
    assert faults.run(name, torch.zeros(2048), order) == DEVICE_ERROR
    for part in text.split("{line}"):
        assert part in faults.error()
    assert faults.error().startswith("launch at checks/faults.cu:")


def test_after_a_failed_launch_the_next_one_runs(faults: Faults) -> None:
    for _ in range(3):
        assert faults.run("barrier_in_a_branch", torch.zeros(BLOCK)) == DEVICE_ERROR
        result(faults, "neighbour")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("much_static_shared", "brings the block to 50176 bytes; it may have 49152"),
        ("much_dynamic_shared", "50176 bytes of dynamic shared memory; 49152 are allowed"),
        ("many_threads", "a block of (1088, 1, 1) threads; 1 to 1024 are allowed"),
        ("many_blocks", "a grid of (1, 65536, 1) blocks"),
    ],
)
def test_a_launch_beyond_the_limits_of_a_device_is_refused(faults: Faults, name: str, text: str) -> None:
    assert faults.run(name, torch.zeros(2048)) == DEVICE_ERROR
    assert text in faults.error()


def test_more_shared_memory_is_there_when_asked_for(faults: Faults) -> None:
    result(faults, "large_shared")


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_an_index_out_of_range_is_a_status_of_its_own(faults: Faults, order: Order) -> None:
    assert faults.run("index_out_of_range", torch.zeros(BLOCK), order) == INDEX_OUT_OF_RANGE
