"""Every served config key does something: each has a test that sets it and observes the change.

The table at the end is compared with what the installed wheels serve, so a new key without an observation fails.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import ds_core
from ds_core.config import Facts, load, resolve
from ds_core.errors import AcceleratorError, BatchSizeError, ConfigError
from ds_core.testing import run_ranks


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.spare = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(2, 2)
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x: torch.Tensor, use_spare: bool = True) -> torch.Tensor:
        out = self.b(torch.tanh(self.a(x))) + self.shift
        return self.spare(out) if use_spare else out


def build(**config):
    base = {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
    }
    return ds_core.initialize(model=Model(), config={**base, **config})[0]


def train(engine, steps: int = 2, factor: float = 1.0) -> torch.Tensor:
    """Weights after some steps, flattened."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps * engine.gradient_accumulation_steps()):
        x = torch.randn(3, 6, generator=generator).to(engine.module.a.weight.dtype)
        engine.backward((engine(x).float() ** 2).mean() * factor)
        engine.step()
    return torch.cat([p.detach().float().view(-1) for p in engine.module.parameters()])


def after(steps: int = 2, factor: float = 1.0, **config) -> torch.Tensor:
    return train(build(**config), steps, factor)


def changes_weights(key: str, value, base: dict | None = None, **kwargs) -> None:
    assert not torch.equal(after(**(base or {}), **kwargs), after(**_set(base or {}, key, value), **kwargs))


def _set(base: dict, key: str, value) -> dict:
    head, *rest = key.split(".")
    if not rest:
        return {**base, head: value}
    return {**base, head: _set(dict(base.get(head, {})), ".".join(rest), value)}


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


def bf16_enabled(tmp_path: Path) -> None:
    assert build(bf16={"enabled": True}).module.a.weight.dtype == torch.bfloat16
    assert build().module.a.weight.dtype == torch.float32


def immediate_grad_update(tmp_path: Path) -> None:
    def dtype(flag: bool) -> torch.dtype:
        engine = build(bf16={"enabled": True, "immediate_grad_update": flag})
        engine.backward(engine(torch.ones(3, 6).bfloat16()).float().mean())
        return engine.module.a.weight.grad.dtype

    assert (dtype(False), dtype(True)) == (torch.bfloat16, torch.float32)


def check_grad_overflow(tmp_path: Path) -> None:
    def applied(flag: bool) -> bool:
        engine = build(bf16={"enabled": True, "check_grad_overflow": flag})
        train(engine, 1, factor=math.inf)
        return engine.was_step_applied()

    assert (applied(True), applied(False)) == (False, True)


def masters(section: str, flag: str) -> Callable[[Path], None]:
    def observe(tmp_path: Path) -> None:
        def dtypes(value: bool) -> set[torch.dtype]:
            engine = build(**{section: {"enabled": True, flag: value}})
            return {p.dtype for group in engine.optimizer.param_groups for p in group["params"]}

        assert dtypes(False) == {torch.float32}
        assert torch.float32 not in dtypes(True)

    return observe


def bf16_optimizer_states(tmp_path: Path) -> None:
    def dtypes(value: bool) -> set[torch.dtype]:
        bf16 = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": value}
        engine = build(bf16=bf16, optimizer={"type": "AdamW", "params": {"lr": 1e-3}})
        train(engine, 1)
        return {s["exp_avg"].dtype for s in engine.optimizer.state.values()}

    assert (dtypes(False), dtypes(True)) == ({torch.float32}, {torch.bfloat16})


def stochastic_rounding(tmp_path: Path) -> None:
    base = {
        "bf16": {"enabled": True, "bf16_master_weights_and_grads": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    }
    changes_weights("bf16.stochastic_rounding", True, base)


def fp16_scale_keys(tmp_path: Path) -> None:
    def scale(**fp16) -> float:
        return build(fp16={"enabled": True, **fp16}).optimizer.loss_scale

    assert (scale(), scale(initial_scale_power=3), scale(loss_scale=128.0)) == (65536.0, 8.0, 128.0)

    def scales(factors: list[float], **fp16) -> list[float]:
        engine = build(
            fp16={"enabled": True, "initial_scale_power": 2, **fp16}, optimizer={"type": "SGD", "params": {"lr": 0.0}}
        )
        seen = []
        for factor in factors:
            train(engine, 1, factor)
            seen.append(engine.optimizer.loss_scale)
        return seen

    assert scales([1, 1], loss_scale_window=1) == [8.0, 16.0]
    assert scales([math.inf], hysteresis=1) == [2.0]
    assert scales([math.inf], hysteresis=2) == [4.0]
    assert scales([math.inf, 1, math.inf], hysteresis=2) == [4.0, 4.0, 2.0]
    assert scales([math.inf, 1, math.inf], hysteresis=2, consecutive_hysteresis=True) == [4.0, 4.0, 4.0]
    assert scales([math.inf], hysteresis=1, min_loss_scale=4.0, initial_scale_power=3) == [4.0]


def auto_cast(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        build(fp16={"enabled": True})(torch.ones(3, 6))
    assert build(fp16={"enabled": True, "auto_cast": True})(torch.ones(3, 6)).dtype == torch.float16


def data_types(tmp_path: Path) -> None:
    assert build(data_types={"param_dtype": "bf16"}).module.a.weight.dtype == torch.bfloat16
    assert build(data_types={"buffer_dtype": "bf16"}).module.shift.dtype == torch.bfloat16
    engine = build(bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"})
    engine.backward(engine(torch.ones(3, 6).bfloat16()).float().mean())
    assert engine.module.a.weight.grad.dtype == torch.float32


def autocast(tmp_path: Path) -> None:
    def dtype(**section) -> torch.dtype:
        return build(torch_autocast=section)(torch.ones(3, 6)).dtype

    assert dtype(enabled=False) == torch.float32
    assert dtype(enabled=True) == torch.bfloat16
    assert dtype(enabled=True, dtype="float16") == torch.float16


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


def ranked(changes: dict, kind: str) -> object:
    """Runs on each rank: what the wire saw, or the weights."""
    from ds_core import comm

    comm.reset()
    engine = build(**changes)
    if kind == "weights":
        return train(engine, 1)
    if kind == "overflow":
        # Gradients near the largest fp16 number: their sum over ranks overflows unless they are divided first.
        engine.backward(engine.module.b.bias.sum() * 40000.0 + engine(torch.zeros(3, 6).half()).float().sum() * 0)
        engine.step()
        return engine.was_step_applied()
    train(engine, 1)
    rows = [row for row in comm.report().rows if row.scope in ("gradients", "parameters")]
    return {(row.op, row.scope): (row.calls, row.bytes_payload) for row in rows}


def wire(**changes) -> dict:
    return run_ranks(ranked, 2, changes, "wire")[0]


def communication_data_type(tmp_path: Path) -> None:
    whole, half = wire(), wire(communication_data_type="bf16")
    assert half["all_reduce", "gradients"][1] * 2 == whole["all_reduce", "gradients"][1]


def lower_precision_safe_modules(tmp_path: Path) -> None:
    low = wire(torch_autocast={"enabled": True})
    none = wire(torch_autocast={"enabled": True, "lower_precision_safe_modules": []})
    assert low["all_reduce", "gradients"][1] * 2 == none["all_reduce", "gradients"][1]


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
    "bf16.enabled": bf16_enabled,
    "bf16.immediate_grad_update": immediate_grad_update,
    "bf16.check_grad_overflow": check_grad_overflow,
    "bf16.bf16_master_weights_and_grads": masters("bf16", "bf16_master_weights_and_grads"),
    "bf16.bf16_optimizer_states": bf16_optimizer_states,
    "bf16.stochastic_rounding": stochastic_rounding,
    "comms_logger.enabled": comms_logger,
    "comms_logger.verbose": comms_logger,
    "comms_logger.prof_all": comms_logger,
    "comms_logger.debug": comms_logger,
    "comms_logger.prof_ops": comms_logger,
    "data_types.grad_accum_dtype": data_types,
    "data_types.param_dtype": data_types,
    "data_types.buffer_dtype": data_types,
    "fp16.enabled": fp16_scale_keys,
    "fp16.auto_cast": auto_cast,
    "fp16.loss_scale": fp16_scale_keys,
    "fp16.initial_scale_power": fp16_scale_keys,
    "fp16.loss_scale_window": fp16_scale_keys,
    "fp16.hysteresis": fp16_scale_keys,
    "fp16.consecutive_hysteresis": fp16_scale_keys,
    "fp16.min_loss_scale": fp16_scale_keys,
    "fp16.fp16_master_weights_and_grads": masters("fp16", "fp16_master_weights_and_grads"),
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
    "torch_autocast.enabled": autocast,
    "torch_autocast.dtype": autocast,
    "torch_autocast.lower_precision_safe_modules": lower_precision_safe_modules,
}


ELSEWHERE = ("zero_optimization.", "checkpoint.")
"""Sections whose keys are observed in test modules of their own."""


def test_every_served_key_has_an_observation():
    served = {row.key for row in resolve(load({"train_batch_size": 4}), Facts(1, 1)).rows()}
    assert {key for key in served if not key.startswith(ELSEWHERE)} == set(OBSERVED)


_DISTINCT = {id(observe): (key, observe) for key, observe in reversed(OBSERVED.items())}


@pytest.mark.parametrize("key", [key for key, _ in reversed(_DISTINCT.values())])
def test_setting_the_key_changes_what_is_observed(key, tmp_path):
    OBSERVED[key](tmp_path)
