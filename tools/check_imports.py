"""Check the import contracts of all packages: those written in pyproject.toml, and those every package has.

Usage: python tools/check_imports.py

Packages are found by glob, so a new wheel is under the contracts from its first commit: it may import ``ds_core``,
never a sibling, and ``ds_core`` imports none of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CORE = "ds_core"
FACADES = ("deepspeed",)
"""Packages of another project's names, which lead to all of ours; nothing of ours imports them."""

Contract = dict[str, object]


def packages(root: Path = ROOT) -> dict[str, Path]:
    """Import name to source folder, of every package in the tree."""
    return {path.parent.name: path.parents[1] for path in sorted(root.glob("packages/*/src/*/__init__.py"))}


def contracts(names: list[str], written: list[Contract]) -> list[Contract]:
    """The contracts of pyproject.toml, preceded by those that hold for every package."""
    facades = [name for name in names if name in FACADES]
    siblings = [name for name in names if name != CORE and name not in facades]
    made: list[Contract] = [
        {
            "name": "ds_core imports no other package of ours",
            "type": "forbidden",
            "source_modules": [CORE],
            "forbidden_modules": siblings,
        }
    ]
    if len(siblings) > 1:
        made.append({"name": "no package imports a sibling", "type": "independence", "modules": siblings})
    facade: Contract = {
        "name": "nothing of ours imports a facade",
        "type": "forbidden",
        "source_modules": [CORE, *siblings],
        "forbidden_modules": facades,
    }
    return [*(made if siblings else []), *([facade] if facades else []), *written]


def toml(settings: dict[str, object], items: list[Contract]) -> str:
    """The settings and contracts as an import-linter file. All values are such that JSON is TOML."""
    lines = ["[tool.importlinter]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    for item in items:
        lines += ["", "[[tool.importlinter.contracts]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in item.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run import-linter over every package; its exit code is ours."""
    found = packages()
    shared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    written = shared.pop("contracts", [])
    settings = {**shared, "root_packages": list(found)}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "contracts.toml"
        config.write_text(toml(settings, contracts(list(found), written)))
        path = os.pathsep.join(str(source) for source in found.values())
        command = ["lint-imports", "--no-cache", "--config", str(config)]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False, cwd=folder).returncode


if __name__ == "__main__":
    raise SystemExit(main())
