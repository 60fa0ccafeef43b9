"""The ``pipeline`` section."""

from __future__ import annotations

from typing import Any

import pytest

from ds_core.config import Facts, load, resolve
from ds_core.errors import ConfigError


def section(**pipeline: Any) -> Any:
    """The section of a job of four ranks."""
    config = {"train_batch_size": 8, "pipeline": pipeline}
    return resolve(load(config), Facts(world_size=4))["pipeline"]


def test_what_is_left_open_is_left_to_the_model() -> None:
    found = section(stages="auto")
    assert (found.stages, found.partition, found.schedule, found.stages_per_rank) == (None, "best", "1f1b", None)
    assert section(stages=2, partition=[0, 3, 5]).partition == [0, 3, 5]


def test_keys_that_divide_activations_over_a_tensor_axis_ask_for_nothing() -> None:
    section(pipe_partitioned=True, grad_partitioned=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pipeline": {"stages": 0}}, "pipeline.stages"),
        ({"pipeline": {"schedul": "1f1b"}}, "Did you mean 'schedule'"),
        ({"pipeline": {"stages": 2}, "zero_optimization": {"stage": 3}}, r"stage 3 cannot .* \(pipeline.stages\)"),
        (
            {"pipeline": {"stages": 2}, "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            r"\(pipeline.stages\)",
        ),
    ],
)
def test_what_cannot_be_served_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(load({"train_batch_size": 8, **config}), Facts(world_size=4))
