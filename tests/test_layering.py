from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CORE = "ds_core"
EVERY = {path.parent.name: path.parents[2] for path in sorted(ROOT.glob("packages/*/src/*/__init__.py"))}
FACADES = {"deepspeed"}
"""Packages that hold another project's names and lead them to ours; they are no plugins, and nothing imports them."""
PACKAGES = {name: path for name, path in EVERY.items() if name not in FACADES}
SIBLINGS = sorted(set(PACKAGES) - {CORE})
ENTRY_POINTS = "ds_core.plugins"
LIGHT_MODULES = ("ds_core", "ds_core.errors", "ds_core.hooks", "ds_core.plugins", "ds_core.config", "ds_core.cli")

HEAVY = {"torch", "numpy", "pydantic", "rich", "typer"}


def project(name: str) -> dict[str, object]:
    """The ``[project]`` table of a package."""
    table = tomllib.loads((EVERY[name] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(table, dict)
    return table


def modules(name: str) -> Iterator[Path]:
    """Every source file of a package."""
    yield from sorted((EVERY[name] / "src" / name).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names a piece of code imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def loaded_by(module: str) -> set[str]:
    """Modules a fresh interpreter holds after importing `module`."""
    code = f"import {module}, sys; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_the_import_name_is_the_wheel_name(name: str) -> None:
    assert PACKAGES[name].name == name.replace("_", "-") == project(name)["name"]


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_package_depends_on_core_and_on_no_sibling(name: str) -> None:
    requirements = project(name)["dependencies"]
    assert isinstance(requirements, list)
    ours = [re.split(r"[^\w-]", item)[0].replace("-", "_") for item in requirements]
    assert CORE in ours
    assert not set(ours) & set(SIBLINGS)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_no_package_imports_a_sibling(name: str) -> None:
    forbidden = {*SIBLINGS, *FACADES} - {name}
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in modules(name)
        for module in imported(ast.parse(path.read_text(encoding="utf-8")))
        if module.partition(".")[0] in forbidden
    ]
    assert found == []


@pytest.mark.parametrize("name", sorted(FACADES))
def test_a_facade_is_a_distribution_of_its_own_name_over_released_wheels(name: str) -> None:
    table = project(name)
    assert table["name"] == name
    assert EVERY[name].name == f"ds-{name}"
    assert "entry-points" not in table
    requirements = table["dependencies"]
    assert isinstance(requirements, list)
    ours = {re.split(r"[^\w-]", item)[0] for item in requirements if item.startswith("ds-")}
    assert ours == {"ds-core", "ds-zero"}
    loads = {
        module.partition(".")[0]
        for path in modules(name)
        for module in imported(ast.parse(path.read_text(encoding="utf-8")))
        if module.partition(".")[0] not in sys.stdlib_module_names
    }
    assert loads <= {name, "ds_core", "torch"}  # others are led to by name, when they are asked for


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_every_package_registers_a_light_plugin_module(name: str) -> None:
    entries = project(name)["entry-points"]
    assert isinstance(entries, dict)
    for reference in entries[ENTRY_POINTS].values():
        path = PACKAGES[name] / "src" / Path(*reference.split(".")).with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top = {
            module
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for module in imported(ast.Module(body=[node], type_ignores=[]))
        }
        others = {module for module in at_top if module.partition(".")[0] not in sys.stdlib_module_names}
        allowed = {"ds_core.hooks", "ds_core.errors"} | {module for module in others if module.startswith(f"{name}.")}
        assert others <= allowed, f"{path} imports {sorted(others - allowed)} at its top"


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_package_says_that_it_is_typed(name: str) -> None:
    assert (EVERY[name] / "src" / name / "py.typed").exists()


@pytest.mark.parametrize("module", [*sorted(EVERY), *(f"{name}.plugin" for name in SIBLINGS)])
def test_what_every_program_imports_is_light(module: str) -> None:
    assert not loaded_by(module) & HEAVY


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_what_the_command_line_needs_does_not_load_torch(module: str) -> None:
    assert "torch" not in loaded_by(module)


@pytest.mark.parametrize("name", SIBLINGS)
def test_with_one_plugin_kept_out_the_others_are_in_working_order(name: str) -> None:
    entries = project(name)["entry-points"]
    assert isinstance(entries, dict)
    for short in entries[ENTRY_POINTS]:
        code = (
            "from ds_core.plugins import manager, PluginState\n"
            "print('\\n'.join(f'{r.id} {r.state.name}' for r in manager().records))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "DS_PLUGINS_DISABLE": f"{name.replace('_', '-')}:{short}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        states = dict(line.split() for line in result.stdout.splitlines())
        assert states.pop(f"{name.replace('_', '-')}:{short}") == "BLOCKED"
        assert states
        assert not set(states.values()) & {"BLOCKED", "INCOMPATIBLE", "IMPORT_ERROR", "SHADOWED"}
