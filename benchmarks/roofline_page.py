"""Writes docs/explanation/roofline.md and its picture from a results file: roofline_page.py RESULTS [--docs FOLDER]."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import plots
import roofline
from harness import short

ROOT = Path(__file__).parent.parent
PICTURE = "roofline.png"
COLORS = ("#1b6ca8", "#c0392b", "#2e7d32", "#8e44ad", "#b9770e", "#117a8b", "#5d4037", "#455a64")
LINES = {"fp32": "-", "bf16": "--", "int8": ":"}

INTRODUCTION = """\
A kernel that does `f` operations and moves `b` bytes needs at least `b / B` seconds on a machine that moves `B` bytes
a second, and at least `f / P` on one that computes `P` operations a second. The larger of the two is its *roof*; the
share of the roof is how near a kernel comes. `python -m nox -s bench -- --only roofline` measures both on the same
threads in the same process and writes this page.

- **Limits** are loops in C (`benchmarks/workloads/roofs.c`), compiled on the spot for the processor, over OpenMP
  threads: reading 256 MiB, writing, copying, and the triad `a = b + 3 c`; twelve independent chains of float32 fused
  multiply-adds, of bfloat16 dot products and of int8 dot products. Each is the best of all its rounds, before and after
  every family of kernels. The roof of memory is the fastest traffic of the four.
- **Kernels** are called through `ds_core.ops`, checks and dispatch included, most on tensors far larger than the
  caches. A figure is the median of {rounds} rounds, in which the kernel and its peer take turns; minimum and maximum
  are in brackets.
- **Bytes** are the least that must be moved: every input read once, every output written once. A plain store fetches
  the line first, which is not counted for kernels and not for the limits; nor is what a peer moves beyond the least.
"""


def write(results: Mapping[str, Any], docs: Path) -> Path:
    """The page and its picture.

    Args:
        results: what a run wrote; has a section ``roofline``.
        docs: the folder of the documentation.
    """
    measured = results["sections"]["roofline"]["measured"]
    folder = docs / "explanation"
    draw(measured, folder / "img")
    page = folder / "roofline.md"
    page.write_text("\n".join(_lines(results, measured)))
    return page


def draw(measured: Mapping[str, Any], folder: Path) -> None:
    """The points, numbered as in the table, under the roofs."""
    roofs, kernels = measured["roofs"], measured["kernels"]
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    at = [kernel["flops"] / kernel["bytes"] for kernel in kernels if kernel["flops"]]
    left, right = min(at) / 2, max([*at, max(roofs.values()) / roofline.bandwidth(roofs)]) * 3
    speed = roofline.bandwidth(roofs)
    for unit, style in LINES.items():
        if roofs.get(unit):
            ridge = roofs[unit] / speed
            axes.plot(
                [left, ridge, right], [left * speed / 1e9, *[roofs[unit] / 1e9] * 2], style, color="black", lw=1.2
            )
            label = f"{unit}: {short(roofs[unit] / 1e9)} GFLOP/s"
            axes.annotate(label, (right, roofs[unit] / 1e9), ha="right", va="bottom", fontsize=9)
    start = (left * 1.15, left * 1.15 * speed / 1e9)
    axes.annotate(
        f"memory: {short(speed / 1e9)} GB/s", start, rotation=35, rotation_mode="anchor", va="bottom", fontsize=9
    )
    families = list(dict.fromkeys(kernel["family"] for kernel in kernels))
    for index, family in enumerate(families):
        color = COLORS[index % len(COLORS)]
        points = [_place(kernel) for kernel in kernels if kernel["family"] == family and kernel["flops"]]
        if not points:  # copies compute nothing: they are in the table only
            continue
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, color=color, s=26, label=family.replace("_", " "), zorder=3)
    for place, numbers in _labels(kernels):
        axes.annotate(numbers, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("GFLOP/s (int8: GOP/s)")
    axes.set_title(f"{measured['level']}, {measured['threads']} threads; numbers as in the table")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    plots.save(figure, folder, PICTURE)


def _place(kernel: Mapping[str, Any]) -> tuple[float, float]:
    """Operations a byte, and 10^9 operations a second."""
    return kernel["flops"] / kernel["bytes"], kernel["flops"] / kernel["s"]["ours"]["median"] / 1e9


def _labels(kernels: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[float, float], str]]:
    """Where to write which numbers: kernels that nearly coincide share a label."""
    groups: list[tuple[tuple[float, float], list[int]]] = []
    for number, kernel in enumerate(kernels, start=1):
        if not kernel["flops"]:
            continue
        x, y = _place(kernel)
        near = [n for (a, b), n in groups if abs(math.log10(x / a)) < 0.05 and abs(math.log10(y / b)) < 0.06]
        if near:
            near[0].append(number)
        else:
            groups.append(((x, y), [number]))
    return [(place, ", ".join(map(str, numbers))) for place, numbers in groups]


def _lines(results: Mapping[str, Any], measured: Mapping[str, Any]) -> Iterator[str]:
    roofs = measured["roofs"]
    yield "# Roofline"
    yield ""
    yield INTRODUCTION.format(rounds=len(measured["kernels"][0]["s"]["ours"]["values"]))
    if results["quick"]:
        yield "!!! warning"
        yield "    A quick run with tiny sizes: it shows that the programs work and nothing else."
        yield ""
    machine, noise = results["machine"], results["sections"]["roofline"]["noise"]
    yield (
        f"Measured on {machine['processor']} ({machine['cores']} cores{', virtual' if machine['virtual'] else ''}), "
        f"{measured['threads']} threads, level `{measured['level']}`, {noise['began'][:10]}; load before "
        f"{noise['load_before']:g}, {noise['stolen_percent']:g}% of the processor's time taken by other guests."
    )
    yield ""
    yield f"![Every kernel as a point under the measured roofs](img/{PICTURE})"
    yield ""
    yield "| limit | |"
    yield "| --- | --- |"
    for name, what in _limits():
        yield f"| {what} | {_limit(roofs[name], name)} |"
    yield ""
    yield "| | kernel | MB moved | ops/byte | speed | share of its roof | against |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for number, kernel in enumerate(measured["kernels"], start=1):
        yield _row(number, kernel, roofs)
    yield ""
    yield "Shares are of the fastest traffic, also where a kernel mixes reads and writes. A ratio above 1 is for us."
    yield ""


def _limits() -> tuple[tuple[str, str], ...]:
    return (
        ("read", "read"),
        ("write", "write"),
        ("copy", "copy (one read, one written)"),
        ("triad", "triad (two read, one written)"),
        ("fp32", "float32 fused multiply-add"),
        ("bf16", "bfloat16 dot product"),
        ("int8", "int8 dot product"),
    )


def _limit(value: float, name: str) -> str:
    if not value:
        return "*not measured: no such instruction, or no loop for it here*"
    return f"{short(value / 1e9)} {'GB/s' if name in ('read', 'write', 'copy', 'triad') else 'GFLOP/s'}"


def _row(number: int, kernel: Mapping[str, Any], roofs: Mapping[str, float]) -> str:
    sample = kernel["s"]["ours"]
    _, bound = roofline.roof(kernel, roofs)
    work, unit = (kernel["bytes"], "GB/s") if bound == "memory" else (kernel["flops"], "GFLOP/s")
    ends = sorted(work / sample[end] / 1e9 for end in ("min", "max"))
    speed = f"{short(work / sample['median'] / 1e9)} {unit} ({short(ends[0])} to {short(ends[1])})"
    peer = kernel["s"].get("peer")
    against = f"{peer['median'] / sample['median']:.2f} x {kernel['peer_name']}" if peer else ""
    cells = [
        str(number),
        kernel["name"],
        short(kernel["bytes"] / 1e6),
        f"{kernel['flops'] / kernel['bytes']:.2g}",
        speed,
        f"{roofline.share(kernel, roofs):.0%} of {bound}",
        against,
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    asked = parser.parse_args()
    print(write(json.loads(asked.results.read_text()), asked.docs))
