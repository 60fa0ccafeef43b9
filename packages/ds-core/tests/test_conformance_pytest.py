"""The cases as items of pytest in a vendor's repository: one file, an outcome for what is filtered, strict lists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_wheel import environ, write_wheel

SUITE = """
from ds_core.testing.conformance import accelerator_suite

test_conformance = accelerator_suite("faulty", only=["random", "device/is_made"], xfail={xfail!r})
"""


def pytest_in(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-ra", "-W", "error", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_wheel(tmp_path / "site")


def test_one_file_is_enough_and_what_is_filtered_is_no_skip(tmp_path: Path, site: Path) -> None:
    (tmp_path / "test_conformance.py").write_text(SUITE.format(xfail=None))
    done = pytest_in(tmp_path, **environ(site))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed, 1 filtered in" in done.stdout
    assert "SKIPPED" not in done.stdout and "skipped" not in done.stdout
    assert "conformance of faulty" in done.stdout
    assert "filtered: 1 for want of 2 (devices)" in done.stdout


def test_a_fault_fails_its_item_with_the_promise_and_an_expected_one_does_not(tmp_path: Path, site: Path) -> None:
    (tmp_path / "xfail").write_text("# known\nrandom/dropout_repeats: bug 17\nrandom/stream_goes_on: bug 18\n")
    (tmp_path / "test_conformance.py").write_text(SUITE.format(xfail=str(tmp_path / "xfail")))
    done = pytest_in(tmp_path, **environ(site, "rng"))
    assert done.returncode == 1
    assert "1 xfailed" in done.stdout
    assert "contract  set_rng_state puts back what rng_state gave" in done.stdout
    assert "FAILED test_conformance.py::test_conformance[random/stream_goes_on]" in done.stdout
    assert "take it out of the file of expected failures" in done.stdout


def test_without_a_file_the_accelerator_is_named_on_the_command_line(tmp_path: Path) -> None:
    words = ("-p", "ds_core.testing.conformance.pytest_plugin", "--pyargs", "ds_core.testing.conformance.suite")
    done = pytest_in(tmp_path, *words, "-k", "device/is_made", "--accelerator", "reference", DS_PLUGINS_AUTOLOAD="0")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    done = pytest_in(tmp_path, *words, "-k", "device/is_made", DS_ACCELERATOR="")
    assert done.returncode == 1 and "which accelerator?" in done.stdout
