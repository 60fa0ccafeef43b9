"""A picture of a run: loss and peak memory, from a file of JSON lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_core.errors import DataError, MissingWheelError
from ds_core.monitors.events import TRAIN_LOSS, peak_memory_rank
from ds_core.monitors.jsonl import read_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Series", "smooth", "write_training_plot"]

_GIB = 1024**3
_MIB = 1024**2


class Series(NamedTuple):
    """Points of one metric in order of x."""

    x: list[float]
    y: list[float]


def write_training_plot(
    jsonl_path: str | Path,
    png_path: str | Path,
    *,
    samples_per_step: int | None = None,
    smoothing: float = 0.9,
    title: str = "",
) -> None:
    """Writes a PNG with two panels: training loss, and peak memory of every rank.

    Where a resumed run wrote a step again, the last value counts.

    Args:
        jsonl_path: file of `ds_core.monitors.JsonlMonitor`.
        png_path: file to write; its folder is made.
        samples_per_step: global batch size; turns the x-axis from samples into optimizer steps.
        smoothing: weight of the past in the running mean drawn over the loss, from 0 (none) to below 1.
        title: of the figure.

    Raises:
        MissingWheelError: matplotlib is not installed.
        DataError: the file has no loss.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingWheelError(
            f"a plot needs matplotlib, which cannot be imported ({error}). Install it: pip install matplotlib"
        ) from error

    loss, memory = _load(Path(jsonl_path), samples_per_step)
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: no global state, no display
    top, bottom = figure.subplots(2, 1, sharex=True)
    _draw_loss(top, loss, smoothing)
    _draw_memory(bottom, memory)
    bottom.set_xlabel("Samples seen by all ranks" if samples_per_step is None else "Optimizer step")
    if title:
        figure.suptitle(title)
    Path(png_path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png_path, dpi=130, format="png")


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential running mean with bias correction; values that are not finite are skipped."""
    total, norm, means = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total = weight * total + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        means.append(total / norm if norm else math.nan)
    return means


def _load(path: Path, samples_per_step: int | None) -> tuple[Series, dict[int, Series]]:
    """The loss, and the peak memory by rank."""
    losses: dict[int, float] = {}
    peaks: dict[int, dict[int, float]] = {}
    for event in read_events(path):
        rank = peak_memory_rank(event.name)
        if event.name == TRAIN_LOSS:
            losses[event.step] = event.value
        elif rank is not None:
            peaks.setdefault(rank, {})[event.step] = event.value
    if not losses:
        raise DataError(f"{path} has no {TRAIN_LOSS} event, so there is no loss to plot.")
    scale = samples_per_step or 1
    return _series(losses, scale), {rank: _series(points, scale) for rank, points in sorted(peaks.items())}


def _series(points: dict[int, float], scale: int) -> Series:
    ordered = sorted(points.items())
    return Series([step / scale for step, _ in ordered], [value for _, value in ordered])


def _draw_loss(axes: Axes, loss: Series, smoothing: float) -> None:
    axes.plot(loss.x, loss.y, color="tab:blue", alpha=0.35, linewidth=1, label="per update")
    axes.plot(loss.x, smooth(loss.y, smoothing), color="tab:blue", linewidth=2, label="running mean")
    axes.set_ylabel("Training loss")
    _finish(axes)


def _draw_memory(axes: Axes, memory: dict[int, Series]) -> None:
    axes.set_ylabel("Peak memory (MiB)")
    if not memory:
        axes.text(0.5, 0.5, "no memory events in this run", ha="center", va="center", transform=axes.transAxes)
        return
    largest = max(value for series in memory.values() for value in series.y)
    unit, name = (_GIB, "GiB") if largest >= _GIB else (_MIB, "MiB")
    for rank, series in memory.items():
        # Ranks often lie on top of each other; dashes of different lengths keep them apart.
        dashes: Any = (0, (6, 1 + 2 * (rank % 4))) if rank else "-"
        axes.plot(series.x, [value / unit for value in series.y], linestyle=dashes, linewidth=2, label=f"rank {rank}")
    axes.set_ylabel(f"Peak memory ({name})")
    axes.set_ylim(bottom=0)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best", ncols=2)
