"""Runs the exactness grid, writes its table into docs/explanation/exactness.md and checks the golden values.

    python -m nox -s exactness                  the whole grid, about a quarter of an hour on two cores
    python -m nox -s exactness -- --accept      the same, and golden values are what this run gave
    python -m nox -s exactness -- --quick       one model, no files written

The exit code is 1 where a golden value changed, or where two results that must be bit-equal are not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "workloads"))  # the programs that are run lie there

import exactness_grid as grid
import golden

from ds_core.testing import run_ranks

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "exactness.md"
GOLDEN = ROOT / "packages" / "ds-zero" / "tests" / "golden"
BEGIN, END = "<!-- made by nox -s exactness: begin -->", "<!-- made by nox -s exactness: end -->"
BATCH = 4
"""Cells that ranks train in one call."""

Found = dict[grid.Cell, list[dict[str, grid.Outcome]]]
"""By cell, the outcomes of every rank by column."""

SHOWN: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "stage 1": (("stage 1",), (2, 4)),
    "stage 2": (("stage 2",), (2, 4)),
    "stage 3": (("stage 3",), (2, 4)),
    "on host": (("stage 1, optimizer on host", "stage 2, optimizer on host", "stage 3, all on host"), (2, 4)),
    "on NVMe": (("stage 3, optimizer on NVMe", "stage 3, all on NVMe"), (2, 4)),
    "loop": (("loop", "loop, each backward"), (2, 4)),
    "DDP, 2 ranks": (("DDP",), (2,)),
    "DDP, 4 ranks": (("DDP",), (4,)),
}
"""Columns of the page: the columns of the grid they sum up, and the numbers of ranks."""


def cells() -> list[grid.Cell]:
    """The grid that is run: each model with small buckets and clipping; other buckets with all features at once."""
    plain, small, clipped = grid.SETTINGS
    found = grid.grid(ranks=[2], settings=[clipped]) + grid.grid(models=["zoo"], ranks=[2], settings=[plain, small])
    found += grid.grid(dtypes=["fp32"], ranks=[4], settings=[clipped])
    found += grid.grid(models=["zoo"], dtypes=["fp32"], ranks=[4], settings=[plain, small])
    found += grid.grid(models=["zoo"], dtypes=["bf16", "fp16"], ranks=[4], settings=[plain, clipped])
    return found


def run(wanted: Sequence[grid.Cell], columns: Sequence[str]) -> Found:
    """Trains every cell by every column."""
    found: Found = {}
    started = time.monotonic()
    for ranks in sorted({cell.ranks for cell in wanted}):
        mine = [cell for cell in wanted if cell.ranks == ranks]
        for first in range(0, len(mine), BATCH):
            batch = mine[first : first + BATCH]
            with tempfile.TemporaryDirectory(prefix="exactness-") as folder:
                rows = run_ranks(grid.train_cells, ranks, batch, list(columns), folder, timeout_s=900)
            found.update({cell: [row[place] for row in rows] for place, cell in enumerate(batch)})
            print(f"{len(found)} of {len(wanted)} cells, {time.monotonic() - started:.0f} s", flush=True)
    return found


def distances(rows: Sequence[Mapping[str, grid.Outcome]], columns: Iterable[str]) -> Iterator[grid.Distance]:
    """How far columns are from what they are compared with, on every rank."""
    for column in grid.COLUMNS:
        if column.name in columns and column.against is not None and column.name in rows[0]:
            for row in rows:
                yield grid.distance(row[column.against], row[column.name])


def violations(found: Found) -> Iterator[str]:
    """Pairs that must be bit-equal and are not, or are further apart than the bound; ranks that disagree; in words."""
    for cell, rows in found.items():
        for column in grid.COLUMNS:
            if column.against is None or column.name not in rows[0]:
                continue
            is_exact = grid.must_be_equal(cell, column)
            for apart in distances(rows, [column.name]):
                if not (grid.is_equal(column, apart) if is_exact else grid.is_within(cell, apart)):
                    wanted = "equal to" if is_exact else "near"
                    yield f"{cell.name}: {column.name} is not {wanted} {column.against}: {apart}"
                    break
        for name in rows[0]:
            if len({row[name].digest() for row in rows}) > 1:
                yield f"{cell.name}: ranks disagree on the parameters at {name}"
    yield from _bucket_violations(found)


def _bucket_violations(found: Found) -> Iterator[str]:
    plain, small, _ = grid.SETTINGS
    by_name = {cell.name: rows for cell, rows in found.items()}
    for cell, rows in found.items():
        other = by_name.get(cell.name.replace(plain, small)) if cell.setting == plain else None
        for name in rows[0] if other else ():
            apart = grid.distance(rows[0][name], other[0][name])  # type: ignore[index]
            is_ddp = name == "DDP" and cell.ranks > 2
            if not is_ddp and (apart.weights or apart.masters or apart.losses or apart.norm > grid.NORM):
                yield f"{cell.name}: the size of buckets changes {name}: {apart}"


# --- golden values --------------------------------------------------------------------------------------------------


def golden_values(rows: Sequence[Mapping[str, grid.Outcome]], cell: grid.Cell) -> dict[str, Any]:
    """A cell's golden values: of stage 0, and of stage 2 where it adds in another order."""
    names = ["stage 0"] if cell.is_single else ["stage 0", "stage 2"]
    return {name: golden.record(rows[0][name], cell.accumulation * cell.backwards) for name in names}


def check_golden(found: Found, *, accept: bool) -> list[str]:
    """What differs from the golden files; with `accept` they are written instead."""
    problems = []
    for ranks in sorted({cell.ranks for cell in found}):
        values = {
            cell.name: golden_values(rows, cell)
            for cell, rows in found.items()
            if cell.ranks == ranks and cell.dtype == "fp32"
        }
        path = GOLDEN / f"ranks{ranks}.json"
        if accept:
            golden.write(path, values)
            continue
        recorded = golden.read(path)
        same = recorded["recorded"] == golden.circumstances()
        for name, by_column in values.items():
            for column, now in by_column.items():
                then = recorded["cells"].get(name, {}).get(column)
                told = ["not recorded"] if then is None else golden.differences(then, now, same_kernels=same)
                problems += [f"{name}, {column}: {text}" for text in told]
    return problems


# --- the page -------------------------------------------------------------------------------------------------------


def table(found: Found, refused: Mapping[str, str]) -> str:
    """The part of the page between the markers."""
    made = golden.circumstances()
    lines = [
        f"torch {made['torch']}, {made['machine']}, one thread a rank; {len(found)} cells of {grid.STEPS} steps.",
        *([f"Not in this version: {', '.join(refused)}."] if refused else []),
    ]
    shown = {
        title: (names, ranks)
        for title, (names, ranks) in SHOWN.items()
        if any(name in rows[0] for rows in found.values() for name in names)
    }
    for dtype in dict.fromkeys(cell.dtype for cell in found):
        lines += ["", f"### {dtype}", "", "| micro-batches | backwards | model | " + " | ".join(shown) + " |"]
        lines.append("| " + " | ".join(["---"] * (3 + len(shown))) + " |")
        lines += _rows(found, dtype, shown)
    return "\n".join(lines)


def _rows(found: Found, dtype: str, shown: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]) -> Iterator[str]:
    """Rows of one table; models whose rows are alike share one."""
    for accumulation in (1, 3):
        for backwards in (1, 2):
            alike: dict[tuple[str, ...], list[str]] = {}
            for model, title in grid.MODEL_NAMES.items():
                mine = {
                    cell: rows
                    for cell, rows in found.items()
                    if (cell.dtype, cell.model) == (dtype, model)
                    and (cell.accumulation, cell.backwards) == (accumulation, backwards)
                }
                if mine:
                    entries = tuple(_entry(mine, names, ranks) for names, ranks in shown.values())
                    alike.setdefault(entries, []).append(title)
            for entries, titles in alike.items():
                models = "every one" if len(titles) == len(grid.MODEL_NAMES) else ", ".join(titles)
                yield "| " + " | ".join([str(accumulation), str(backwards), models, *entries]) + " |"


def _entry(found: Found, names: Sequence[str], ranks: Sequence[int]) -> str:
    """The worst of some cells and columns: "=", or ulps of weights, masters and losses."""
    worst, is_same, count = grid.Distance(), True, 0
    for cell, rows in found.items():
        for column in grid.COLUMNS:
            if cell.ranks in ranks and column.name in names:
                for apart in distances(rows, [column.name]):
                    count += 1
                    is_same &= grid.is_equal(column, apart)
                    worst |= apart
    if not count:
        return ""
    if is_same:
        return "="
    return f"{worst.weights:.2g} / {worst.masters:.2g} / {worst.losses:.2g}"


def write_page(text: str) -> None:
    """Puts the table between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.relative_to(ROOT)} needs the lines {BEGIN} and {END}; put them where the table goes")
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accept", action="store_true", help="write golden values instead of comparing with them")
    parser.add_argument("--quick", action="store_true", help="one model on two ranks; writes nothing")
    asked = parser.parse_args()
    taken, refused = grid.served()
    for name, reason in refused.items():
        print(f"left out: {name}: {reason}")
    wanted = grid.grid(models=["zoo"], ranks=[2], settings=grid.SETTINGS[:2]) if asked.quick else cells()
    found = run(wanted, [column.name for column in taken])
    problems = [*violations(found), *check_golden(found, accept=asked.accept and not asked.quick)]
    text = table(found, refused)
    print(text)
    if not asked.quick:
        write_page(text)
    for problem in problems:
        print(f"NOT EXACT: {problem}")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
