"""What a launcher decides before anything starts: commands, environments, checks, messages. No process is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ds_core.errors import LaunchError
from ds_core.launch import LaunchSpec, LocalLauncher, RankFailure, RanksFailedError
from ds_core.launch.local import threads_of_each
from ds_core.launch.outcome import explain_exit, first_failure, read_failures, write_failures
from ds_core.launch.registry import ENTRIES


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text("")
    return str(path)


def test_one_machine_meets_on_loopback(script: str) -> None:
    words = LocalLauncher().command(LaunchSpec(script, ("--lr", "1"), nproc=2))
    assert words[:3] == [sys.executable, "-m", "ds_core.launch.agent"]
    assert "--rdzv-endpoint=127.0.0.1:0" in words
    assert words[words.index("--") + 1 :] == ["ds_core.launch.rank", script, "--lr", "1"]


def test_several_machines_meet_at_the_master() -> None:
    spec = LaunchSpec(
        "pkg.train", nproc=4, nnodes=2, node_rank=1, master_addr="10.0.0.1", master_port=29500, module=True
    )
    spec.validate()
    words = LocalLauncher().command(spec)
    expected = ["--nproc-per-node=4", "--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29500"]
    assert set(expected) <= set(words)
    assert words[-3:] == ["ds_core.launch.rank", "--module", "pkg.train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nproc": 0}, "--nproc must be at least 1, got 0"),
        ({"nnodes": 2, "node_rank": 2, "master_addr": "a", "master_port": 1}, "--node-rank 2 is outside --nnodes 2"),
        ({"nnodes": 2, "master_port": 1}, "an address the machines share, got 127.0.0.1"),
        ({"nnodes": 2, "master_addr": "a"}, "--master-port that is the same on every machine"),
        ({"master_port": 70000}, r"must be in 0\.\.65535, got 70000"),
        ({"script": "nowhere.py"}, "no script 'nowhere.py'"),
        ({"module": True, "no_python": True}, "exclude each other"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(script: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        LaunchSpec(**{"script": script, **changes}).validate()  # type: ignore[arg-type]


def test_the_environment_is_the_callers_plus_the_jobs(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = LaunchSpec(script, nproc=2, env={"A": "2"}, grace_s=9)
    made = LocalLauncher().environment(spec, {"A": "1", "RANK": "3", "OMP_NUM_THREADS": "5"})
    assert made["A"] == "2"
    assert made["OMP_NUM_THREADS"] == "5"
    assert "RANK" not in made
    assert made["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "9"
    assert capsys.readouterr().err == ""
    made = LocalLauncher().environment(spec, {})
    assert made["OMP_NUM_THREADS"] == str(threads_of_each(2))
    assert "OMP_NUM_THREADS" in capsys.readouterr().err


def failure(rank: int, code: int, time_s: float, error: str = "") -> RankFailure:
    return RankFailure(rank, rank, code, 100 + rank, error, "", time_s, "")


def test_the_first_failure_is_not_one_the_agent_stopped() -> None:
    failures = (failure(0, -15, 1.0), failure(1, 1, 3.0, "RuntimeError: peer"), failure(2, -9, 2.0))
    assert first_failure(failures).rank == 2
    error = RanksFailedError.of(failures, 4, "nowhere")
    assert error.exit_code == 137
    text = str(error)
    assert text.startswith("rank 2 of 4 was ended by signal 9 (SIGKILL)")
    assert "ranks that failed after it: 1" in text
    assert "the other 2 ranks were stopped" in text
    assert text.endswith("log: nowhere")


def test_failures_cross_to_the_launching_process(tmp_path: Path) -> None:
    failures = (failure(0, 3, 1.5, "ValueError: ü"),)
    write_failures(tmp_path / "f.json", failures)
    assert read_failures(tmp_path / "f.json") == failures
    assert read_failures(tmp_path / "none.json") == ()


def test_exit_codes_are_explained() -> None:
    assert explain_exit(3) == "exited with code 3"
    assert "out of memory" in explain_exit(-9)
    assert "/dev/shm" in explain_exit(-7)
    assert explain_exit(-99) == "was ended by signal 99"


def test_the_registry_and_the_launchers_import_no_torch() -> None:
    code = "import sys, ds_core.launch, ds_core.launch.registry, ds_core.launch.rank; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert [entry.name for entry in ENTRIES] == ["local", "pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm"]
