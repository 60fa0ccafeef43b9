"""A signal to one rank makes all save at the same step, and stop or go on; a resumed run is the same to the bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import ds_core
from ds_core import comm
from ds_core.checkpoint import latest_tag
from ds_core.errors import CheckpointError, ConfigError, EngineError, Preempted
from ds_core.signals import SignalWatch
from ds_core.testing import run_ranks

STEPS = 7


def model() -> nn.Module:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.3), nn.Linear(6, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.body(x) ** 2).mean()

    return Model()


def build(folder: object = None, **changes):
    rows = TensorDataset(torch.randn(60, 5, generator=torch.Generator().manual_seed(7)))
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        # SIGUSR1 belongs to the test ranks, which show their stacks on it.
        "checkpoint": {"on_signal": {"folder": None if folder is None else str(folder), "go_on": ["SIGUSR2"]}},
        "seed": 11,
        **changes,
    }
    return ds_core.initialize(model=model(), training_data=rows, config=config)[0]


def train(engine, until: int = STEPS, each: Callable[[int], None] | None = None) -> list[float]:
    """Losses of the steps still to take; `each` is called with the number of the step, after its forward."""
    losses = []
    while engine.global_steps < until:
        (rows,) = next(engine._batches(None))
        loss = engine(rows)
        losses.append(loss.item())
        engine.backward(loss)
        if each is not None:
            each(engine.global_steps + 1)
        engine.step()
    return losses


def weights(engine) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in engine.module.parameters()])


def at(step: int, number: signal.Signals, rank: int = 0) -> Callable[[int], None]:
    def strike(now: int) -> None:
        if now == step and comm.get_rank() == rank:
            os.kill(os.getpid(), number)

    return strike


def _interrupted_and_resumed(folder: str, rank: int) -> tuple:
    straight = build()
    losses = train(straight)
    first = build(folder)
    with pytest.raises(Preempted) as stopped:
        train(first, each=at(3, signal.SIGTERM, rank))
    steps = first.global_steps
    first.destroy()
    torch.manual_seed(999)
    second = build(folder)
    path, _ = second.load_checkpoint(folder)
    rest = train(second)
    second.destroy()
    same = torch.equal(weights(straight), weights(second)) and rest == losses[3:]
    return steps, stopped.value.code, stopped.value.signal, Path(path) == stopped.value.path, same


@pytest.mark.parametrize("rank", [0, 1])
def test_one_signalled_rank_stops_both_at_one_step_and_the_resumed_run_is_bit_equal(tmp_path, rank):
    found = run_ranks(_interrupted_and_resumed, 2, str(tmp_path), rank)
    assert found == [(3, 75, signal.SIGTERM, True, True)] * 2


def _going_on(folder: str) -> tuple:
    engine = build(folder)
    comm.reset()
    train(engine, each=at(4, signal.SIGUSR2, rank=1))
    counted = comm.report().select(scope="preemption")
    engine.destroy()
    return engine.global_steps, latest_tag(folder), counted.calls, counted.bytes_payload


def test_a_signal_that_does_not_stop_saves_and_training_goes_on_at_8_bytes_a_step(tmp_path):
    assert run_ranks(_going_on, 2, str(tmp_path)) == [(STEPS, "global_step4", STEPS, 8 * STEPS)] * 2


def _calls_without_signals() -> int:
    engine = build()
    comm.reset()
    train(engine, until=2)
    return comm.report().select(scope="preemption").calls


def test_nothing_is_sent_where_no_signal_is_watched():
    assert run_ranks(_calls_without_signals, 2) == [0, 0]


def _both(folder: str) -> str:
    engine = build(folder)
    try:
        strikes = (at(2, signal.SIGUSR2, 0), at(2, signal.SIGTERM, 1))
        train(engine, each=lambda step: [strike(step) for strike in strikes] and None)
    except Preempted as stopped:
        return stopped.signal.name
    finally:
        engine.destroy()
    return "went on"


def test_stopping_beats_going_on(tmp_path):
    assert run_ranks(_both, 2, str(tmp_path)) == ["SIGTERM", "SIGTERM"]


@pytest.fixture
def engine():
    made = build()
    yield made
    made.destroy()


def test_the_method_takes_names_numbers_and_what_else_to_keep(tmp_path, engine):
    engine.save_on_signal(
        tmp_path / "deep" / "down", stop=(), go_on=["usr2", signal.SIGHUP], client_state=lambda: {"epoch": 4}
    )
    for number in (signal.SIGUSR2, signal.SIGHUP):
        train(engine, engine.global_steps + 2, at(engine.global_steps + 1, number))
    assert latest_tag(tmp_path / "deep" / "down") == "global_step3"
    assert engine.load_checkpoint(tmp_path / "deep" / "down")[1] == {"epoch": 4}


def test_accumulated_micro_batches_are_finished_before_the_save(tmp_path):
    engine = build(tmp_path, gradient_accumulation_steps=3)
    with pytest.raises(Preempted):
        for micro in range(6):
            if micro == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            (rows,) = next(engine._batches(None))
            engine.backward(engine(rows))
            engine.step()
    engine.destroy()
    assert engine.micro_steps == 6
    assert latest_tag(tmp_path) == "global_step2"


def test_a_second_signal_while_saving_is_ignored_with_a_line(tmp_path, engine, caplog):
    def strike_again() -> dict:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    engine.save_on_signal(tmp_path, client_state=strike_again)
    with pytest.raises(Preempted):
        train(engine, each=at(1, signal.SIGTERM))
    assert "SIGTERM came while" in caplog.text
    assert f"SIGTERM: saved {tmp_path / 'global_step1'}; stopping" in caplog.text


def test_a_save_that_fails_raises_instead_of_stopping_quietly(tmp_path, engine):
    engine.save_on_signal(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    (tmp_path / "folder").write_text("not a folder")
    with pytest.raises(CheckpointError, match="folder"):
        train(engine, each=at(1, signal.SIGTERM))
    assert train(engine, until=2)


def test_handlers_that_were_there_are_called_and_come_back(tmp_path, engine):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    mine = signal.getsignal(signal.SIGUSR1)
    try:
        engine.save_on_signal(tmp_path)
        train(engine, until=1, each=at(1, signal.SIGUSR1))
        assert heard == [signal.SIGUSR1]
        assert latest_tag(tmp_path) == "global_step1"
        engine.destroy()
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_keyboard_interrupt_is_not_raised_where_ctrl_c_is_to_save(tmp_path, engine):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        engine.save_on_signal(tmp_path, stop=["SIGINT"])
        with pytest.raises(Preempted):
            train(engine, each=at(2, signal.SIGINT))
    finally:
        engine.destroy()
        signal.signal(signal.SIGINT, before)
    assert latest_tag(tmp_path) == "global_step2"


def test_watching_ends_with_the_method_too(tmp_path, engine):
    engine.save_on_signal(tmp_path)
    engine.save_on_signal(None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert train(engine, until=1)


def test_a_closed_watch_that_somebody_chains_to_ends_the_process_as_before():
    code = (
        "import os, signal\nfrom ds_core.signals import SignalWatch\n"
        "watch = SignalWatch([signal.SIGTERM])\ninner = signal.getsignal(signal.SIGTERM)\n"
        "signal.signal(signal.SIGTERM, lambda n, f: inner(n, f))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nassert watch.take() == [signal.SIGTERM]\n"
        "watch.close()\nos.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM


def test_another_thread_than_the_main_one_is_told_so(tmp_path, engine):
    told = []

    def run() -> None:
        try:
            engine.save_on_signal(tmp_path)
        except EngineError as error:
            told.append(str(error))

    thread = threading.Thread(target=run, name="worker-3")
    thread.start()
    thread.join()
    assert "main thread only, and this is 'worker-3'" in told[0]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"stop": ["SIGTREM"]}, r"checkpoint.on_signal.stop has 'SIGTREM'.*Did you mean 'SIGTERM'"),
        ({"go_on": ["SIGKILL"]}, r"checkpoint.on_signal.go_on has 'SIGKILL', which is no signal that can be handled"),
        ({"go_on": ["SIGTERM"]}, r"SIGTERM is in checkpoint.on_signal.stop and in checkpoint.on_signal.go_on"),
        ({"fodler": "x"}, r"fodler.*folder"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        build(checkpoint={"on_signal": section})


def test_uncaught_it_ends_the_process_quietly_with_its_code():
    code = (
        "import signal, pathlib\nfrom ds_core.errors import Preempted\n"
        "raise Preempted(pathlib.Path('x'), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (Preempted.exit_code, b"")


class Slow(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.01)
        return torch.full((2,), float(index))


def test_data_loading_processes_outlive_a_signal_to_every_process_of_the_job():
    from ds_core.data import DistributedLoader

    watch, others = SignalWatch([signal.SIGTERM]), set(multiprocessing.active_children())
    try:
        seen = 0
        for batch in DistributedLoader(Slow(), 2, num_local_io_workers=1):
            if not seen:
                workers = set(multiprocessing.active_children()) - others
                for worker in workers:
                    os.kill(worker.pid, signal.SIGTERM)
                assert workers
            seen += len(batch)
    finally:
        watch.close()
    assert seen == 8
