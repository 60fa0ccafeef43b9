from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from ds_core.accelerator import Capability, select


def run(code: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("OPENBOX_AUTOLOAD", "DS_ACCELERATOR")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean | environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_taken_when_asked_for() -> None:
    code = "from ds_core.accelerator import select; print(select().id)"
    assert run(code, DS_ACCELERATOR="openbox") == "ds-accel-openbox:openbox"


def test_it_is_never_taken_by_itself() -> None:
    assert "openbox" not in run("from ds_core.accelerator import select; print(select().id)")


def test_installed_and_not_asked_for_it_leaves_torch_alone() -> None:
    code = "import torch, ds_core.plugins as p; p.manager(); print(torch._C._get_privateuse1_backend_name())"
    assert run(code) == "privateuseone"


def test_two_devices() -> None:
    accelerator = select("openbox")
    assert accelerator.device_count() == 2
    accelerator.set_device(1)
    try:
        assert str(accelerator.device()) == "openbox:1"
    finally:
        accelerator.set_device(0)
    assert accelerator.properties()["name"]


def test_events_measure_time() -> None:
    accelerator = select("openbox")
    assert accelerator.has(Capability.EVENTS)
    first, second = accelerator.event(), accelerator.event()
    first.record()
    second.record()
    assert first.elapsed_time(second) >= 0.0


def test_the_accelerator_is_short() -> None:
    spec = importlib.util.find_spec("ds_accel_openbox.accelerator")
    assert len(Path(spec.origin).read_text().splitlines()) < 150
