"""Every served config key does something: each has a test that sets it and observes the change.

The table at the end is compared with what the installed wheels serve, so a new key without an observation fails.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from observing import Model, build, changes_weights, ranked, train, wire

import ds_core
from ds_core.config import Facts, load, resolve
from ds_core.errors import AcceleratorError, BatchSizeError, ConfigError
from ds_core.testing import run_ranks


def batch_keys(tmp_path: Path) -> None:
    assert build(train_batch_size=12).get_batch_info() == (12, 3, 4)
    assert build(gradient_accumulation_steps=5).get_batch_info() == (15, 3, 5)
    assert build(train_micro_batch_size_per_gpu=7).get_batch_info() == (7, 7, 1)


def managed(tmp_path: Path) -> None:
    engine = build(gradient_accumulation_steps=3, managed_gradient_accumulation=False)
    engine.backward((engine(torch.ones(3, 6)) ** 2).mean())
    engine.step()
    assert engine.global_steps == 1


def lines(steps: int = 2, **config) -> list[str]:
    """What the engine logs at INFO."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("ds_core")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        train(build(**config), steps)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return records


def steps_per_print(tmp_path: Path) -> None:
    assert len([line for line in lines(4, steps_per_print=2) if line.startswith("step ")]) == 2
    assert not [line for line in lines(4) if line.startswith("step ")]


def dump_state(tmp_path: Path) -> None:
    assert any("gradient_clipping = 0.0" in line for line in lines(dump_state=True))


def breakdowns(tmp_path: Path) -> None:
    text = "\n".join(lines(steps_per_print=1, wall_clock_breakdown=True, memory_breakdown=True))
    assert "forward" in text
    assert "backward" in text
    assert "memory now" in text
    plain = "\n".join(lines(steps_per_print=1))
    assert " ms" not in plain
    assert "memory" not in plain


def throughput(tmp_path: Path) -> None:
    assert "samples/s" in "\n".join(lines(steps_per_print=1))
    assert "samples/s" not in "\n".join(lines(steps_per_print=1, timers={"throughput": {"enabled": False}}))


def throughput_synchronized(tmp_path: Path) -> None:
    def waits(synchronized: bool) -> int:
        engine = build(wall_clock_breakdown=True, timers={"throughput": {"synchronized": synchronized}})
        calls, real = [], engine.accelerator.synchronize
        engine.accelerator.synchronize = lambda index=None: calls.append(index) or real(index)
        try:
            train(engine, 1)
        finally:
            del engine.accelerator.synchronize
        return len(calls)

    assert waits(True) > 0
    assert waits(False) == 0


def log_level(tmp_path: Path) -> None:
    logger = logging.getLogger("ds_core")
    before = logger.level
    try:
        build(log_level="error")
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)


def vocabulary_size(tmp_path: Path) -> None:
    text: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: text.append(record.getMessage())
    logging.getLogger("ds_core").addHandler(handler)
    try:
        build(vocabulary_size=50257)
        assert any("50257" in line for line in text)
        text.clear()
        build(vocabulary_size=50304)
        assert not any("50304" in line for line in text)
    finally:
        logging.getLogger("ds_core").removeHandler(handler)


def data_parallel_size(tmp_path: Path) -> None:
    with pytest.raises(BatchSizeError, match="data_parallel_size 3"):
        build(data_parallel_size=3)
    build(data_parallel_size=1)


def accelerator(tmp_path: Path) -> None:
    assert build(accelerator="reference").accelerator.name == "reference"
    with pytest.raises((AcceleratorError, ConfigError)):
        build(accelerator="no-such-device")


def seed(tmp_path: Path) -> None:
    def draw(value: int | None) -> float:
        torch.manual_seed(77)
        build(**({} if value is None else {"seed": value}))
        return torch.rand(()).item()

    assert draw(5) == draw(5) != draw(6)


def drop_last(tmp_path: Path) -> None:
    def count(drop: bool) -> int:
        config = {"train_micro_batch_size_per_gpu": 4, "dataloader_drop_last": drop}
        data = list(torch.randn(10, 6))
        return len(ds_core.initialize(model=Model(), training_data=data, config=config)[2])

    assert (count(False), count(True)) == (3, 2)


def monitors(name: str, pattern: str) -> Callable[[Path], None]:
    def observe(tmp_path: Path) -> None:
        engine = build(**{name: {"enabled": True, "output_path": str(tmp_path / "out"), "job_name": "job"}})
        train(engine)
        engine.destroy()
        assert list((tmp_path / "out" / "job").rglob(pattern))
        other = build(**{name: {"enabled": False, "output_path": str(tmp_path / "off"), "job_name": "job"}})
        train(other)
        assert not (tmp_path / "off").exists()

    return observe


def jsonl(tmp_path: Path) -> None:
    monitors("jsonl_monitor", "events.jsonl")(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "out/job/events.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} >= {f"Train/Samples/{n}" for n in ("train_loss", "lr", "grad_norm")}


def scheduler(tmp_path: Path) -> None:
    section = {"type": "StepLR", "params": {"step_size": 1, "gamma": 0.5}}
    engine = build(scheduler=section)
    train(engine, 2)
    assert engine.get_lr() == [0.25]
    section["params"]["gamma"] = 0.1
    other = build(scheduler=section)
    train(other, 2)
    assert other.get_lr() == pytest.approx([0.01])


def optimizer(tmp_path: Path) -> None:
    changes_weights("optimizer", {"type": "SGD", "params": {"lr": 0.5}})
    changes_weights("optimizer", {"type": "AdamW", "params": {"lr": 1.0}})


def communication_data_type(tmp_path: Path) -> None:
    whole, half = wire(), wire(communication_data_type="bf16")
    assert half["all_reduce", "gradients"][1] * 2 == whole["all_reduce", "gradients"][1]


def allreduce_op(tmp_path: Path) -> None:
    mean, total = (run_ranks(ranked, 2, {"gradient_allreduce_op": op}, "weights")[0] for op in ("mean", "sum"))
    start = torch.cat([p.detach().view(-1) for p in Model().parameters()])
    torch.testing.assert_close(total - start, 2 * (mean - start))


def divisions(tmp_path: Path) -> None:
    fp16 = {"enabled": True, "loss_scale": 1.0}
    assert run_ranks(ranked, 2, {"fp16": fp16}, "overflow") == [False, False]
    assert run_ranks(ranked, 2, {"fp16": fp16, "prescale_gradients": True}, "overflow") == [True, True]
    assert run_ranks(ranked, 2, {"fp16": fp16, "gradient_predivide_factor": 2.0}, "overflow") == [True, True]


def untested_optimizer(tmp_path: Path) -> None:
    messages = run_ranks(_untested, 2)
    assert all("zero_allow_untested_optimizer" in message for message in messages)


def force_cpu_optimizer(tmp_path: Path) -> None:
    config = {"train_batch_size": 3, "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}

    def make(force: bool) -> None:
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ds_core.initialize(model=model, optimizer=optimizer, config={**config, "zero_force_ds_cpu_optimizer": force})

    make(False)
    with pytest.raises(ConfigError, match="zero_force_ds_cpu_optimizer"):
        make(True)


class _Odd(torch.optim.SGD):
    pass


def _untested() -> str:
    for allow in (True, False):
        config = {
            "train_micro_batch_size_per_gpu": 3,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": allow,
        }
        try:
            ds_core.initialize(model=Model(), optimizer=lambda groups: _Odd(groups, lr=0.1), config=config)
        except ConfigError as error:
            return str(error) if not allow else "refused although allowed"
    return "accepted although not allowed"


def comms_logger(tmp_path: Path) -> None:
    for result in run_ranks(_logged, 2):
        off, on, some, chatty, traced = result
        assert off == 0
        assert on > some > 0
        assert chatty > 0
        assert traced


def _logged() -> tuple:
    from ds_core import comm

    def count(**section) -> int:
        comm.configure(enabled=False)
        comm.reset_log()
        train(build(comms_logger=section), 1)
        summary = comm.log_summary(return_dict=True) or {}
        return sum(len(sizes) for sizes in summary.values())

    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("ds_core")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel("INFO")
    off = count(enabled=False)
    on = count(enabled=True)
    some = count(enabled=True, prof_all=False, prof_ops=["all_reduce"])
    records.clear()
    count(enabled=True, verbose=True)
    chatty = sum("all_reduce" in line for line in records)
    records.clear()
    count(enabled=True, verbose=True, debug=True)
    traced = any("reduce_bucket" in line or ".py" in line or "caller" in line for line in records)
    logger.removeHandler(handler)
    logger.setLevel(level)
    comm.configure(enabled=False)
    return off, on, some, chatty, traced


def aio(tmp_path: Path) -> None:
    """The same keys are observed one by one in ds-core's test_aio_config.py."""
    from ds_core.accelerator import HostAccelerator
    from ds_core.aio import aligned_empty, make_io
    from ds_core.aio.files import SystemCalls

    def moved(together: int = 1, **keys) -> list[set[tuple[int, int]]]:
        """Which (offset, size) met in the system call, when `together` must meet before they go on."""
        met: list[set[tuple[int, int]]] = []
        inside: set[tuple[int, int]] = set()
        barrier = threading.Barrier(together, action=lambda: met.append(set(inside)), timeout=30)

        class Met(SystemCalls):
            def write(self, fd: int, view: memoryview, offset: int) -> int:
                inside.add((offset, len(view)))
                barrier.wait()
                done = super().write(fd, view, offset)
                inside.remove((offset, len(view)))
                return done

        section = resolve(load({"train_batch_size": 1, "aio": {"queue_depth": 1, **keys}}), Facts(1, 1))["aio"]
        io = make_io(HostAccelerator(), section, calls=Met())
        io.write(aligned_empty(16384, torch.uint8).zero_(), tmp_path / "file", 0).wait()
        io.close()
        return met

    block = {"block_size": 4096}
    quarters = [(offset, 4096) for offset in range(0, 16384, 4096)]
    assert moved(block_size=8192) == [{(0, 8192)}, {(8192, 8192)}]
    assert moved(**block) == [{quarter} for quarter in quarters]
    assert moved(2, **block, intra_op_parallelism=2)[0] == {quarters[0], quarters[2]}
    assert moved(2, **block, queue_depth=2, overlap_events=False) == [set(quarters[:2]), set(quarters[2:])]
    with pytest.raises(ConfigError, match="use_gds"):
        moved(use_gds=True)


def single_submit(tmp_path: Path) -> None:
    """Each block is told to the kernel by a call of its own."""
    from ds_accel_cpu.accelerator import CpuAccelerator
    from ds_core.aio import aligned_empty

    def submissions(**keys) -> int:
        keys = {"block_size": 4096, "overlap_events": False, **keys}
        section = resolve(load({"train_batch_size": 1, "aio": keys}), Facts(1, 1))["aio"]
        io = CpuAccelerator().async_io(section)
        if io is None:
            pytest.skip("this kernel allows no io_uring, and threads have one call a block in any case")
        io.write(aligned_empty(32768, torch.uint8).zero_(), tmp_path / "file", 0).wait()
        (lane,) = io.figures()
        io.close()
        return lane.submissions

    assert (submissions(), submissions(single_submit=True)) == (1, 8)


OBSERVED: dict[str, Callable[[Path], None]] = {
    "aio.block_size": aio,
    "aio.queue_depth": aio,
    "aio.intra_op_parallelism": aio,
    "aio.overlap_events": aio,
    "aio.use_gds": aio,
    "aio.single_submit": single_submit,
    "train_batch_size": batch_keys,
    "train_micro_batch_size_per_gpu": batch_keys,
    "gradient_accumulation_steps": batch_keys,
    "managed_gradient_accumulation": managed,
    "steps_per_print": steps_per_print,
    "gradient_clipping": lambda tmp_path: changes_weights("gradient_clipping", 1e-3),
    "prescale_gradients": divisions,
    "gradient_predivide_factor": divisions,
    "gradient_allreduce_op": allreduce_op,
    "communication_data_type": communication_data_type,
    "zero_allow_untested_optimizer": untested_optimizer,
    "zero_force_ds_cpu_optimizer": force_cpu_optimizer,
    "dump_state": dump_state,
    "wall_clock_breakdown": breakdowns,
    "memory_breakdown": breakdowns,
    "dataloader_drop_last": drop_last,
    "log_level": log_level,
    "vocabulary_size": vocabulary_size,
    "data_parallel_size": data_parallel_size,
    "accelerator": accelerator,
    "seed": seed,
    "comms_logger.enabled": comms_logger,
    "comms_logger.verbose": comms_logger,
    "comms_logger.prof_all": comms_logger,
    "comms_logger.debug": comms_logger,
    "comms_logger.prof_ops": comms_logger,
    "jsonl_monitor.enabled": jsonl,
    "jsonl_monitor.output_path": jsonl,
    "jsonl_monitor.job_name": jsonl,
    "optimizer.type": optimizer,
    "optimizer.params": optimizer,
    "scheduler.type": scheduler,
    "scheduler.params": scheduler,
    "tensorboard.enabled": monitors("tensorboard", "events.out.tfevents*"),
    "tensorboard.output_path": monitors("tensorboard", "events.out.tfevents*"),
    "tensorboard.job_name": monitors("tensorboard", "events.out.tfevents*"),
    "timers.throughput.enabled": throughput,
    "timers.throughput.synchronized": throughput_synchronized,
}


ELSEWHERE = (
    "zero_optimization.",
    "checkpoint.",
    "bf16.",
    "fp16.",
    "data_types.",
    "torch_autocast.",
    "pipeline.",
    "expert_parallel.",
)
"""Sections whose keys are observed in test modules of their own."""


def test_every_served_key_has_an_observation():
    served = {row.key for row in resolve(load({"train_batch_size": 4}), Facts(1, 1)).rows()}
    assert {key for key in served if not key.startswith(ELSEWHERE)} == set(OBSERVED)


_DISTINCT = {id(observe): (key, observe) for key, observe in reversed(OBSERVED.items())}


@pytest.mark.parametrize("key", [key for key, _ in reversed(_DISTINCT.values())])
def test_setting_the_key_changes_what_is_observed(key, tmp_path):
    OBSERVED[key](tmp_path)
