"""Where metrics go, and that a broken sink does not stop training."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_core.errors import MissingWheelError
from ds_core.hooks import MonitorEntry
from ds_core.monitors import Event, JsonlMonitor, Monitor, MonitorMaster, TensorBoardMonitor, peak_memory, train_events
from ds_core.monitors.events import elapsed_ms, peak_memory_rank
from ds_core.monitors.jsonl import read_events
from ds_core.monitors.registry import ENTRIES


@dataclass(frozen=True)
class Section:
    output_path: str = ""
    job_name: str = "job"
    enabled: bool = True


@dataclass(frozen=True)
class FakeRecord:
    id: str = "wheel:name"


@dataclass(frozen=True)
class FakeProvided:
    item: MonitorEntry
    record: FakeRecord = FakeRecord()


class FakeManager:
    """Stands for the plugin manager."""

    def __init__(self, *entries: MonitorEntry) -> None:
        self.entries = entries

    def collect(self, hook: str) -> list[FakeProvided]:
        assert hook == "ds_monitors"
        return [FakeProvided(entry) for entry in self.entries]


class Memory:
    """A sink that keeps everything."""

    def __init__(self, section: Any = None) -> None:
        self.events: list[Event] = []
        self.calls: list[str] = []

    def write(self, events: Sequence[Event]) -> None:
        self.events.extend(events)

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


class Broken(Memory):
    """A sink whose disk is full."""

    def write(self, events: Sequence[Event]) -> None:
        raise OSError("no space left")


MEMORY = MonitorEntry("memory", "memory", f"{__name__}:Memory")
BROKEN = MonitorEntry("broken", "broken", f"{__name__}:Broken")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_jsonl_has_one_object_per_line_at_once(tmp_path: Path) -> None:
    monitor = JsonlMonitor(Section(str(tmp_path), "run"))
    assert isinstance(monitor, Monitor)
    monitor.write([Event("a/b", 1.5, 10, 99.25), Event("c", math.nan, 20, 99.5), Event("c", -math.inf, 30, 99.75)])
    assert lines(tmp_path / "run" / "events.jsonl") == [
        {"name": "a/b", "value": 1.5, "step": 10, "wall_time": 99.25},
        {"name": "c", "value": None, "step": 20, "wall_time": 99.5},
        {"name": "c", "value": None, "step": 30, "wall_time": 99.75},
    ]
    monitor.close()


@pytest.mark.parametrize("torn", ["", '{"name": "x", "val', "x" * 10_000])
def test_jsonl_appends_on_resume_and_cuts_a_torn_line(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "job" / "events.jsonl"
    first = JsonlMonitor(Section(str(tmp_path)))
    first.write([Event("a", 1.0, 1, 0.0)])
    first.close()
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [event.step for event in read_events(path)] == [1]
    second = JsonlMonitor(Section(str(tmp_path)))
    second.write([Event("a", 2.0, 2, 0.0)])
    second.close()
    assert [(row["step"], row["value"]) for row in lines(path)] == [(1, 1.0), (2, 2.0)]


def test_a_file_that_is_one_torn_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "job" / "events.jsonl"
    path.parent.mkdir()
    path.write_text('{"name": ', encoding="utf-8")
    JsonlMonitor(Section(str(tmp_path))).close()
    assert path.read_text(encoding="utf-8") == ""


def test_an_empty_output_path_is_runs_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    JsonlMonitor(Section("", "mine")).close()
    assert (tmp_path / "runs" / "mine" / "events.jsonl").exists()


def test_tensorboard_writes_scalars_that_tensorboard_reads(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    monitor = TensorBoardMonitor(Section(str(tmp_path), "run"))
    assert isinstance(monitor, Monitor)
    monitor.write([Event("Train/Samples/lr", 0.5, 8, 100.0), Event("Train/Samples/lr", 0.25, 16, 101.0)])
    monitor.flush()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "run"))
    read.Reload()
    assert [(e.step, e.value, e.wall_time) for e in read.Scalars("Train/Samples/lr")] == [
        (8, 0.5, 100.0),
        (16, 0.25, 101.0),
    ]
    monitor.close()


def test_tensorboard_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingWheelError, match="pip install tensorboard"):
        TensorBoardMonitor(Section(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_events_go_to_every_enabled_sink(tmp_path: Path) -> None:
    config = {
        "memory": Section(),
        "jsonl_monitor": Section(str(tmp_path)),
        "tensorboard": Section(str(tmp_path), enabled=False),
    }
    manager: Any = FakeManager(MEMORY, *ENTRIES)
    master = MonitorMaster(config, manager=manager)
    assert sorted(master.monitors) == ["jsonl", "memory"]
    master.write_events([("loss", torch.tensor(1.5), 8), ("lr", 1, 8)])
    memory: Any = master.monitors["memory"]
    assert [event[:3] for event in memory.events] == [("loss", 1.5, 8), ("lr", 1.0, 8)]
    assert [row["name"] for row in lines(tmp_path / "job" / "events.jsonl")] == ["loss", "lr"]
    assert memory.calls == ["flush"]
    master.close()
    assert memory.calls == ["flush", "close"]
    assert not master.enabled
    master.write_events([("loss", 1.0, 9)])
    assert len(memory.events) == 2


def test_other_ranks_open_and_write_nothing(tmp_path: Path) -> None:
    manager: Any = FakeManager(*ENTRIES)
    master = MonitorMaster({"jsonl_monitor": Section(str(tmp_path))}, rank=1, manager=manager)
    assert not master.enabled
    master.write_events([("loss", object(), 1)])
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_fails_is_disabled_with_one_warning_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    manager: Any = FakeManager(BROKEN, MEMORY)
    master = MonitorMaster({"memory": Section(), "broken": Section()}, manager=manager)
    memory: Any = master.monitors["memory"]
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            master.write_events([("loss", 1.0, step)])
    assert [event.step for event in memory.events] == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "monitor broken failed in write and is disabled: OSError: no space left"
    ]
    assert list(master.monitors) == ["memory"]


def test_two_sinks_of_one_name_are_both_kept() -> None:
    manager: Any = FakeManager(MEMORY, MEMORY)
    master = MonitorMaster({"memory": Section()}, manager=manager)
    assert list(master.monitors) == ["memory", "memory (wheel:name)"]


def test_a_sink_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("in the way", encoding="utf-8")
    manager: Any = FakeManager(*ENTRIES)
    with pytest.raises(OSError, match="job"):
        MonitorMaster({"jsonl_monitor": Section(str(tmp_path))}, manager=manager)


def test_the_installed_plugins_are_used_by_default(tmp_path: Path) -> None:
    master = MonitorMaster({"jsonl_monitor": Section(str(tmp_path))})
    assert list(master.monitors) == ["jsonl"]
    master.close()


def test_standard_events_have_deepspeeds_names() -> None:
    assert train_events(64, loss=2.0, lr=0.1, loss_scale=1024, grad_norm=None) == [
        ("Train/Samples/train_loss", 2.0, 64),
        ("Train/Samples/lr", 0.1, 64),
        ("Train/Samples/loss_scale", 1024.0, 64),
    ]
    assert train_events(1, grad_norm=0.5) == [("Train/Samples/grad_norm", 0.5, 1)]
    assert elapsed_ms("backward") == "Train/Samples/elapsed_time_ms_backward"
    assert peak_memory_rank(peak_memory(12)) == 12
    assert peak_memory_rank("Train/Samples/lr") is None
