"""Configs written for DeepSpeed come out in present names, and nothing is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ds_core.cli.migrate import command
from ds_core.config import Facts, load, resolve
from ds_core.config.migrate import Migration, migrate

OLD: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": "auto",
    "bfloat16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "cpu_offload": True,
        "stage3_max_live_parameters": 1e9,
        "contiguous_gradients": True,
        "overlap_comm": None,
        "reduce_bucket_size": "auto",
    },
    "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
    "wall_clock_breakdown": False,
    "amp": {"enabled": False},
}


def kinds(found: Migration) -> dict[str, str]:
    return {remark.key: remark.kind for remark in found.remarks}


def test_old_names_become_present_ones_and_open_values_stay_open() -> None:
    pytest.importorskip("ds_zero", reason="the section is that of ds-zero")
    found = migrate(OLD)
    assert found.config["bf16"] == {"enabled": True}
    zero = found.config["zero_optimization"]
    assert zero == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "max_live_parameters": 1e9,
        "reduce_bucket_size": "auto",
    }
    assert found.config["train_micro_batch_size_per_gpu"] == "auto"
    assert found.config["optimizer"]["params"] == {"lr": "auto"}
    assert "amp" not in found.config
    assert found.is_clean


def test_each_change_has_a_remark_under_the_old_name() -> None:
    pytest.importorskip("ds_zero", reason="the section is that of ds-zero")
    said = kinds(migrate(OLD))
    assert said["bfloat16"] == "renamed"
    assert said["zero_optimization.cpu_offload"] == "renamed"
    assert said["zero_optimization.contiguous_gradients"] == "taken out"
    assert said["amp"] == "taken out"
    assert said["zero_optimization.max_reuse_distance"] == "differs"


def test_what_comes_out_reads_as_what_went_in() -> None:
    pytest.importorskip("ds_zero", reason="the section is that of ds-zero")
    new = migrate(OLD)
    facts = Facts(world_size=2, data_parallel_size=2)
    before, after = (resolve(load(tree), facts) for tree in (OLD, new.config))
    gone = {remark.key for remark in new.remarks if remark.kind == "taken out"}
    old = [
        (row.key, row.value) for row in before.rows() if row.key.partition(".")[0] not in gone and row.key not in gone
    ]
    assert old == [(row.key, row.value) for row in after.rows()]
    assert migrate(new.config).config == new.config


@pytest.mark.parametrize(
    ("tree", "key", "kind"),
    [
        ({"wandb": {"enabled": True}}, "wandb", "not served"),
        ({"amp": {"enabled": True}}, "amp", "not served"),
        ({"train_batch_sise": 3}, "train_batch_sise", "wrong"),
        ({"fp16": {"enabled": "yes"}}, "fp16.enabled", "wrong"),
        ({"fp16": {"enabeld": True}}, "fp16.enabeld", "wrong"),
    ],
)
def test_what_cannot_be_is_named(tree: dict[str, Any], key: str, kind: str) -> None:
    found = migrate(tree)
    assert kinds(found)[key] == kind
    assert not found.is_clean
    if kind == "wrong":
        assert found.config == tree


def test_the_command_writes_the_config_and_says_the_rest(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    file, out = tmp_path / "old.json", tmp_path / "new.json"
    file.write_text(json.dumps({"train_batch_size": 4, "bfloat16": {"enabled": True}}))
    result = CliRunner().invoke(app, [str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text()) == {"train_batch_size": 4, "bf16": {"enabled": True}}
    assert "bfloat16 is bf16 now" in result.output
    file.write_text(json.dumps({"wandb": {"enabled": True}}))
    assert CliRunner().invoke(app, [str(file)]).exit_code == 1
    assert CliRunner().invoke(app, [str(tmp_path / "absent.json")]).exit_code == 2
