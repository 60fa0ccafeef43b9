"""What programs find on an engine beside its methods: a throughput timer, its checkpoint engine, values of parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import ds_core
from ds_core.engine import _named_by
from ds_core.errors import CheckpointError, EngineError, PluginError
from ds_core.part import Part
from ds_core.utils.timer import ThroughputTimer

CONFIG = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
}
DATA = [(torch.ones(3) * index, torch.zeros(1)) for index in range(8)]


def make(**more: Any) -> Any:
    return ds_core.initialize(model=torch.nn.Linear(3, 1), config=CONFIG, **more)[0]


def step(engine: Any) -> None:
    for _ in range(2):
        engine.backward(engine(torch.ones(2, 3)).square().mean())
        engine.step()


def test_the_throughput_timer_counts_steps_once_it_was_asked_for() -> None:
    engine = make()
    step(engine)
    timer = engine.tput_timer
    assert isinstance(timer, ThroughputTimer)
    assert (timer.batch_size, timer.global_step_count) == (4, 0)
    for _ in range(4):
        step(engine)
    assert timer.global_step_count == 4
    assert timer.avg_samples_per_sec() > 0
    engine.set_train_batch_size(8)
    assert timer.batch_size == 8


def test_a_function_changes_every_batch_and_is_told_the_samplers_state() -> None:
    engine = make(training_data=DATA)
    told = []

    def double(batch: Any, state: dict[str, Any]) -> Any:
        told.append(state["samples_consumed"])
        return batch[0] * 2, batch[1]

    plain = sum(float(x.sum()) for x, _ in engine.training_dataloader)
    engine.set_data_post_process_func(double)
    assert sum(float(x.sum()) for x, _ in engine.training_dataloader) == 2 * plain
    assert told[:2] == [2, 4]
    with pytest.raises(EngineError, match="needs training_data="):
        make().set_data_post_process_func(double)


def test_the_checkpoint_engine_waits_and_reads_and_writes_no_pickle(tmp_path: Path) -> None:
    engine = make()
    found = engine.checkpoint_engine
    assert found.is_decoupled()
    assert [found.is_data_parallel_writer(rank) for rank in (0, 1)] == [True, False]
    engine.save_checkpoint(tmp_path, tag="a")
    assert found.commit("a")
    assert (tmp_path / "latest").read_text() == "a"
    torch.save({"weight": torch.arange(3.0), "steps": [1, (2, "x")]}, tmp_path / "file.pt")
    loaded = found.load(tmp_path / "file.pt")
    assert loaded["weight"].tolist() == [0, 1, 2]
    assert loaded["steps"] == [1, (2, "x")]
    with pytest.raises(CheckpointError, match="would write a pickle"):
        found.save({}, tmp_path / "other.pt")


class Counting(Part):
    name = "counting"

    def __init__(self) -> None:
        self.count = 0

    def engine_values(self) -> Mapping[str, Callable[[], Any]]:
        return {"steps_seen": lambda: self.count}


def test_a_value_of_a_part_is_that_of_the_moment_and_its_name_is_its_own() -> None:
    engine, part = make(), Counting()
    engine._values = _named_by([part], "engine_values", set())
    part.count = 3
    assert engine.steps_seen == 3
    with pytest.raises(PluginError, match=r"brings engine\.steps_seen, which the engine itself has"):
        _named_by([part], "engine_values", {"steps_seen"})
