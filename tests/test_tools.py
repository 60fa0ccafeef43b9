from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

MODULE = """
from dataclasses import dataclass

COUNT = 0


class Small:
    def __init__(self) -> None:
        self.born = 1

    def later(self) -> None:
        self.born = 2
        self.late = 3


class Below(Small):
    def __init__(self) -> None:
        super().__init__()

    def again(self) -> None:
        self.born = 4


@dataclass
class Stated:
    value: int

    def change(self) -> None:
        self.value = 5


def count() -> None:
    global COUNT
    COUNT += isinstance(COUNT, int)
"""


def tool(name: str) -> ModuleType:
    """A program of ``tools/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    source = tmp_path / "packages" / "ds-x" / "src" / "ds_x"
    source.mkdir(parents=True)
    (source / "engine.py").write_text(MODULE)
    (source / "other.py").write_text(MODULE)
    return tmp_path


def test_shape_finds_attributes_born_late_and_no_others(tree: Path) -> None:
    found = tool("shape").measure_tree(tree)
    assert [(place.file, place.what) for place in found.born_outside_init] == [
        ("ds-x/src/ds_x/engine.py", "Small.late in later"),
        ("ds-x/src/ds_x/other.py", "Small.late in later"),
    ]


def test_shape_counts_type_checks_in_the_engine_only(tree: Path) -> None:
    found = tool("shape").measure_tree(tree)
    assert [place.file for place in found.engine_type_checks] == ["ds-x/src/ds_x/engine.py"]


def test_shape_counts_globals_and_sizes(tree: Path) -> None:
    found = tool("shape").measure_tree(tree)
    assert [place.what for place in found.globals] == ["COUNT", "COUNT"]
    biggest = found.classes[0]
    assert (biggest.name, biggest.line_count, biggest.method_count) == ("Small", 7, 2)
    assert found.module_count == 2


def test_a_new_package_is_under_the_import_contracts_at_once() -> None:
    check_imports = tool("check_imports")
    names = [*check_imports.packages(), "ds_brand_new"]
    made = check_imports.contracts(names, [{"name": "written"}])
    forbidden, independence, facade, written = made
    assert "ds_brand_new" in forbidden["forbidden_modules"]
    assert facade["forbidden_modules"] == ["deepspeed"]
    assert "ds_brand_new" in facade["source_modules"]
    assert "ds_brand_new" in independence["modules"]
    assert not {"ds_core", "deepspeed"} & set(independence["modules"])
    assert written == {"name": "written"}


def test_the_contracts_are_written_as_toml_reads_them() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    items = [{"name": "a", "modules": ["x", "y"], "allow_indirect_imports": True}]
    text = tool("check_imports").toml({"include_external_packages": True}, items)
    assert tomllib.loads(text) == {
        "tool": {"importlinter": {"include_external_packages": True, "contracts": items}},
    }
