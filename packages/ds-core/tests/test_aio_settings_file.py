"""The aio section put into files: nothing else changes, and the old text is never lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_core.aio.settings_file import merge_section, write_section
from ds_core.config import Facts, load, resolve
from ds_core.errors import ConfigError

SECTION = {"block_size": 8192, "queue_depth": 3}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    config=st.dictionaries(st.text().filter(lambda key: key != "aio"), VALUES, max_size=4),
    indent=st.none() | st.just(1),
)
def test_every_other_key_stays_in_its_place(tmp_path_factory, config, indent):
    path = tmp_path_factory.mktemp("config") / "ds.json"
    text = json.dumps(config, indent=indent)
    path.write_text(text, encoding="utf-8")
    backup = merge_section(path, SECTION)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == [*config, "aio"]
    assert found == {**config, "aio": SECTION}
    assert backup.read_text(encoding="utf-8") == text


def test_keys_of_the_section_that_were_not_tuned_stay(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"aio": {"overlap_events": false, "thread_count": 4, "queue_depth": 9}, "train_batch_size": 2}')
    merge_section(path, SECTION)
    found = json.loads(path.read_text())
    assert found == {"aio": {"overlap_events": False, "queue_depth": 3, "block_size": 8192}, "train_batch_size": 2}
    assert resolve(load(str(path)), Facts(1, 1))["aio"].queue_depth == 3


def test_each_old_text_is_kept(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text("{}")
    names = []
    for depth in range(3):
        names.append(merge_section(path, {"queue_depth": depth}).name)
    assert names == ["ds.json.bak", "ds.json.bak1", "ds.json.bak2"]
    assert json.loads((tmp_path / "ds.json.bak2").read_text()) == {"aio": {"queue_depth": 1}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{a: 1}", "is not plain JSON"),
        ('{"a": 1, "a": 2}', "key 'a' appears twice"),
        ("[]", "must be a JSON object"),
        ('{"aio": 3}', "with an object under the key aio"),
    ],
)
def test_what_cannot_be_kept_whole_is_not_touched(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        merge_section(path, SECTION)
    assert [file.name for file in tmp_path.iterdir()] == ["ds.json"]
    assert path.read_text() == text


def test_permissions_stay(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text("{}")
    path.chmod(0o640)
    merge_section(path, SECTION)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_section_alone_and_never_replaces_one(tmp_path):
    path = tmp_path / "aio.json"
    write_section(path, SECTION)
    assert json.loads(path.read_text()) == {"aio": SECTION}
    with pytest.raises(ConfigError, match=r"aio\.json exists; merge into it with --config"):
        write_section(path, {})
    with pytest.raises(ConfigError, match="cannot be written"):
        write_section(tmp_path / "none" / "aio.json", SECTION)
