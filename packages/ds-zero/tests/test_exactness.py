"""A slice of the exactness grid: stages, offload, DDP and a loop by hand give the same bits, or a stated bound.

The grid is in benchmarks/workloads/exactness_grid.py; ``nox -s exactness`` runs all of it and writes the table.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ds_core.testing import run_ranks

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def program(name: str) -> ModuleType:
    """A file of the benchmarks, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "workloads" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


grid = program("exactness_grid")
golden = program("golden")
Cell = grid.Cell

PLAIN, SMALL, CLIPPED = grid.SETTINGS
CELLS = [
    *(Cell(model=model, setting=CLIPPED) for model in grid.MODEL_NAMES),
    Cell(setting=PLAIN),
    Cell(setting=SMALL),
    Cell(accumulation=3, backwards=1, setting=SMALL),
    Cell(accumulation=3, backwards=2, setting=CLIPPED),
    Cell(dtype="bf16", setting=CLIPPED),
    Cell(dtype="bf16", accumulation=3, backwards=2, setting=CLIPPED),
    Cell(dtype="fp16", accumulation=3, backwards=2, setting=CLIPPED),
    Cell(ranks=4, setting=PLAIN),
    Cell(ranks=4, setting=SMALL),
    Cell(ranks=4, accumulation=3, backwards=2, setting=CLIPPED),
    Cell(ranks=4, dtype="bf16", setting=CLIPPED),
]
SEVERAL = [cell for cell in CELLS if not cell.is_single]


@functools.cache
def columns() -> dict[str, object]:
    """The columns that the installed wheels serve, by name."""
    return {column.name: column for column in grid.served()[0]}


@functools.cache
def outcomes(cell):
    """What every rank got by every column; each cell is trained once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        (result,) = zip(
            *run_ranks(grid.train_cells, cell.ranks, [cell], list(columns()), folder, timeout_s=150), strict=True
        )
    return result


def apart(cell, column):
    """How far a column is from the one it is compared with, the worst of all ranks."""
    worst = grid.Distance()
    for row in outcomes(cell):
        worst |= grid.distance(row[column.against], row[column.name])
    return worst


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_same_bits_wherever_the_order_of_sums_is_kept(cell):
    compared = []
    for column in columns().values():
        if column.against is not None and column.name in outcomes(cell)[0] and grid.must_be_equal(cell, column):
            compared.append(column.name)
            assert grid.is_equal(column, apart(cell, column)), (column.name, column.against, apart(cell, column))
    assert {"stage 1", "stage 3", "loop"} <= set(compared)
    assert ("stage 2" in compared) is cell.is_single


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_ranks_end_with_the_same_parameters(cell):
    for name in outcomes(cell)[0]:
        assert len({row[name].digest() for row in outcomes(cell)}) == 1, name


@pytest.mark.parametrize("cell", SEVERAL, ids=lambda cell: cell.name)
def test_another_order_of_sums_stays_within_the_bound_after_ten_steps(cell):
    for name in ("stage 2", "DDP"):
        far = apart(cell, columns()[name])
        assert grid.is_within(cell, far), (name, far)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("accumulation", "backwards"), [(1, 1), (3, 2)])
def test_gradients_of_every_stage_are_within_rounding_of_the_exact_sum(dtype, accumulation, backwards):
    cell = Cell(dtype=dtype, accumulation=accumulation, backwards=backwards, ranks=2, setting=SMALL)
    stages = ["stage 0", "stage 1", "stage 2", "stage 3"]
    parts = [part for rank in run_ranks(grid.terms, cell.ranks, cell) for part in rank]
    count = cell.ranks * accumulation * backwards
    assert len(parts) == count
    factor = 1.0 / (cell.ranks * grid.LOSS_SCALE[dtype])
    roundoff = torch.finfo(grid.DTYPES[dtype]).eps / 2
    rows = run_ranks(grid.first_gradients, cell.ranks, cell, stages, "")
    for name in parts[0]:
        pieces = torch.stack([part[name].double() for part in parts]) * factor
        exact, size = pieces.sum(0), pieces.abs().sum(0)
        # Each of count - 1 additions rounds once, whatever their order: |error| <= (count - 1) u sum |terms|.
        allowed = (count - 1) * roundoff / (1 - (count - 1) * roundoff) * size
        for row in rows:
            for stage in stages:
                assert bool(((row[stage][name].double() - exact).abs() <= allowed).all()), (stage, name)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_size_of_buckets_changes_no_bit(ranks):
    whole, cut = (outcomes(Cell(ranks=ranks, setting=setting))[0] for setting in (PLAIN, SMALL))
    for name in whole:
        if not name.startswith("DDP"):
            far = grid.distance(whole[name], cut[name])
            assert not (far.weights or far.masters or far.losses), (name, far)
            assert far.norm <= grid.NORM, name


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.dtype == "fp32"], ids=lambda cell: cell.name)
def test_golden_values(cell, record_property):
    # On another torch or other kernels bits differ for reasons of their own; values must still be close.
    recorded = golden.read(HERE / "golden" / f"ranks{cell.ranks}.json")
    same = recorded["recorded"] == golden.circumstances()
    record_property("compared", "bits" if same else f"within {golden.ELSEWHERE_ULPS} ulps")
    kept = recorded["cells"][cell.name]
    assert set(kept) == ({"stage 0"} if cell.is_single else {"stage 0", "stage 2"})
    for column, values in kept.items():
        now = golden.record(outcomes(cell)[0][column], cell.accumulation * cell.backwards)
        assert not list(golden.differences(values, now, same_kernels=same)), column


def test_every_column_of_the_table_has_a_configuration_or_a_reason():
    taken, refused = grid.served()
    assert {column.name for column in taken} | set(refused) == {column.name for column in grid.COLUMNS}
    assert {"stage 0", "stage 1", "stage 2", "stage 3"} <= {column.name for column in taken}
    assert all("offload" in reason for reason in refused.values())
