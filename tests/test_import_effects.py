"""Importing a package changes nothing: proven in fresh processes, before and after compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EFFECTS = """
import json, logging, os, sys, warnings

def snapshot():
    import signal, threading
    return {
        "environment": dict(os.environ),
        "loggers": {
            name: [logger.level, logger.propagate, [repr(h) for h in logger.handlers], logger.disabled]
            for name, logger in sorted(logging.root.manager.loggerDict.items()) if hasattr(logger, "handlers")
            and (logger.level or logger.handlers or not logger.propagate or logger.disabled)
        },
        "root logger": [logging.root.level, [repr(h) for h in logging.root.handlers]],
        "warning filters": [repr(f) for f in warnings.filters],
        "directory": os.getcwd(),
        "path": sys.path[:],
        "threads": threading.active_count(),
        "signals": {int(s): repr(signal.getsignal(s)) for s in signal.valid_signals()},
        "excepthook": repr(sys.excepthook),
    }

import threading, signal
before = snapshot()
IMPORT
after = snapshot()
print(json.dumps({
    "changed": {key: [before[key], after[key]] for key in before if before[key] != after[key]},
    "modules": sorted(sys.modules),
}))
"""
PACKAGES = sorted(path.parent.name for path in Path(__file__).parents[1].glob("packages/*/src/*/__init__.py"))
HEAVY = {"torch", "numpy", "pydantic", "typer", "rich", "safetensors"}


def run(statement: str) -> dict[str, object]:
    """What `statement` changed in a fresh process, and the modules it left there."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("DS_")}
    done = subprocess.run(
        [sys.executable, "-c", EFFECTS.replace("IMPORT", statement)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "statement",
    [
        "import ds_core",
        "import ds_core.plugins; ds_core.plugins.discover()",
        "from ds_core.cli.main import commands; commands()",
        "import ds_core.accelerator; ds_core.accelerator.choose('cpu')",
    ],
)
def test_nothing_changes_and_nothing_heavy_is_loaded(statement: str) -> None:
    found = run(statement)
    assert found["changed"] == {}
    assert not HEAVY & set(found["modules"])  # type: ignore[call-overload]


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_of_the_tree_changes_nothing(package: str) -> None:
    assert run(f"import {package}")["changed"] == {}


def test_importing_core_stays_small() -> None:
    # A count does not depend on the machine. An import that doubles shows here.
    bare = set(run("pass")["modules"])  # type: ignore[call-overload]
    core = set(run("import ds_core")["modules"])  # type: ignore[call-overload]
    assert len(core - bare) < 120, sorted(core - bare)
    assert len([name for name in core - bare if name.startswith("ds_")]) < 40
