"""What the runtime does besides the numbers: order, memory, messages, shapes, data."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from staged_model import LENGTH, MICRO_BATCHES, ROWS, WIDTH, batches, loss_fn, make, settings, train
from torch import nn

import ds_core
from ds_core import comm
from ds_core.errors import ConfigError, EngineError
from ds_core.testing import run_ranks
from ds_pipeline import LayerSpec, PipelineModule, ScheduleError, StageError
from ds_pipeline.schedules import make_schedule, peaks, to_text

pytestmark = pytest.mark.ranks

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zbv", "dualpipev")


def engine_of(stages: int, **pipeline: Any) -> Any:
    """An engine of the plain model."""
    return ds_core.initialize(model=make("plain", stages), config=settings(pipeline=pipeline))[0]


class _Token:
    """Lives as long as the graph it is in."""


class _Kept(torch.autograd.Function):
    """The identity; its graph holds a token."""

    live: ClassVar[weakref.WeakSet[_Token]] = weakref.WeakSet()

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.token = _Token()
        _Kept.live.add(ctx.token)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Counted(nn.Module):
    """A layer of which every graph that is alive counts."""

    peak: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Kept.apply(self.linear(x))
        Counted.peak = max(Counted.peak, len(_Kept.live))
        return out


def order_and_graphs(name: str, micro_batches: int) -> tuple[list[str], int, int]:
    """Actions of this rank, and the most graphs that were alive: of a layer per stage, and as the runner counted."""
    stages = len(make_schedule(name, ranks=2, micro_batches=1).rank_of_stage)
    model = PipelineModule([LayerSpec(Counted) for _ in range(stages)], 2, loss_fn=lambda x, y: x.square().mean())
    config = settings(micro_batches, pipeline={"schedule": name})
    engine = ds_core.initialize(model=model, config=config)[0]
    seen: list[str] = []
    engine.runner.on_action = lambda action: seen.append(str(action))
    Counted.peak = 0
    x = torch.randn(3, WIDTH)
    engine.train_batch(iter([(x, x)] * micro_batches))
    engine.destroy()
    assert not _Kept.live
    return seen, Counted.peak, engine.runner.held_peak


def all_orders(micro_batches: int) -> list[Any]:
    """For every schedule."""
    return [order_and_graphs(name, micro_batches) for name in SCHEDULES]


def test_each_rank_does_its_row_and_holds_what_the_schedule_says() -> None:
    found = run_ranks(all_orders, 2, 6)
    for place, name in enumerate(SCHEDULES):
        schedule = make_schedule(name, ranks=2, micro_batches=6)
        for rank, (row, held) in enumerate(zip(schedule.rows, peaks(schedule), strict=True)):
            seen, graphs, counted = found[rank][place]
            assert seen == [str(action) for action in row]
            assert graphs == held.both
            assert counted == held.activations


def messages_of(stages: int, dynamic: bool) -> dict[str, tuple[int, int]]:
    """Calls and bytes this rank sent in the second step, by kind."""
    engine = engine_of(stages, dynamic_shape=dynamic)
    data = batches()
    engine.train_batch(data)
    comm.reset()
    engine.train_batch(data)
    rows = comm.report().select(op="send")
    engine.destroy()
    return {
        kind: (rows.select(scope=f"pipeline {kind}").calls, rows.select(scope=f"pipeline {kind}").bytes_sent)
        for kind in ("activations", "gradients", "shapes")
    }


def test_an_activation_and_a_gradient_go_over_each_boundary_for_each_micro_batch() -> None:
    each = (MICRO_BATCHES, MICRO_BATCHES * ROWS * LENGTH * WIDTH * 4)
    first, middle, last = run_ranks(messages_of, 3, 3, False)
    assert first == {"activations": each, "gradients": (0, 0), "shapes": (0, 0)}
    assert middle == {"activations": each, "gradients": each, "shapes": (0, 0)}
    assert last == {"activations": (0, 0), "gradients": each, "shapes": (0, 0)}


def test_dynamic_shapes_cost_two_small_messages_for_each_activation() -> None:
    first, last = run_ranks(messages_of, 2, 2, True)
    assert first["shapes"][0] == 2 * MICRO_BATCHES
    assert last["shapes"] == (0, 0)


def growing(lengths: list[int]) -> Iterator[Any]:
    """A micro-batch of each length."""
    for length in lengths:
        yield next(batches(length=length))


def losses_of_lengths(lengths: list[list[int]], reset: bool, stages: int, **pipeline: Any) -> list[float]:
    """A step for each row of lengths."""
    engine = engine_of(stages, **pipeline)
    losses = []
    for row in lengths:
        losses.append(float(engine.train_batch(growing(row))))
        if reset:
            engine.reset_activation_shape()
    engine.destroy()
    return losses


def test_shapes_may_change_with_every_micro_batch_or_between_steps() -> None:
    mixed, rising = [[2, 5, 3, 2], [4, 4, 1, 2]], [[2] * 4, [5] * 4]
    expected = run_ranks(losses_of_lengths, 1, mixed, False, 1)[0]
    dynamic = run_ranks(losses_of_lengths, 2, mixed, False, 2, dynamic_shape=True, schedule="interleaved")
    assert dynamic == [expected] * 2
    expected = run_ranks(losses_of_lengths, 1, rising, False, 1)[0]
    assert run_ranks(losses_of_lengths, 2, rising, True, 2) == [expected] * 2


def refused_shape() -> str:
    """The message for a shape that changed, on this rank."""
    engine = engine_of(2)
    with pytest.raises(StageError) as caught:
        engine.train_batch(growing([3, 5, 5, 5]))
    return str(caught.value)


def test_a_shape_that_changes_unasked_is_named() -> None:
    for message in run_ranks(refused_shape, 2):
        assert "stage 0 gave float32[2, 5, 12] for micro-batch 1, and float32[2, 3, 12] before" in message
        assert "pipeline.dynamic_shape" in message


def data_where_it_is_needed() -> tuple[float, Any, Any, bool]:
    """A step and evaluations on four stages, with data on the first and last only."""
    engine = engine_of(4)
    ends = engine.is_first_stage() or engine.is_last_stage()
    loss = float(engine.train_batch(batches() if ends else None))
    one = engine.eval_batch(batches(seed=1) if ends else None)
    each = engine.eval_batch(batches(seed=1) if ends else None, reduce_output=None)
    assert torch.equal(each.mean(), one)
    assert (engine.eval_batch(batches(seed=1) if ends else None, bcast_loss=False) is None) != engine.is_last_stage()
    none, logits = engine.eval_batch(
        batches(seed=1) if ends else None, compute_loss=False, return_logits=True, num_micro_batches=2
    )
    assert none is None
    assert logits is None if not engine.is_last_stage() else logits.shape[0] == 2 * ROWS
    engine.set_dataiterator(batches(seed=1) if ends else iter(()))
    assert torch.equal(engine.eval_batch(), one)
    engine.set_dataloader([next(batches(seed=1))])
    repeated = engine.eval_batch(reduce_output=None)
    assert torch.equal(repeated, each[:1].expand(MICRO_BATCHES))
    engine.destroy()
    return loss, float(one), each.tolist(), ends


def test_only_the_first_and_the_last_stage_need_data() -> None:
    expected = run_ranks(train, 1, settings(), "plain", 1, 1)[0].losses
    found = run_ranks(data_where_it_is_needed, 4)
    assert [row[0] for row in found] == expected * 4
    assert len({row[1] for row in found}) == 1


def changed_batch_size(stages: int) -> list[float]:
    """Steps of four, two and four micro-batches, with batches made by a function."""
    engine = engine_of(stages)
    engine.set_batch_fn(lambda batch: (batch["x"], batch["y"]))
    data = ({"x": x, "y": y} for x, y in batches())
    losses = [float(engine.train_batch(data))]
    for size in (2 * ROWS, 4 * ROWS):
        engine.set_train_batch_size(size)
        losses.append(float(engine.train_batch(data)))
    engine.destroy()
    return losses


def test_the_number_of_micro_batches_may_change_between_steps() -> None:
    assert run_ranks(changed_batch_size, 2, 2) == run_ranks(changed_batch_size, 1, 1) * 2


def refusals() -> None:
    """Everything that is refused with a word on what to do instead."""
    engine = engine_of(2)
    for call in (lambda: engine(torch.zeros(1)), lambda: engine.backward(torch.zeros(())), engine.step):
        with pytest.raises(EngineError, match=r"train_batch"):
            call()
    engine.destroy()
    with pytest.raises(ConfigError, match=r"zero_optimization.stage 3 .*pipeline.stages"):
        ds_core.initialize(model=make("plain", 2), config=settings(zero_optimization={"stage": 3}))
    with pytest.raises(ConfigError, match=r"pipeline.stages is 1, and the PipelineModule was made for 2"):
        ds_core.initialize(model=make("plain", 2), config=settings(pipeline={"stages": 1}))
    with pytest.raises(ScheduleError, match=r"'1f2b' is neither .* Did you mean '1f1b'"):
        ds_core.initialize(model=make("plain", 2), config=settings(pipeline={"schedule": "1f2b"}))


def test_what_cannot_be_is_refused() -> None:
    run_ranks(refusals, 2)


def from_a_file(path: str) -> list[str]:
    """What this rank does by a schedule from a file."""
    engine = engine_of(2, schedule=path)
    seen: list[str] = []
    engine.runner.on_action = lambda action: seen.append(str(action))
    engine.train_batch(batches())
    engine.destroy()
    return seen


def test_a_schedule_from_a_file_is_executed(tmp_path: Path) -> None:
    schedule = make_schedule("zb-h1", ranks=2, micro_batches=MICRO_BATCHES)
    path = tmp_path / "mine.txt"
    path.write_text(to_text(schedule), encoding="utf-8")
    found = run_ranks(from_a_file, 2, str(path))
    assert found == [[str(action) for action in row] for row in schedule.rows]


def test_alone_the_engine_may_be_driven_by_hand() -> None:
    engine = ds_core.initialize(model=make("plain"), config=settings(1))[0]
    x, y = next(batches())
    engine.backward(loss_fn(engine(x), y))
    engine.step()
    assert engine.global_steps == 1
    engine.destroy()
