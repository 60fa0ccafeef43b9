"""What a caller saves beside the engine's state comes back as it was, or is refused by name."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ds_core
from ds_core.checkpoint.storage import client_values
from ds_core.errors import CheckpointError
from ds_core.utils import zero_to_fp32

keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | st.sets(st.integers()),
    max_leaves=12,
)


def through_json(value):
    return client_values.decode(json.loads(json.dumps(client_values.encode(value))))


@given(values)
def test_plain_python_values_come_back_with_their_types(value):
    back = through_json(value)
    assert back == value
    assert type(back) is type(value)


def test_what_json_has_is_written_as_it_is():
    value = {"epoch": 1, "nested": {"a": [1, 2.5, None, "x", True]}}
    assert client_values.encode(value) == value


def test_a_dict_of_the_callers_own_may_have_the_mark():
    assert through_json({"$kind": "tensor", "x": (1,)}) == {"$kind": "tensor", "x": (1,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_tensors_come_back_with_bits_dtype_and_shape(dtype):
    for shape in ((), (0, 3), (2, 3)):
        value = (torch.arange(6)[: torch.Size(shape).numel()].reshape(shape) - 2).to(dtype)
        back = through_json({"t": value.t() if value.dim() == 2 else value})["t"]
        assert (back.dtype, back.shape) == (dtype, (value.t() if value.dim() == 2 else value).shape)
        assert torch.equal(back, value.t() if value.dim() == 2 else value)


def test_states_of_random_generators_go_on():
    state = through_json((random.getstate(), np.random.get_state(), torch.get_rng_state(), np.float32(2.5)))
    drawn = random.random(), np.random.rand(), torch.rand(())
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    assert (random.random(), np.random.rand(), torch.rand(())) == drawn
    assert state[3] == np.float32(2.5)


def test_large_tensors_are_refused_by_name():
    large = torch.empty(client_values.LIMIT_BYTES + 1, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"client_state\['a'\]\[1\] has 16777217 bytes"):
        client_values.encode({"a": [0, large]})


@pytest.mark.parametrize(
    "value",
    [
        {"$kind": "code"},
        {"$kind": []},
        {"$kind": "tuple"},
        {"$kind": "tensor", "dtype": "float32", "shape": [2], "data": "AAAA"},
        {"$kind": "tensor", "dtype": "float32", "shape": [-1, -1], "data": "AAAAAA=="},
        {"$kind": "array", "dtype": "|O", "shape": [1], "data": "AAAAAAAAAAA="},
        {"$kind": "set", "items": [[]]},
    ],
)
def test_what_was_never_written_is_refused(value):
    with pytest.raises(CheckpointError, match="not what was written"):
        client_values.decode({"x": [value]})


def test_an_engine_hands_them_back_and_tools_find_them(tmp_path):
    config = {"train_batch_size": 1, "optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 3}}
    engine = ds_core.initialize(model=nn.Linear(2, 1), config=config)[0]
    state = {"best": torch.tensor(0.5), "betas": (0.9, 0.99), "by step": {10: 1.5}}
    engine.save_checkpoint(tmp_path, tag="t", client_state=state)
    back = engine.load_checkpoint(tmp_path)[1]
    assert back == state
    assert isinstance(back["betas"], tuple)

    (file,) = zero_to_fp32.get_optim_files(tmp_path / "t")
    assert torch.load(file)["optimizer_state_dict"]["zero_stage"] == 3
    assert torch.load(zero_to_fp32.get_model_state_file(tmp_path / "t", 3)) == state
    with pytest.raises(CheckpointError, match=r"has no file mp_rank_00_model_states\.pt"):
        zero_to_fp32.get_model_state_file(tmp_path / "t", 1)
    assert [path.name for path in tmp_path.glob("t/*.pt")] == []
