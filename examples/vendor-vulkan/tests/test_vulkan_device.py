from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ds_accel_vulkan.probe import missing, probe
from ds_core.accelerator import Capability, HostEvent, select


def run(code: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("environ", "id_"),
    [
        ({}, "ds-accel-vulkan:vulkan"),
        ({"DS_ACCELERATOR": "vulkan"}, "ds-accel-vulkan:vulkan"),
        ({"DS_ACCELERATOR": "cpu"}, "ds-accel-cpu:cpu"),
    ],
)
def test_it_wins_by_priority_and_loses_to_a_name(environ: dict[str, str], id_: str) -> None:
    assert run("from ds_core.accelerator import select; print(select().id)", **environ) == id_


def test_the_probe_says_which_driver_is_missing() -> None:
    answer = probe({"VK_ICD_FILENAMES": "/nowhere/icd.json"})
    assert not answer.usable
    assert "/nowhere/icd.json" in answer.reason


def test_without_a_driver_the_probe_says_the_line_to_run(tmp_path: Path) -> None:
    assert "apt-get install mesa-vulkan-drivers" in missing({}, tmp_path)


def test_what_it_lacks_is_answered() -> None:
    vulkan = select("vulkan")
    assert not vulkan.has(Capability.STREAMS)
    assert vulkan.stream() is None
    assert isinstance(vulkan.event(), HostEvent)
    host = torch.ones(2)
    assert vulkan.pin(host) is host
    vulkan.synchronize()
    assert vulkan.autocast_dtypes() == {torch.float16}
    assert vulkan.comm_backend() == "gloo"


def test_it_measures_its_memory() -> None:
    vulkan = select("vulkan")
    before = vulkan.memory().allocated_bytes
    kept = torch.zeros(1 << 20, device=vulkan.device())
    after = vulkan.memory().allocated_bytes
    assert before is not None
    assert after is not None
    assert after - before >= kept.nbytes
    assert vulkan.properties()["name"]


def test_its_generator_repeats_from_a_saved_state() -> None:
    vulkan = select("vulkan")
    vulkan.manual_seed(7)
    state = vulkan.rng_state()
    drawn = torch.rand(5, device=vulkan.device()).cpu()
    vulkan.set_rng_state(state)
    assert torch.equal(torch.rand(5, device=vulkan.device()).cpu(), drawn)


def test_the_wheel_is_short() -> None:
    spec = importlib.util.find_spec("ds_accel_vulkan")
    modules = Path(spec.origin).parent.glob("*.py")
    assert sum(len(module.read_text().splitlines()) for module in modules) < 150
