"""The comms logger measures only while it is on, and only what it was asked to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ds_core import comm
from ds_core.comm.state import comms_logger
from ds_core.errors import CommError
from ds_core.testing import run_ranks


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    comm.configure({"comms_logger": {}})
    comm.reset_log()
    yield
    comm.configure({"comms_logger": {}})
    comm.reset_log()


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    comm.configure({"comms_logger": settings})
    for _ in range(3):
        comm.all_reduce(torch.zeros(256))
    comm.all_reduce(torch.zeros(8), async_op=True).wait()
    comm.all_gather_into_tensor(torch.zeros(4), torch.zeros(2), prof=True)
    comm.broadcast(torch.zeros(2), 0, log_name="weights")
    summary = comm.log_summary(show_straggler=True, return_dict=True)
    return {
        "summary": summary,
        "count": comm.get_comm_operation_count(),
        "names": comm.get_logged_comm_ops(),
        "any": comm.has_comm_data(),
    }


def test_off_measures_nothing() -> None:
    result = run_ranks(measured, 2, {})[0]
    assert result == {"summary": {}, "count": 0, "names": [], "any": False}


def test_on_measures_every_operation() -> None:
    result = run_ranks(measured, 2, {"enabled": True})[1]
    assert result["names"] == ["all_gather", "all_reduce", "weights"]
    assert result["count"] == 6
    row = result["summary"]["all_reduce"][1024]
    assert row["count"] == 3
    assert row["total_ms"] > 0
    assert row["avg_ms"] == pytest.approx(row["total_ms"] / 3)
    assert row["algbw_gbps"] == pytest.approx(8e-9 * 3 * 1024 / (1e-3 * row["total_ms"]))
    assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"])  # 2 (N-1) / N is 1 for two ranks
    assert row["straggler_ms"] >= 0


def test_prof_ops_chooses_and_prof_adds() -> None:
    result = run_ranks(measured, 2, {"enabled": True, "prof_all": False, "prof_ops": ["broadcast"]})[0]
    assert result["names"] == ["all_gather", "weights"]


def named_caller() -> list[str]:
    comm.configure(enabled=True, debug=True)
    comm.all_reduce(torch.zeros(1))
    return comm.get_logged_comm_ops()


def test_debug_adds_the_caller() -> None:
    assert run_ranks(named_caller, 1)[0] == ["all_reduce | named_caller"]


def test_settings_come_from_the_config_then_the_arguments() -> None:
    comm.configure({"comms_logger": {"enabled": True, "verbose": True}}, verbose=False, prof_ops=["all_to_all_single"])
    assert comms_logger.settings.enabled
    assert not comms_logger.settings.verbose
    assert comms_logger.settings.prof_ops == ("all_to_all",)
    with pytest.raises(CommError, match=r"no 'enable'.*Did you mean 'enabled'"):
        comm.configure({"comms_logger": {"enable": True}})


def test_verbose_logs_each_call(caplog: pytest.LogCaptureFixture) -> None:
    comm.configure(enabled=True, verbose=True)
    with caplog.at_level(logging.INFO, logger="ds_core.comm"):
        comms_logger.add("all_reduce", 100, 100, 0.5)
    assert "all_reduce: 100 bytes in 500.000 ms" in caplog.text


def test_a_summary_shows_even_without_logging_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    comms_logger.add("all_reduce", 1000, 1000, 0.001)
    assert comm.log_summary() is None
    assert "all_reduce" in capsys.readouterr().err
    assert not dist.is_initialized()
