"""Each fault on purpose is found by the case that should find it, and nothing a device does ends the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty_wheel import environ, write_wheel

from ds_core.testing.conformance import Outcome, Report, Result, chosen, run

BY_FAULT = {
    "rng": ("random/state_comes_back", "differ"),
    "ulp": ("ops/sgd_", "1 ulps away"),
    "aliasing": ("storage/set_to_a_storage", "differ"),
    "claims": ("abilities/pinned_memory", "RuntimeError"),
    "count": ("device/count_is_the_probes", "1"),
    "copies": ("defaults/copies", "another"),
    "silu": ("numerics/silu.float32", "differ"),
    "heavy import": ("packaging/import_is_light", "numpy"),
    "environment": ("packaging/import_changes_nothing", "SET_BY_A_VENDOR"),
}
"""The case that finds each fault, and a word of what it says."""

IN_ORDER = ("device/is_made", "random/seed_begins_a_stream", "ops/lion_", "numerics/gelu.float32", "probe/answers")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("site"))


def of(report: Report, case: str) -> Result:
    return next(result for result in report.results if result.case == case)


@pytest.fixture(scope="module")
def faulty(site: Path) -> Report:
    """One run of a device that has all these faults."""
    names = [case for case, _ in BY_FAULT.values()]
    return run("faulty", chosen(only=[*names, *IN_ORDER]), env=environ(site, *BY_FAULT))


@pytest.mark.parametrize("fault", BY_FAULT)
def test_a_fault_is_found_by_its_case(fault: str, faulty: Report) -> None:
    case, word = BY_FAULT[fault]
    result = of(faulty, case)
    assert result.outcome is Outcome.FAILED
    assert result.expected and result.contract
    assert word in result.got


def test_what_is_in_order_passes_beside_it(faulty: Report) -> None:
    assert {name: of(faulty, name).outcome for name in IN_ORDER} == dict.fromkeys(IN_ORDER, Outcome.PASSED)
    assert not faulty.is_accepted


def test_the_same_cases_pass_without_the_faults(site: Path) -> None:
    report = run("faulty", chosen(only=[case for case, _ in BY_FAULT.values()]), env=environ(site))
    wanted = {case: Outcome.PASSED for case, _ in BY_FAULT.values()} | {"abilities/pinned_memory": Outcome.FILTERED}
    assert {result.case: result.outcome for result in report.results} == wanted
    assert report.is_accepted and not report.is_complete


def test_crashes_and_hangs_are_outcomes_and_the_rest_goes_on(site: Path) -> None:
    only = ["device/properties_are_texts", "device/synchronize_returns", "random/state_is_a_host_tensor"]
    cases = chosen(only=[*only, "device/is_made", "random/seed_begins_a_stream"])
    report = run("faulty", cases, env=environ(site, "segfault", "exit", "hang"), timeout_s=5.0)
    died, ended, hung = (of(report, case) for case in only)
    assert died.outcome is Outcome.CRASHED
    assert "SIGSEGV" in died.reason and "in properties" in died.traceback
    assert (ended.outcome, ended.reason) == (Outcome.CRASHED, "the process ended with exit code 3")
    assert (hung.outcome, hung.reason) == (Outcome.TIMEOUT, "no end within 5 s")
    assert "in rng_state" in hung.traceback
    assert of(report, "device/is_made").outcome is Outcome.PASSED
    assert of(report, "random/seed_begins_a_stream").outcome is Outcome.PASSED
    assert report.totals()["crashed"] == 2 and not report.is_accepted


@pytest.mark.parametrize(("fault", "word"), [("probe raises", "libfaulty.so.2"), ("probe answers True", "True")])
def test_a_broken_probe_fails_its_case_and_filters_the_device(site: Path, fault: str, word: str) -> None:
    report = run("faulty", chosen(only=["probe/answers", "device/is_made", "random"]), env=environ(site, fault))
    assert of(report, "probe/answers").outcome is Outcome.FAILED
    assert word in of(report, "probe/answers").got
    filtered = [result.filter for result in report.results if result.outcome is Outcome.FILTERED]
    assert len(filtered) >= 10
    assert {reason.kind for reason in filtered if reason} == {"not usable"}
    assert not report.is_accepted


def test_a_device_that_is_not_here_is_not_accepted_though_nothing_fails(site: Path) -> None:
    report = run("faulty", chosen(only=["probe/answers", "device"]), env=environ(site, "not here"))
    assert report.totals()["failed"] == 0
    assert not report.is_accepted
    assert any("no device of this kind" in why for why in report.partial)


def test_a_crash_while_the_device_is_made_is_told_once(site: Path) -> None:
    cases = chosen(only=["probe/answers", "device", "random"])
    started = []
    report = run("faulty", cases, env=environ(site, "dies when made"), told=lambda case, result: started.append(case))
    crashed = [result for result in report.results if result.outcome is Outcome.CRASHED]
    assert [result.case for result in crashed] == ["device/is_made"]
    assert crashed[0].reason.startswith("while the device was probed or made: ")
    assert of(report, "random/seed_begins_a_stream").outcome is Outcome.FILTERED
    assert of(report, "probe/answers").outcome is Outcome.PASSED
    assert len(started) == len(cases)


def test_what_a_device_lacks_is_filtered_by_name(site: Path) -> None:
    only = ["storage", "numerics/silu.float64", "numerics/silu.float32", "device/tensors_move_between_devices"]
    report = run("faulty", chosen(only=only), env=environ(site, "modest"))
    assert report.is_accepted
    found = {r.case: (r.filter.kind, r.filter.missing) for r in report.results if r.filter is not None}
    assert found["storage/resize_and_back"] == ("capability", "storage aliasing")
    assert found["numerics/silu.float64"] == ("dtype", "float64")
    assert found["device/tensors_move_between_devices"] == ("devices", "2")
    assert of(report, "numerics/silu.float32").outcome is Outcome.PASSED


def test_expected_failures_are_strict(site: Path) -> None:
    expected = {"random/state_comes_back": "bug 17", "random/seed_begins_a_stream": "bug 18"}
    cases = chosen(only=[*expected, "random/stream_goes_on"])
    report = run("faulty", cases, env=environ(site, "rng"), expected=expected)
    assert of(report, "random/state_comes_back").outcome is Outcome.EXPECTED
    unexpected = of(report, "random/seed_begins_a_stream")
    assert unexpected.outcome is Outcome.UNEXPECTED
    assert "bug 18" in unexpected.reason
    assert not report.is_accepted
    report.results.remove(unexpected)
    report.cases = [case for case in report.cases if case.id != unexpected.case]
    assert report.is_accepted and report.totals()["expected failure"] == 1


def test_metadata_of_the_wheel_is_checked(tmp_path: Path) -> None:
    site = write_wheel(tmp_path / "site", requirement="")
    (site / "faulty_native.so").write_bytes(b"\x7fELF")
    record = site / "ds_accel_faulty-0.3.dist-info" / "RECORD"
    record.write_text(record.read_text() + "faulty_native.so,,\n")
    report = run("faulty", chosen(only=["packaging"]), env=environ(site))
    assert "ds-core" in of(report, "packaging/requires_core").got
    assert "faulty_native.so" in of(report, "packaging/tag_fits_what_is_inside").got
    failed = {result.case for result in report.results if result.outcome is Outcome.FAILED}
    assert failed == {"packaging/requires_core", "packaging/tag_fits_what_is_inside"}
