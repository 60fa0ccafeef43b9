from __future__ import annotations

from pathlib import Path

import pytest

from {{import}}.plugin import ds_accelerators
from {{import}}.probe import probe
from ds_core.accelerator import select
from ds_core.errors import AcceleratorError

NODES = ("/dev/{{key}}[0-9]*",)
PRESENT = "json"  # any module that is there, for the backend


def test_without_its_torch_backend_the_probe_says_so() -> None:
    answer = probe("no_such_backend")
    assert not answer.usable
    assert "no_such_backend is not installed" in answer.reason


def test_without_a_device_the_probe_says_why(tmp_path: Path) -> None:
    answer = probe(PRESENT, NODES, tmp_path)
    assert not answer.usable
    assert "is the driver loaded" in answer.reason


def test_the_probe_counts_devices(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for index in range(2):
        (tmp_path / "dev" / f"{{key}}{index}").touch()
    answer = probe(PRESENT, NODES, tmp_path)
    assert answer.usable
    assert answer.device_count == 2


def test_asked_for_and_not_here_is_an_error_with_the_reason() -> None:
    answer = probe()
    if answer.usable:
        pytest.skip("the device is here")
    with pytest.raises(AcceleratorError, match="is installed but not usable here"):
        select("{{key}}")


def test_the_plugin_offers_it_under_its_name() -> None:
    (entry,) = ds_accelerators()
    assert entry.name == "{{key}}"
