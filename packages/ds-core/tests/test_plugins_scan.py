from __future__ import annotations

import importlib.metadata
from pathlib import Path

from ds_core.plugins.scan import Candidate, scan


def wheel(site: Path, name: str, version: str, entries: str) -> None:
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: ds-core>=0.1\n"
    )
    info.joinpath("entry_points.txt").write_text(entries)


def scanned(*sites: Path) -> list[Candidate]:
    return scan(importlib.metadata.distributions(path=[str(site) for site in sites]))


PLUGIN = "[ds_core.plugins]\nfoo = foo.plugin\n"


def test_only_our_group_is_taken(tmp_path: Path) -> None:
    wheel(tmp_path, "Foo-Wheel", "1.0", "[console_scripts]\nfoo = foo:main\n" + PLUGIN + "bar=foo.bar\n")
    wheel(tmp_path, "other", "1.0", "[ds_core.plugins.more]\nother = other\n")
    found = scanned(tmp_path)
    assert [(c.id, c.value, c.version) for c in found] == [
        ("foo-wheel:foo", "foo.plugin", "1.0"),
        ("foo-wheel:bar", "foo.bar", "1.0"),
    ]
    assert found[0].requires == ("ds-core>=0.1",)
    assert found[0].location == str(tmp_path)


def test_the_same_version_twice_is_one_wheel(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        wheel(tmp_path / folder, "foo", "1.0", PLUGIN)
    (found,) = scanned(tmp_path / "a", tmp_path / "b")
    assert (found.location, found.duplicates) == (str(tmp_path / "a"), (str(tmp_path / "b"),))


def test_the_same_folder_twice_is_no_duplicate(tmp_path: Path) -> None:
    wheel(tmp_path / "a", "foo", "1.0", PLUGIN)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (found,) = scanned(tmp_path / "a", tmp_path / "a", tmp_path / "link")
    assert found.duplicates == ()


def test_another_version_is_hidden_by_the_first(tmp_path: Path) -> None:
    wheel(tmp_path / "a", "foo", "1.0", PLUGIN)
    wheel(tmp_path / "b", "Foo", "2.0", PLUGIN)
    used, hidden = scanned(tmp_path / "b", tmp_path / "a")
    assert (used.version, used.hidden_by) == ("2.0", "")
    assert (hidden.version, hidden.hidden_by) == ("1.0", str(tmp_path / "b"))
