"""``ds config``: exit codes, plain and JSON output, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds_core.cli.config import app

runner = CliRunner()


@pytest.fixture
def good(tmp_path: Path) -> str:
    file = tmp_path / "good.json"
    file.write_text(
        '{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": "auto"},'
        ' "optimizer": {"type": "AdamW", "params": {"lr": 0.001}}}'
    )
    return str(file)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    file = tmp_path / "bad.json"
    file.write_text('{"train_batch_sise": 64, "fp16": {"enabled": 1}}')
    return str(file)


def test_check_solves_the_batch_for_a_world(good: str) -> None:
    result = runner.invoke(app, ["check", good, "--world", "4"])
    assert result.exit_code == 0
    assert result.stdout == ("good.json: ok, train_batch_size 64 = micro 4 x accumulation 4 x 4 data-parallel ranks\n")
    assert runner.invoke(app, ["check", good]).stdout == "good.json: ok\n"
    answer = json.loads(runner.invoke(app, ["check", good, "--world", "2", "--json"]).stdout)
    assert answer["ok"] is True
    assert answer["batch"]["gradient_accumulation_steps"] == 8


def test_a_bad_config_exits_with_2_and_one_message(bad: str) -> None:
    result = runner.invoke(app, ["check", bad])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ds config: train_batch_sise is not a known key")
    assert "fp16.enabled must be true or false, got 1" in result.stderr
    assert "Traceback" not in result.stderr
    answer = json.loads(runner.invoke(app, ["check", bad, "--json"]).stdout)
    assert (answer["ok"], answer["error"], len(answer["problems"])) == (False, "ConfigError", 3)


def test_a_world_that_does_not_divide_exits_with_2(good: str) -> None:
    result = runner.invoke(app, ["check", good, "--world", "3"])
    assert result.exit_code == 2
    assert "train_batch_size 64 (from good.json) is not a multiple of micro 4" in result.stderr


def test_explain_shows_every_value_with_its_origin(good: str) -> None:
    result = runner.invoke(app, ["explain", good, "--world", "4"])
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["train_batch_size"].split() == ["train_batch_size", "64", "from", "good.json"]
    assert "derived: train_batch_size 64 / (micro 4 x 4 data-parallel ranks)" in lines["gradient_accumulation_steps"]
    assert lines["bf16.enabled"].split(None, 2)[1:] == ["false", "auto: the default"]
    rows = json.loads(runner.invoke(app, ["explain", good, "--json"]).stdout)
    assert {"key": "optimizer.params.lr", "value": 0.001, "origin": "file", "detail": "good.json"} in rows


def test_diff(good: str, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"train_batch_size": 64, "optimizer": {"type": "Lion", "params": {"lr": 0.001}}}')
    result = runner.invoke(app, ["diff", good, str(other), "--world", "16"])
    assert result.exit_code == 0
    assert "optimizer.type" in result.stdout
    assert '"Lion" (from other.json)' in result.stdout
    assert "optimizer.params.lr" not in result.stdout
    assert runner.invoke(app, ["diff", good, good]).stdout == "no difference\n"
    rows = json.loads(runner.invoke(app, ["diff", good, str(other), "--world", "16", "--json"]).stdout)
    assert [row["right"]["value"] for row in rows if row["key"] == "optimizer.type"] == ["Lion"]


def test_schema_is_written(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    assert runner.invoke(app, ["schema", "--output", str(file)]).exit_code == 0
    assert "optimizer" in json.loads(file.read_text())["properties"]
    assert json.loads(runner.invoke(app, ["schema"]).stdout) == json.loads(file.read_text())
    assert runner.invoke(app, ["schema", "--output", str(tmp_path)]).exit_code == 2


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret.json"
    file.write_text('{"train_batch_size": 1, "optimizer": {"type": "Adam", "params": {"api_key": "s3cr3t"}}}')
    for arguments in (["explain", str(file)], ["explain", str(file), "--json"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0
        assert "***" in result.stdout
        assert "s3cr3t" not in result.stdout


def test_the_command_line_imports_no_torch(good: str) -> None:
    code = (
        "import sys\n"
        "from ds_core.cli import main\n"
        f"assert main(['config', 'explain', {good!r}, '--world', '4']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
