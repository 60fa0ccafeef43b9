from __future__ import annotations

from pathlib import Path

import pytest

from {{import}}.accelerator import {{class}}Accelerator
from {{import}}.probe import probe
from ds_core.accelerator import select
from ds_core.errors import AcceleratorError


def test_without_a_device_the_probe_says_why(tmp_path: Path) -> None:
    answer = probe(tmp_path)
    assert not answer.usable
    assert "{{key}}0" in answer.reason


def test_the_probe_counts_devices(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"{{key}}{index}").touch()
    answer = probe(tmp_path)
    assert answer.usable
    assert answer.device_count == 2


def test_asked_for_and_not_here_is_an_error_with_the_reason() -> None:
    if probe().usable:
        pytest.skip("the device is here")
    with pytest.raises(AcceleratorError, match="is the driver loaded"):
        select("{{short}}")


def test_it_answers_under_its_own_name() -> None:
    assert {{class}}Accelerator().name == "{{short}}"
