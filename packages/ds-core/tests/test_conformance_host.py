"""The kit on the host's own device: what must pass does, through the command line and every form of the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ds_core.testing.conformance import Case, Result, UnknownCaseError, all_cases, chosen, run
from ds_core.testing.conformance.document import read_report

ENVIRON = {"DS_PLUGINS_AUTOLOAD": "0", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def ds(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from ds_core.cli import main; sys.exit(main())", "accel", *words],
        env={**os.environ, **ENVIRON},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_listing_and_choosing_cases_imports_no_torch() -> None:
    code = (
        "import sys; from ds_core.testing.conformance import chosen; assert chosen(4); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_reference_passes_level_1_and_the_run_says_that_it_is_partial(tmp_path: Path) -> None:
    done = ds(
        "test", "reference", "--level", "1", "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "r.json").read_text())
    assert read_report(tmp_path / "r.json").results[0].case == told["results"][0]["case"]
    assert (told["schema"], told["accepted"], told["complete"], told["reached_level"]) == (1, True, False, 1)
    assert told["partial_because"][0].startswith("only levels up to 1 of 9 were run")
    assert told["totals"]["passed"] + told["totals"]["filtered"] == len(told["results"]) == len(chosen(1))
    streams = next(row for row in told["results"] if row["case"] == "abilities/streams")
    assert streams["outcome"] == "filtered"
    assert (streams["filter"]["kind"], streams["filter"]["missing"]) == ("capability", "streams")
    text = (tmp_path / "r.md").read_text()
    assert "| 1 | device |" in text and "partial: only levels up to 1" in text


@pytest.mark.ranks
def test_engine_collectives_zero_and_offload_pass_on_what_is_installed() -> None:
    only = ("training/engine.gpt", "training/accumulation", "collectives/all_reduce", "collectives/subgroups")
    more = ("zero/stage3.float32", "offload/parameters.stage3", "checkpoint/run_with_dropout_goes_on", "stress/threads")
    report = run("cpu", chosen(only=[*only, *more]), env={key: ENVIRON[key] for key in ENVIRON if key[:2] != "DS"})
    bad = {result.case: result.reason for result in report.results if result.outcome.is_bad}
    assert not bad
    assert report.is_accepted


def test_case_names_are_their_identity() -> None:
    names = [case.id for case in all_cases()]
    assert len(names) == len(set(names))
    assert all(case.contract for case in all_cases())


def test_choosing_by_level_by_group_and_by_case() -> None:
    assert {case.level for case in chosen(2)} == {0, 1, 2}
    assert {case.group for case in chosen(only=["random"])} == {"random"}
    assert [case.id for case in chosen(only=["device/is_made"])] == ["device/is_made"]
    with pytest.raises(UnknownCaseError, match=r"no case or group 'randon'. Did you mean 'random'"):
        chosen(only=["randon"])
    with pytest.raises(UnknownCaseError, match="--level must be 0 to 9, got 12"):
        chosen(12)
    with pytest.raises(UnknownCaseError, match="exclude each other"):
        chosen(1, ["random"])


def test_wrong_calls_end_with_2(tmp_path: Path) -> None:
    done = ds("test", "nothing-of-the-kind", "--only", "device")
    assert done.returncode == 2 and "is not installed" in done.stderr
    done = ds("test", "reference", "--only", "no_such_group")
    assert done.returncode == 2 and "no_such_group" in done.stderr
    (tmp_path / "xfail").write_text("device/is_mad: the moon\n")
    done = ds("test", "reference", "--xfail", str(tmp_path / "xfail"))
    assert done.returncode == 2 and "Did you mean 'device/is_made'" in done.stderr


def test_accelerators_are_listed_with_their_state() -> None:
    done = ds("list")
    assert done.returncode == 0, done.stderr
    assert "ds-core:reference" in done.stdout and "available" in done.stdout


def test_an_interrupted_run_is_partial_and_not_accepted() -> None:
    def interrupt(case: Case, result: Result) -> None:
        if case.id == "packaging/hook_api_is_stated":
            raise KeyboardInterrupt

    report = run("reference", chosen(only=["packaging"]), env=ENVIRON, told=interrupt)
    assert len(report.results) == 2 < len(report.cases)
    assert "it was interrupted" in report.partial
    assert not report.is_accepted and not report.is_complete


def test_the_lists_of_collectives_and_of_what_runs_them_are_one() -> None:
    from ds_core.testing.conformance.cases.collectives import NAMES
    from ds_core.testing.conformance.exchanges import EXCHANGES

    assert list(EXCHANGES) == list(NAMES)
