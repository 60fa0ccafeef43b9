"""Reading a config: files, dicts, base64, HJSON, and everything that is none of them."""

from __future__ import annotations

import base64
import enum
import json
import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ds_core.config import Facts, load, resolve
from ds_core.errors import ConfigError

GOOD = {"train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {"lr": 0.001}}}


def batch_of(source: object) -> int:
    return resolve(load(source, sections=()), Facts(1, 1)).batch.train_batch_size  # type: ignore[arg-type]


def test_dict_path_and_base64_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(GOOD))
    text = base64.b64encode(json.dumps(GOOD).encode()).decode()
    url_safe = base64.urlsafe_b64encode(json.dumps(GOOD).encode()).decode()
    for source in (GOOD, file, str(file), text, url_safe):
        assert batch_of(source) == 8


def test_hjson_with_comments_and_trailing_commas(tmp_path: Path) -> None:
    file = tmp_path / "ds.hjson"
    file.write_text('{\n  # how many samples\n  train_batch_size: 8,\n  // a comment\n  "bf16": {"enabled": true,},\n}')
    config = resolve(load(file, sections=()), Facts(1, 1))
    assert (config.batch.train_batch_size, config["bf16"].enabled) == (8, True)


def test_strict_json_needs_no_hjson_package() -> None:
    code = (
        "import sys, ds_core.config as c\n"
        "import base64\n"
        "c.load(base64.b64encode(b'{\"train_batch_size\": 4}').decode(), sections=())\n"
        "assert 'hjson' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_the_package_imports_neither_pydantic_nor_torch() -> None:
    code = (
        "import sys, ds_core.config, ds_core.config.sections\n"
        "loaded = {'pydantic', 'torch', 'hjson', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from ds_core.config import Section\n"
        "assert 'pydantic' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("suffix", ["json", "hjson"])
def test_duplicate_keys_are_errors_at_every_level(tmp_path: Path, suffix: str) -> None:
    comment = "# hjson\n" if suffix == "hjson" else ""
    file = tmp_path / f"ds.{suffix}"
    file.write_text(
        comment + '{"train_batch_size": 8, "train_batch_size": 16,'
        ' "optimizer": {"type": "Adam", "params": {"lr": 1, "lr": 2}}, "fp16": {"enabled": true, "enabled": true}}'
    )
    with pytest.raises(ConfigError) as caught:
        load(file, sections=())
    text = str(caught.value)
    assert text.startswith("train_batch_size stands twice")
    assert "optimizer.params.lr stands twice" in text
    assert "fp16.enabled stands twice" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("[1, 2]", "must hold a JSON object, got [1, 2]"),
        ("3", "must hold a JSON object, got 3"),
        ("null", "must hold a JSON object, got null"),
        ('{"a": ', "neither JSON nor HJSON"),
        ('{"seed": NaN}', "seed must be a number, got NaN"),
        ('{"seed": 99999999999999999999}', "seed must fit 64 bits"),
        ('{"log_level": "\\ud800"}', "not Unicode"),
        ("[" * 100_000, "neither JSON nor HJSON|nested deeper"),
        ('{"optimizer": {"params": ' + '{"a": ' * 80 + "1" + "}" * 80 + "}}", "nested deeper than 64"),
    ],
)
def test_unusable_text_is_a_config_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, sections=())
    assert any(part in str(caught.value) for part in message.split("|")), caught.value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "empty string"),
        ("no/such/file.json", "does not exist, and the text is not base64"),
        ('{"train_batch_size": 8}', "is JSON text"),
        ("a\0b", "does not exist"),
        ("x" * 5000, "does not exist"),
        (base64.b64encode(b"[1,\n2]").decode(), "must hold a JSON object"),
        (3, "got int"),
        (b"{}", "got bytes"),
        ({"train_batch_size": object()}, "train_batch_size holds a builtins.object"),
        ({3: 4}, "the config has the key 3; keys are strings"),
        ({"optimizer": {"params": {"betas": {1, 2}}}}, "optimizer.params.betas holds a builtins.set"),
        ({"optimizer": {"params": {"lr": Fraction(10**400)}}}, "optimizer.params.lr"),
    ],
)
def test_unusable_sources_are_config_errors(source: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(source, sections=())  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_directory_and_binary_file_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load(str(tmp_path), sections=())
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, sections=())
    binary = tmp_path / "ds.json"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(binary, sections=())


def test_values_that_python_holds_in_other_types_are_taken() -> None:
    class Name(enum.Enum):
        ADAM = "Adam"

    raw = load(
        {
            "train_batch_size": np.int64(8),
            "gradient_clipping": np.float32(0.5),
            "dump_state": np.bool_(True),
            "optimizer": {"type": Name.ADAM, "params": {"betas": (0.9, 0.99)}},
            "tensorboard": {"output_path": Path("runs")},
        },
        sections=(),
    )
    config = resolve(raw, Facts(1, 1))
    assert config.training.gradient_clipping == 0.5
    assert config.training.dump_state is True
    assert config["optimizer"].params == {"betas": [0.9, 0.99]}
    assert config["tensorboard"].output_path == "runs"


def test_the_callers_dict_is_copied() -> None:
    given = {"train_batch_size": 8, "optimizer": {"type": "Adam", "params": {"lr": 0.1}}}
    config = resolve(load(given, sections=()), Facts(1, 1))
    given["optimizer"]["params"]["lr"] = 7  # type: ignore[index]
    assert config["optimizer"].params == {"lr": 0.1}


@pytest.mark.parametrize(("name", "shown"), [("a\nb", "a\\nb"), ("", '""'), (" x", '" x"'), ("k" * 99, '"kkk')])
def test_strange_names_keep_a_message_on_one_line(name: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: 1}, sections=())
    assert str(caught.value).startswith(shown)
    assert len(str(caught.value).splitlines()) == 1


def test_old_keys_are_forwarded_with_one_warning_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = resolve(load({"train_batch_size": 8, "bfloat16": {"enabled": True}}, sections=()), Facts(1, 1))
    assert config["bf16"].enabled is True
    assert [record.getMessage() for record in caplog.records] == [
        "the config dict: bfloat16 is an old key, read as bf16"
    ]
    with pytest.raises(ConfigError, match="bfloat16 and bf16 are set to different values"):
        load({"bfloat16": {"enabled": True}, "bf16": {"enabled": False}}, sections=())
