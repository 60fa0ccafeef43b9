"""Random changes of checkpoints, with hashes that fit: refused by CheckpointError, or all of it can be read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ds_core
from ds_core.checkpoint.sources import open_source
from ds_core.errors import CheckpointError
from ds_core.testing.forgery import Content, forge, forge_header, header
from ds_core.testing.saves import save

DATA = "rank-00000.safetensors"


@pytest.fixture
def step(tmp_path: Path) -> Path:
    save(tmp_path, "t", 1)
    return tmp_path / "t"


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-1, 70), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([2**31, 2**32, 2**62, 2**63, "../x", "/etc/passwd", "F64", "t0", "t1", DATA]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from places(item, (*path, name))


def changed(content: Content, data: st.DataObject) -> Content:
    """A manifest in which something is another value, under another name, or gone."""
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(content)) or [("new",)]))
        here: Any = content
        for name in path[:-1]:
            here = here[name]
        if data.draw(st.booleans()):
            here[path[-1]] = data.draw(ODD)
        elif isinstance(here, dict):
            here[data.draw(st.text(max_size=4))] = here.pop(path[-1], None)
        else:
            del here[path[-1]]
    return content


def consumed(root: Path) -> None:
    """Reads all that a checkpoint says it has."""
    source = open_source(root)
    source.verify()
    for key in source.keys():  # noqa: SIM118 - a source is no dict
        full = source.full(key)
        assert (tuple(full.shape), full.dtype) == (source.shape(key), source.dtype(key))
    source.close()


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_any_change_of_a_manifest_is_refused_or_can_be_read(step: Path, data: st.DataObject) -> None:
    whole = (step / "manifest.json").read_bytes()
    try:
        forge(step, changed(json.loads(whole), data))
        with contextlib.suppress(CheckpointError):
            consumed(step.parent)
    finally:
        (step / "manifest.json").write_bytes(whole)


@FUZZ
@given(data=st.data())
def test_any_change_of_a_header_is_refused_or_can_be_read(step: Path, data: st.DataObject) -> None:
    manifest, payload = (step / "manifest.json").read_bytes(), (step / DATA).read_bytes()
    try:
        found, rest = header(step)
        forge_header(step, json.dumps(changed(found, data)).encode(), rest)
        with contextlib.suppress(CheckpointError):
            consumed(step.parent)
    finally:
        (step / "manifest.json").write_bytes(manifest)
        (step / DATA).write_bytes(payload)


def engine():
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 20}},
    }
    rows = torch.utils.data.TensorDataset(torch.ones(8, 4))
    return ds_core.initialize(model=torch.nn.Linear(4, 3), training_data=rows, config=config)[0]


def everything(made) -> str:
    """All that a load could touch, comparable."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in made.optimizer.param_groups]
    weights = [p.tolist() for p in made.module.parameters()]
    return repr((weights, made.optimizer.state, groups, made.counters(), made.lr_scheduler.state_dict()))


def test_any_change_of_what_an_engine_saved_is_refused_or_can_be_loaded(tmp_path: Path) -> None:
    """Parts take values out of a checkpoint: of the wrong type, they are refused by CheckpointError as well."""
    made = engine()
    (rows,) = next(made._batches(None))
    made.backward(made(rows).square().mean())
    made.step()
    made.save_checkpoint(tmp_path, tag="t", client_state={"epoch": 1})
    made.wait_for_checkpoint()
    whole = (tmp_path / "t" / "manifest.json").read_bytes()

    @FUZZ
    @given(data=st.data())
    def attack(data: st.DataObject) -> None:
        content = json.loads(whole)
        part = data.draw(st.sampled_from(["values", "counters", "client_state", "tensors"]))
        content[part] = changed(content[part], data)
        forge(tmp_path / "t", content)
        before = everything(made)
        try:
            made.load_checkpoint(tmp_path)
        except CheckpointError as error:
            assert "and nothing was changed" not in str(error) or everything(made) == before

    attack()
