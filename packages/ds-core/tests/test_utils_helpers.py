"""Helpers that training scripts import beside the engine: tensors, norms, timers, logging, construction on a device."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from ds_core.errors import ConfigError, EngineError
from ds_core.utils import compiling, logs, norms, ranges, small, tensors, timer
from ds_core.utils.on_device import OnDevice


class Pair(NamedTuple):
    left: torch.Tensor
    right: int


def test_tensors_of_any_container_are_cloned_out_of_their_storage():
    whole = torch.arange(100.0)
    made = tensors.clone_tensors_for_torch_save({"a": [whole[:2], (whole[2:4], "x")], "b": Pair(whole[4:5], 3)})
    assert torch.equal(made["a"][0], whole[:2]) and made["a"][1][1] == "x"
    assert isinstance(made["b"], Pair) and made["b"].right == 3
    assert made["a"][0].untyped_storage().nbytes() == 8
    made["a"][0].zero_()
    assert whole[1] == 1


def test_moving_takes_what_the_criterion_says():
    item = [torch.ones(2), torch.ones(3, dtype=torch.int64)]
    moved = tensors.move_to_device(item, "meta", lambda tensor: tensor.is_floating_point())
    assert [tensor.device.type for tensor in moved] == ["meta", "cpu"]
    copied = tensors.copy_to_device(item, "cpu", lambda tensor: tensor.is_floating_point())
    assert copied[0] is not item[0] and copied[1] is item[1]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_clipping_is_torchs(norm_type):
    torch.manual_seed(0)
    left, right = nn.Linear(4, 3), nn.Linear(4, 3)
    right.load_state_dict(left.state_dict())
    x = torch.randn(5, 4)
    for module in (left, right):
        module(x).pow(2).sum().backward()
    wanted = nn.utils.clip_grad_norm_(right.parameters(), 0.5, norm_type)
    assert norms.get_grad_norm(left.parameters(), norm_type) == pytest.approx(float(wanted))
    torch.testing.assert_close(norms.clip_grad_norm_(left.parameters(), 0.5, norm_type), wanted)
    for mine, theirs in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_norms_of_parts_make_the_norm_of_the_whole():
    values = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert norms.get_global_norm([3.0, 4.0]) == 5.0
    assert norms.get_weight_norm(values) == pytest.approx(5.0)
    assert norms.clip_tensors_by_global_norm(values, 1.0, global_norm=5.0) == 5.0
    torch.testing.assert_close(torch.cat(values), torch.tensor([0.6, 0.8]), atol=1e-5, rtol=1e-5)


def test_timers_add_up_and_average():
    timers = timer.SynchronizedWallClockTimer()
    for _ in range(3):
        timers("forward").start()
        timers("forward").stop(record=True)
    assert timers.has_timer("forward") and not timers.has_timer("backward")
    assert timers("forward").mean() >= 0.0
    assert set(timers.get_mean(["forward", "backward"])) == {"forward"}
    assert timers("forward").elapsed() == 0.0
    with pytest.raises(EngineError, match="does not run"):
        timers("forward").stop()
    timers("forward").start()
    with pytest.raises(EngineError, match="runs already"):
        timers("forward").start()
    assert timer.NoopTimer()("anything").elapsed() == 0.0
    assert timer.trim_mean([1.0, 2.0, 3.0, 100.0, -100.0], 0.2) == 2.0


def test_throughput_counts_after_the_first_steps():
    lines: list[str] = []
    measured = timer.ThroughputTimer(
        SimpleNamespace(enabled=True, synchronized=False), 8, start_step=1, steps_per_output=2, logging_fn=lines.append
    )
    for _ in range(4):
        measured.start()
        measured.stop(global_step=True)
    assert measured.global_step_count == 4
    assert measured.avg_samples_per_sec() > 0
    assert len(lines) == 2
    off = timer.ThroughputTimer(SimpleNamespace(enabled=False), 8)
    off.start()
    off.stop(global_step=True)
    assert off.avg_samples_per_sec() == float("-inf")


def test_logging_once_by_level_and_as_json(caplog, tmp_path):
    with caplog.at_level(logging.INFO, logger="ds_core"):
        for _ in range(2):
            logs.log_dist_once("said once, a test says")
            logs.warning_once("warned once, a test says")
        logs.log_dist("for another rank", ranks=[7])
    assert [record.getMessage() for record in caplog.records] == [
        "[rank 0] said once, a test says",
        "[rank 0] warned once, a test says",
    ]
    logs.print_json_dist({"loss": 2}, ranks=[0], path=tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == {"loss": 2, "rank": 0}
    other = logging.getLogger("ds_core.a_test")
    logs.set_log_level_from_string("error", other)
    assert other.level == logging.ERROR
    with pytest.raises(ConfigError, match="one of debug, info"):
        logs.should_log_le("loud")


def test_construction_on_a_device_in_a_dtype():
    with OnDevice(dtype=torch.bfloat16, device="meta"):
        layer = nn.Linear(2, 2)
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
    with OnDevice(dtype=torch.bfloat16, enabled=False):
        assert nn.Linear(2, 2).weight.dtype == torch.float32


def test_odds_and_ends(tmp_path):
    small.set_random_seed(3)
    first = torch.rand(1)
    small.set_random_seed(3)
    assert torch.equal(torch.rand(1), first)
    small.ensure_directory_exists(tmp_path / "a" / "b" / "file")
    assert (tmp_path / "a" / "b").is_dir()
    assert small.call_to_str("send", 1, to="x") == "send(1, to='x')"
    parameter = nn.Parameter(torch.ones(2))
    assert small.DummyOptim([parameter]).param_groups == [{"params": [parameter]}]
    parameter.grad = torch.tensor([1.0, float("inf")])
    assert small.CheckOverflow([[parameter]]).has_overflow()
    parameter.grad = torch.ones(2)
    assert not small.CheckOverflow([[parameter]]).check()
    assert ranges.instrument_w_nvtx(lambda x: x + 1)(1) == 2
    assert compiling.required_torch_version(2.0) and not compiling.required_torch_version(max_version=1.9)
    assert compiling.is_compile_supported() and not compiling.is_compiling()
