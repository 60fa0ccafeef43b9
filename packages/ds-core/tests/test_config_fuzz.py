"""Whatever a config holds, reading and resolving it ends in a `Config` or in a `ConfigError`."""

from __future__ import annotations

import base64
import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_core.config import Config, Facts, load, resolve
from ds_core.errors import ConfigError

EXAMPLES = int(os.environ.get("DS_CONFIG_EXAMPLES", "1000"))
"""Malformed configs per run over all tests here; 10000 is the full count."""

LINES = (Path(__file__).parent / "data" / "config_keys.txt").read_text().splitlines()
KEYS = [line for line in LINES if not line.startswith(("#", "@")) and "=" not in line]

BASE: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.999]}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
    "fp16": {"enabled": False, "loss_scale": 0},
    "bf16": {"enabled": True},
    "timers": {"throughput": {"enabled": True}},
    "checkpoint": {"tag_validation": "Warn"},
    "wandb": {"enabled": False},
    "zero_optimization": {"stage": 0},
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["auto", "true", "1", "5e8", "fp16", "", "\ud800", 10**400, -1, 0, 1e400])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
odd = st.sampled_from([object(), {1, 2}, b"bytes", 3j, Path("x"), (1, 2), {1: 2}, range(3), len])
known_names = st.sampled_from(KEYS).map(lambda key: key.rpartition(".")[2])
names = known_names | st.text(max_size=10) | known_names.map(lambda name: name[:-1] + "x")
worlds = st.integers(1, 9)


def must_be_config_or_error(source: Any, world: int = 2) -> str | None:
    """None when the config can be used, else the message, which names something and has no empty first line."""
    try:
        config = resolve(load(source, sections=()), Facts(world, world))
    except ConfigError as error:
        first = str(error).partition("\n")[0]
        assert first.strip(), error
        return str(error)
    assert isinstance(config, Config)
    json.dumps(config.to_dict(), allow_nan=True)
    list(config.rows())
    return None


def paths(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [prefix] if prefix else []
    for name, item in node.items() if isinstance(node, dict) else []:
        found += paths(item, (*prefix, name))
    return found


PATHS = paths(BASE)


@settings(max_examples=EXAMPLES * 3 // 10)
@given(st.lists(st.tuples(st.sampled_from(PATHS), values | odd), min_size=1, max_size=3), worlds)
def test_values_replaced(changes: list[tuple[tuple[Any, ...], Any]], world: int) -> None:
    config = copy.deepcopy(BASE)
    for path, value in changes:
        node: Any = config
        for name in path[:-1]:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[path[-1]] = value
    must_be_config_or_error(config, world)


@settings(max_examples=EXAMPLES * 2 // 10)
@given(st.sampled_from([path for path in PATHS if path[0] in BASE]), names, values)
def test_names_added_or_misspelt(path: tuple[Any, ...], name: str, value: Any) -> None:
    config = copy.deepcopy(BASE)
    node: Any = config
    for step in path:
        if isinstance(node[step], dict):
            node = node[step]
    node[name] = value
    must_be_config_or_error(config)


@settings(max_examples=EXAMPLES * 2 // 10)
@given(st.sampled_from(KEYS), values)
def test_every_key_with_any_value(key: str, value: Any) -> None:
    node: Any = value
    for name in reversed(key.split(".")):
        node = {name: node}
    message = must_be_config_or_error({"train_batch_size": 8, **node})
    assert message is None or "is not a known key" not in message or isinstance(value, dict)


@settings(max_examples=EXAMPLES // 10)
@given(st.dictionaries(names, values, max_size=4) | values | odd)
def test_anything_as_a_source(source: Any) -> None:
    must_be_config_or_error(source)


@settings(max_examples=EXAMPLES // 10)
@given(st.binary(max_size=60) | st.text(alphabet="{}[]:,\"\\#/*\n' abc1e.-tru", max_size=60).map(str.encode))
def test_any_text_as_base64(text: bytes) -> None:
    must_be_config_or_error(base64.b64encode(text).decode())


TEXT = json.dumps(BASE)


@settings(max_examples=EXAMPLES // 10)
@given(st.integers(0, len(TEXT) - 1), st.integers(0, 8), st.text(alphabet="{}[]:,\"\\#/\n' ab1e.-", max_size=4))
def test_a_damaged_file(tmp_path_factory: pytest.TempPathFactory, start: int, length: int, patch: str) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.json"
    file.write_text(TEXT[:start] + patch + TEXT[start + length :])
    must_be_config_or_error(file)


def test_the_base_is_good() -> None:
    assert must_be_config_or_error(BASE) is None
