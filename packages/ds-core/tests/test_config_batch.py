"""The batch sizes: any two or one imply the rest, and errors show the sum, the origins and what would work."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_core.config import Batch, Config, Facts, Origin, load, resolve
from ds_core.errors import BatchSizeError

TRAIN, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"


def resolved(ranks: int = 1, **sizes: object) -> Config:
    return resolve(load(sizes, sections=()), Facts(ranks, ranks))


@pytest.mark.parametrize(
    ("sizes", "ranks", "batch"),
    [
        ({TRAIN: 64, MICRO: 4, STEPS: 4}, 4, Batch(64, 4, 4)),
        ({TRAIN: 64, MICRO: 4}, 4, Batch(64, 4, 4)),
        ({TRAIN: 64, STEPS: 4}, 4, Batch(64, 4, 4)),
        ({MICRO: 4, STEPS: 4}, 4, Batch(64, 4, 4)),
        ({TRAIN: 64}, 4, Batch(64, 16, 1)),
        ({MICRO: 4}, 4, Batch(16, 4, 1)),
        ({TRAIN: "auto", MICRO: 4, STEPS: None}, 2, Batch(8, 4, 1)),
        ({TRAIN: 6.4e1}, 2, Batch(64, 32, 1)),
    ],
)
def test_two_or_one_imply_the_rest(sizes: dict[str, object], ranks: int, batch: Batch) -> None:
    config = resolved(ranks, **sizes)
    assert config.batch == batch
    training = config.training
    assert training.train_batch_size == batch.train_batch_size
    assert training.train_micro_batch_size_per_gpu == batch.micro_batch_size
    assert training.gradient_accumulation_steps == batch.accumulation_steps


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.data())
def test_every_two_sizes_give_back_the_third(micro: int, steps: int, ranks: int, data: st.DataObject) -> None:
    sizes = {TRAIN: micro * steps * ranks, MICRO: micro, STEPS: steps}
    sizes.pop(data.draw(st.sampled_from(list(sizes))))
    assert resolved(ranks, **sizes).batch == Batch(micro * steps * ranks, micro, steps)


def test_mismatch_names_the_file_and_the_sum(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}')
    raw = load(file, sections=()).override(STEPS, 8, Origin("argument", "gradient_accumulation_steps"))
    with pytest.raises(BatchSizeError) as caught:
        resolve(raw, Facts(1, 1))
    assert str(caught.value) == (
        "train_batch_size 64 (from ds.json) is not micro 4 (from ds.json) x accumulation 8"
        " (argument: gradient_accumulation_steps) x 1 data-parallel ranks = 32; set train_batch_size to 32, or"
        " gradient_accumulation_steps to 16, or train_micro_batch_size_per_gpu to 8"
    )


@pytest.mark.parametrize(
    ("sizes", "ranks", "message"),
    [
        ({TRAIN: 7}, 2, "is not a multiple of 2 data-parallel ranks; set train_batch_size to 6 or 8"),
        ({TRAIN: 1}, 2, "set train_batch_size to 2"),
        ({TRAIN: 10, MICRO: 4}, 1, "micro 4 (from the config dict) x 1 data-parallel ranks = 4; set train_batch_size to"
         " 8 or 12, or train_micro_batch_size_per_gpu to 2 or 5"),
        ({TRAIN: 10, STEPS: 4}, 1, "accumulation 4 (from the config dict) x 1 data-parallel ranks = 4; set"
         " train_batch_size to 8 or 12, or gradient_accumulation_steps to 2 or 5"),
        ({}, 2, "no batch size is set; set train_micro_batch_size_per_gpu"),
        ({STEPS: 4}, 2, "only gradient_accumulation_steps 4 (from the config dict) is set"),
        ({MICRO: 4, "data_parallel_size": 4}, 2, "data_parallel_size 4 (from the config dict) is not 2"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_divide(sizes: dict[str, object], ranks: int, message: str) -> None:
    with pytest.raises(BatchSizeError) as caught:
        resolved(ranks, **sizes)
    assert message in str(caught.value)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 50), st.integers(1, 12))
def test_what_a_message_suggests_works(train: int, micro: int, steps: int, ranks: int) -> None:
    sizes = {TRAIN: train, MICRO: micro, STEPS: steps}
    try:
        resolved(ranks, **sizes)
    except BatchSizeError as error:
        for fix in str(error).rpartition("; set ")[2].split(", or "):
            key, _, value = fix.partition(" to ")
            resolved(ranks, **{**sizes, key: int(value)})


def test_origins_say_given_default_or_derived() -> None:
    config = resolved(2, train_micro_batch_size_per_gpu=4)
    assert config.origin(MICRO) == Origin("file", "the config dict")
    assert config.origin(STEPS) == Origin("default")
    assert config.origin(TRAIN) == Origin("derived", "micro 4 x accumulation 1 x 2 data-parallel ranks")
    assert resolved(2, train_batch_size="auto", train_micro_batch_size_per_gpu=4).origin(TRAIN).kind == "auto"


def test_sizes_change_at_run_time() -> None:
    config = resolved(2, train_batch_size=16, train_micro_batch_size_per_gpu=4)
    larger = config.batch_for(train_batch_size=32)
    assert larger.batch == Batch(32, 4, 4)
    assert larger.origin(TRAIN).kind == "argument"
    assert larger.training.gradient_accumulation_steps == 4
    assert config.batch == Batch(16, 4, 2)
    assert config.batch_for(micro_batch_size=1).batch == Batch(4, 1, 2)
    assert config.batch_for(accumulation_steps=5).batch == Batch(40, 4, 5)
    assert config.batch_for(train_batch_size=32, accumulation_steps=1).batch == Batch(32, 16, 1)
    with pytest.raises(
        BatchSizeError, match=r"train_batch_size 12 \(argument: changed at run time\) is not a multiple"
    ):
        config.batch_for(train_batch_size=12)
    with pytest.raises(BatchSizeError, match="must be an integer of at least 1, got 0"):
        config.batch_for(micro_batch_size=0)


def test_the_batch_waits_for_the_mesh() -> None:
    waiting = resolve(load({TRAIN: 8}, sections=()), Facts(4))
    with pytest.raises(BatchSizeError, match="for_data_parallel"):
        _ = waiting.batch
    assert waiting.for_data_parallel(2).batch == Batch(8, 4, 1)
    with pytest.raises(BatchSizeError, match="3 data-parallel ranks"):
        waiting.for_data_parallel(3)
