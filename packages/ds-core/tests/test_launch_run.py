"""`ds run` starts real ranks, passes signals on, and says in one message which rank failed and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ds_core.launch.local import available_cores, threads_of_each

pytestmark = pytest.mark.ranks

DS_RUN = [sys.executable, "-c", "import sys; from ds_core.cli import main; sys.exit(main())", "run"]
ENVIRON = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}


def ds_run(folder: Path, *words: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DS_RUN, *words], cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=timeout_s, check=False
    )


REPORTING = """
import json, os, sys
from pathlib import Path
from ds_core import comm
import torch
comm.init_distributed()
total = torch.tensor([comm.get_rank() + 1.0])
comm.all_reduce(total)
def listening(pid):
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link))
        except OSError:
            pass
    return [line.split()[1].split(":")[0] for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in inodes]
Path(f"rank{comm.get_rank()}.json").write_text(json.dumps({
    "total": float(total), "world": comm.get_world_size(), "arguments": sys.argv[1:], "name": __name__,
    "file": __file__, "path": sys.path[0], "omp": os.environ["OMP_NUM_THREADS"], "extra": os.environ.get("EXTRA"),
    "listening": listening("self") + listening(os.getppid()),
}))
comm.destroy_process_group()
"""


def test_ranks_meet_on_loopback_and_the_script_runs_as_main(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "train.py").write_text(REPORTING)
    words = [
        "--num_gpus",
        "2",
        "--env",
        "EXTRA=a=b",
        "sub/train.py",
        "--lr",
        "0.1",
        "--nproc",
        "9",
        "--",
    ]
    done = ds_run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    cores, share = available_cores(), threads_of_each(2)
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["total"] == 3.0
        assert found["world"] == 2
        assert found["arguments"][:4] == ["--lr", "0.1", "--nproc", "9"]
        assert (found["name"], found["file"]) == ("__main__", "sub/train.py")
        assert found["path"] == str(tmp_path / "sub")
        assert found["extra"] == "a=b"
        assert found["omp"] == str(share)
        assert set(found["listening"]) == {"0100007F"}
    assert f"OMP_NUM_THREADS={share} ({cores} cores for 2 ranks)" in done.stderr


FAILING = """
import os, sys, time
if os.environ["RANK"] == "1":
    if sys.argv[1] == "raise":
        raise ValueError("the data is gone")
    os.kill(os.getpid(), 9)
time.sleep(60)
"""


def test_a_rank_that_raises_is_named_with_its_error_and_log(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(FAILING)
    started = time.monotonic()
    done = ds_run(tmp_path, "--nproc", "2", "--log-dir", "logs", "train.py", "raise")
    assert time.monotonic() - started < 45
    assert done.returncode == 1
    message = done.stderr[done.stderr.rindex("ds run:") :]
    assert message.startswith("ds run: rank 1 of 2 exited with code 1 (pid ")
    assert "  error: ValueError: the data is gone\n  the other 1 rank was stopped\n" in message
    log = Path(tmp_path, message.rpartition("log: ")[2].strip())
    assert "ValueError: the data is gone" in log.read_text()
    assert "ds_core" not in log.read_text()
    assert done.stderr.count("Traceback") == 1
    assert "torch/distributed" not in done.stderr


def test_a_killed_rank_is_explained_and_its_code_kept(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(FAILING)
    done = ds_run(tmp_path, "--nproc", "2", "train.py", "kill")
    assert done.returncode == 128 + 9
    assert "rank 1 of 2 was ended by signal 9 (SIGKILL): killed from outside, usually because" in done.stderr
    assert "Traceback" not in done.stderr


SAVING = """
import os, signal, sys, time
from pathlib import Path
rank = os.environ["RANK"]
def stop(number, frame):
    time.sleep(0.3)
    Path(f"saved{rank}").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
Path(f"ready{rank}").write_text(str(os.getpid()))
time.sleep(60)
"""


def started_run(folder: Path) -> subprocess.Popen[str]:
    (folder / "train.py").write_text(SAVING)
    process = subprocess.Popen(
        [*DS_RUN, "--nproc", "2", "train.py"], cwd=folder, env=ENVIRON, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(folder.glob("ready*"))) < 2:
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_ranks_once_and_they_may_save(tmp_path: Path, number: signal.Signals) -> None:
    process = started_run(tmp_path)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode == 128 + number
    assert [(tmp_path / f"saved{rank}").read_text() for rank in range(2)] == [number.name] * 2
    assert f"stopped by {number.name}" in stderr
    assert "Traceback" not in stderr


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_ranks_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    process = started_run(tmp_path)
    pids = [int((tmp_path / f"ready{rank}").read_text()) for rank in range(2)]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not all(gone(pid) for pid in pids):
        time.sleep(0.1)
    assert all(gone(pid) for pid in pids)
