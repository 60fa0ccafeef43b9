"""The JSON Schema for editors agrees with what the reader takes."""

from __future__ import annotations

from typing import Any

import pytest

from ds_core.config import json_schema
from ds_core.config.catalog import ENTRIES
from ds_core.config.registry import Registry
from ds_core.config.training import TrainingSection

SCHEMA = json_schema(())


def described(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """The property schema under a dotted key."""
    node = schema
    for name in key.split("."):
        options = [node, *node.get("anyOf", [])]
        options += [schema["$defs"][option["$ref"].removeprefix("#/$defs/")] for option in options if "$ref" in option]
        node = next(option["properties"][name] for option in options if name in option.get("properties", {}))
    return node


def test_every_known_top_level_key_is_there_and_no_other() -> None:
    registry = Registry.of(())
    assert set(SCHEMA["properties"]) == registry.known() | {"$schema"}
    assert SCHEMA["additionalProperties"] is False


def test_every_value_may_be_left_open() -> None:
    for key in ("gradient_clipping", "fp16", "fp16.enabled", "timers.throughput.enabled", "optimizer.params"):
        options = described(SCHEMA, key)["anyOf"]
        assert {"const": "auto"} in options, key
        assert {"type": "null"} in options, key


def test_types_limits_defaults_and_descriptions() -> None:
    steps = described(SCHEMA, "gradient_accumulation_steps")
    assert steps["anyOf"][0] == {"minimum": 1, "type": "integer"}
    assert described(SCHEMA, "gradient_clipping")["default"] == 1.0
    assert described(SCHEMA, "fp16.hysteresis")["description"] == "Overflows tolerated before the loss scale is halved."
    assert "fp16" in described(SCHEMA, "torch_autocast.dtype")["anyOf"][0]["enum"]
    assert described(SCHEMA, "bfloat16")["deprecated"] is True
    assert "not released yet" in described(SCHEMA, "elasticity")["description"]
    assert described(SCHEMA, "wandb.project") == {}


@pytest.mark.parametrize("name", sorted(TrainingSection.model_fields))
def test_every_scalar_is_documented(name: str) -> None:
    assert described(SCHEMA, name)["description"].endswith(".")


def test_every_field_of_every_section_is_documented() -> None:
    for name, definition in SCHEMA["$defs"].items():
        for field, value in definition["properties"].items():
            assert value.get("description"), f"{name}.{field}"


def test_references_resolve() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/$defs/") in SCHEMA["$defs"]
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(SCHEMA)


def test_installed_wheels_are_in_it() -> None:
    assert set(json_schema()["properties"]) >= set(ENTRIES)
