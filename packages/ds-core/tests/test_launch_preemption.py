"""`ds run` passes SIGTERM and SIGUSR1 on to the ranks, gives them time, and says with exit code 75 that they saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_core.launch.listening import children, is_running, listens
from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

DS_RUN = [sys.executable, "-c", "import sys; from ds_core.cli import main; sys.exit(main())", "run", "--nproc", "2"]
ENVIRON = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}

TRAINING = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from test_launch_preemption import train
train(".", int(sys.argv[1]), float(sys.argv[2]))
"""


def train(folder: str, steps: int, pause_s: float) -> list[float]:
    """Goes on with what is saved in the folder, up to step `steps`; the weights."""
    import torch

    import ds_core

    home = Path(folder)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
        "checkpoint": {"on_signal": {"folder": str(home / "saved")}},
        "seed": 3,
    }
    engine, *_ = ds_core.initialize(model=model, config=config)
    engine.load_checkpoint(home / "saved")
    data = torch.randn(1000, 2, 4, generator=torch.Generator().manual_seed(engine.global_rank))
    (home / f"pid{engine.global_rank}").write_text(str(os.getpid()))
    while engine.global_steps < steps:
        engine.backward(engine(data[engine.global_steps]).square().mean())
        engine.step()
        (home / f"step{engine.global_rank}").write_text(str(engine.global_steps))
        time.sleep(pause_s)
    engine.destroy()
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def wait_for(what: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


class Job:
    """One `ds run` of the training above in a folder."""

    def __init__(self, folder: Path, steps: int, pause_s: float, *flags: str, script: str = TRAINING) -> None:
        self.folder = folder
        (folder / "train.py").write_text(script)
        command = [*DS_RUN, *flags, "train.py", str(steps), str(pause_s)]
        self.process = subprocess.Popen(command, cwd=folder, env=ENVIRON, stderr=subprocess.PIPE, text=True)

    def training(self) -> None:
        wait_for(lambda: all(self.step(rank) >= 2 for rank in range(2)))

    def step(self, rank: int) -> int:
        path = self.folder / f"step{rank}"
        return int(path.read_text() or 0) if path.exists() else 0

    def pid(self, rank: int) -> int:
        return int((self.folder / f"pid{rank}").read_text())

    def end(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr


@pytest.mark.parametrize("who", ["ds run", "one rank"])
def test_a_job_that_is_stopped_and_started_again_ends_as_if_it_had_not_been(tmp_path: Path, who: str) -> None:
    steps = 300
    job = Job(tmp_path, steps, 0.1, "--max-restarts", "3")
    job.training()
    os.kill(job.process.pid if who == "ds run" else job.pid(1), signal.SIGTERM)
    code, stderr = job.end()
    assert code == 75, stderr
    assert "ds run: the ranks saved their state and stopped; start the job again to go on" in stderr
    assert "Traceback" not in stderr
    stopped = int((tmp_path / "saved" / "latest").read_text().removeprefix("global_step"))
    assert 2 <= stopped < steps
    (tmp_path / "fresh").mkdir()
    resumed = run_ranks(train, 2, str(tmp_path), stopped + 5, 0.0)
    assert resumed == run_ranks(train, 2, str(tmp_path / "fresh"), stopped + 5, 0.0)


def test_a_signal_that_does_not_stop_is_passed_on_and_training_ends_well(tmp_path: Path) -> None:
    job = Job(tmp_path, 30, 0.1)
    job.training()
    job.process.send_signal(signal.SIGUSR1)
    wait_for((tmp_path / "saved" / "latest").exists)
    code, stderr = job.end()
    assert code == 0, stderr
    assert job.step(0) == job.step(1) == 30


DEAF = """
import signal, time
from pathlib import Path
import os
Path(f"step{os.environ['RANK']}").write_text("9")
time.sleep(2)
"""


def test_ranks_that_do_not_handle_a_signal_are_spared_it(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 0.0, script=DEAF)
    job.training()
    job.process.send_signal(signal.SIGUSR1)
    code, stderr = job.end()
    assert code == 0, stderr
    assert "SIGUSR1 is not passed on to 2 of 2 ranks that do not handle it" in stderr


SAVING = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    Path(f"saving{os.environ['RANK']}").write_text("")
    time.sleep(float(sys.argv[2]))
    Path(f"saved{os.environ['RANK']}").write_text("")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
Path(f"step{os.environ['RANK']}").write_text("9")
time.sleep(60)
"""


def test_a_second_sigterm_does_not_cut_a_save_short(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 1.0, script=SAVING)
    job.training()
    job.process.send_signal(signal.SIGTERM)
    wait_for(lambda: len(list(tmp_path.glob("saving*"))) == 2)
    job.process.send_signal(signal.SIGTERM)
    code, stderr = job.end()
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM again: still waiting for the ranks" in stderr
    assert len(list(tmp_path.glob("saved*"))) == 2


def test_ranks_that_take_longer_than_the_grace_are_killed(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 50.0, "--grace", "1", script=SAVING)
    job.training()
    job.process.send_signal(signal.SIGTERM)
    code, stderr = job.end()
    assert code == 128 + signal.SIGTERM
    assert "2 of 2 ranks did not end in 1 s: killed" in stderr
    assert not list(tmp_path.glob("saved*"))


def test_proc_says_who_runs_and_who_listens() -> None:
    waiting = "import signal, sys, time; signal.signal(signal.SIGUSR1, print); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in children()
        assert [listens(process.pid, number) for number in (signal.SIGUSR1, signal.SIGUSR2)] == [True, False]
        assert is_running(process.pid)
        process.kill()
        wait_for(lambda: not is_running(process.pid))  # though nobody has waited for it
        assert process.pid not in children()
    finally:
        process.kill()
        process.communicate()
    assert not listens(process.pid, signal.SIGUSR1)
