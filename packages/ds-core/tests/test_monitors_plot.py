"""The picture of a run."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ds_core.errors import DataError, MissingWheelError
from ds_core.monitors import Event, JsonlMonitor, peak_memory
from ds_core.monitors.events import TRAIN_LOSS
from ds_core.monitors.plot import Series, _load, smooth, write_training_plot


@dataclass(frozen=True)
class Section:
    output_path: str
    job_name: str = "job"


def record(folder: Path, events: list[tuple[str, float, int]]) -> Path:
    monitor = JsonlMonitor(Section(str(folder)))
    monitor.write([Event(name, value, step, 0.0) for name, value, step in events])
    monitor.close()
    return folder / "job" / "events.jsonl"


def run(ranks: int = 2) -> list[tuple[str, float, int]]:
    events: list[tuple[str, float, int]] = []
    for step in range(1, 60):
        noise = 0.3 * (step * 7919 % 13 / 13 - 0.5)
        events.append((TRAIN_LOSS, 7.0 * math.exp(-step / 25) + 2 + noise, step * 32))
        events.extend((peak_memory(rank), (300 + 10 * rank) * 1024**2, step * 32) for rank in range(ranks))
    return events


def test_a_png_is_written_with_and_without_memory(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, events in {"with": run(), "without": run(ranks=0)}.items():
        target = tmp_path / "plots" / f"{name}.png"
        write_training_plot(record(tmp_path / name, events), target, samples_per_step=32, title="A run")
        header = target.read_bytes()[:24]
        assert header.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", header[16:24])
        assert width > 1000
        assert height > 700


def test_what_is_drawn_is_what_was_written_last(tmp_path: Path) -> None:
    path = record(
        tmp_path,
        [(TRAIN_LOSS, 5.0, 64), (TRAIN_LOSS, 9.0, 32), (TRAIN_LOSS, 4.0, 64), (peak_memory(1), 7.0, 32), ("x", 1.0, 1)],
    )
    assert _load(path, 32) == (Series([1.0, 2.0], [9.0, 4.0]), {1: Series([1.0], [7.0])})
    assert _load(path, None)[0].x == [32.0, 64.0]


def test_the_mean_does_not_lag_and_steps_over_nan() -> None:
    slope = [float(value) for value in range(20)]
    assert smooth(slope, 7) == pytest.approx(slope)
    assert smooth([0.0, 3.0, 0.0, 3.0, 0.0], 3) == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0])
    assert smooth([1.0, math.nan, 3.0], 3) == pytest.approx([1.0, 2.0, 3.0])
    assert smooth([1.0, 5.0], 1) == [1.0, 5.0]
    assert math.isnan(smooth([math.nan], 3)[0])


def test_a_run_without_a_loss_and_a_missing_matplotlib_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(tmp_path, [("lr", 0.1, 1)])
    pytest.importorskip("matplotlib")
    with pytest.raises(DataError, match="no Train/Samples/train_loss event"):
        write_training_plot(path, tmp_path / "plot.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingWheelError, match="pip install matplotlib"):
        write_training_plot(path, tmp_path / "plot.png")
