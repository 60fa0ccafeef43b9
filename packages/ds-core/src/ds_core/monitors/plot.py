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
    smoothing_window: int | None = None,
    title: str = "",
) -> None:
    """Writes a PNG with two panels: training loss, and peak memory of every rank.

    Where a resumed run wrote a step again, the last value counts.

    Args:
        jsonl_path: file of `ds_core.monitors.JsonlMonitor`.
        png_path: file to write; its folder is made.
        samples_per_step: global batch size; turns the x-axis from samples into optimizer steps.
        smoothing_window: updates in the centred mean drawn over the loss; made odd; a tenth of the run when None.
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
    _draw_loss(top, loss, (smoothing_window or max(len(loss.x) // 10, 5)) | 1)
    _draw_memory(bottom, memory)
    bottom.set_xlabel("Samples seen by all ranks" if samples_per_step is None else "Optimizer step")
    if title:
        figure.suptitle(title)
    Path(png_path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png_path, dpi=130, format="png")


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over up to `window` values, which does not lag; values that are not finite are skipped.

    Near both ends the window shrinks on both sides alike, so a slope is not bent there.
    """
    means = []
    for index in range(len(values)):
        reach = min(window // 2, index, len(values) - 1 - index)
        finite = [value for value in values[index - reach : index + reach + 1] if math.isfinite(value)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
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


def _draw_loss(axes: Axes, loss: Series, window: int) -> None:
    axes.plot(loss.x, loss.y, color="tab:blue", alpha=0.35, linewidth=1, label="per update")
    axes.plot(loss.x, smooth(loss.y, window), color="tab:blue", linewidth=2, label=f"mean of {window}")
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
    axes.set_ylim(0, 1.2 * largest / unit)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="best", ncols=2)
