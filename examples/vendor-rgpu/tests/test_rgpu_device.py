from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ds_accel_rgpu.probe import probe
from ds_core.accelerator import Capability, HostEvent, MemorySnapshot, select


def run(code: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("environ", "id_"),
    [
        ({}, "ds-accel-rgpu:rgpu"),
        ({"DS_ACCELERATOR": "rgpu"}, "ds-accel-rgpu:rgpu"),
        ({"DS_ACCELERATOR": "cpu"}, "ds-accel-cpu:cpu"),
    ],
)
def test_it_wins_by_priority_and_loses_to_a_name(environ: dict[str, str], id_: str) -> None:
    # Another wheel of a stranger may be beside it, and torch has room for one.
    code = "from ds_core.accelerator import select; print(select().id)"
    assert run(code, DS_PLUGINS_DISABLE="", **environ) == id_


def test_the_probe_says_how_to_name_a_server() -> None:
    assert "RGPU_OPSERVER must be HOST:PORT" in probe({}).reason


def test_the_probe_says_that_no_server_answers_and_how_to_start_one() -> None:
    answer = probe({"RGPU_OPSERVER": "127.0.0.1:1"})
    assert not answer.usable
    assert "rgpu-opserver --device cpu --port 1" in answer.reason


def test_it_can_nothing_and_all_is_answered() -> None:
    rgpu = select("rgpu")
    assert not any(rgpu.has(capability) for capability in Capability)
    rgpu.synchronize()
    rgpu.empty_cache()
    assert rgpu.memory() == MemorySnapshot()
    assert rgpu.reset_peak_memory() is False
    assert rgpu.stream() is None
    assert isinstance(rgpu.event(), HostEvent)
    host = torch.ones(2)
    assert rgpu.pin(host) is host
    rgpu.set_rng_state(rgpu.rng_state())
    assert torch.equal(rgpu.to_host(rgpu.to_device(host)), host)


def test_the_wheel_is_short() -> None:
    spec = importlib.util.find_spec("ds_accel_rgpu")
    modules = Path(spec.origin).parent.glob("*.py")
    assert sum(len(module.read_text().splitlines()) for module in modules) < 150
