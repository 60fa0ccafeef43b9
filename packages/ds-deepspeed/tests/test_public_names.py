"""Every documented name of DeepSpeed is at its path, or says which wheel will bring it or why nothing does."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

LISTED = [
    (path, name)
    for line in (Path(__file__).parent / "public_names.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for path, _, names in [line.partition(":")]
    for name in names.split()
]
REASONS = ("it will come with ", "is not here: ", "needs the wheel ")


def from_import(path: str, name: str) -> object:
    space: dict = {}
    exec(f"from {path} import {name} as found", space)
    return space["found"]


@pytest.mark.parametrize("path", sorted({path for path, _ in LISTED}))
def test_names_of_a_module_resolve_or_say_why_not(path):
    unexplained = []
    for name in (name for at, name in LISTED if at == path):
        try:
            from_import(path, name)
        except ImportError as error:
            if not any(reason in str(error) for reason in REASONS):
                unexplained.append(f"{name}: {error}")
    assert not unexplained, "\n".join(unexplained)


def test_most_of_what_is_released_resolves():
    """Guards the table itself: a door that refuses everything would pass the test above."""
    served = 0
    for path, name in LISTED:
        try:
            from_import(path, name)
        except ImportError:
            continue
        served += 1
    assert served > 0.6 * len(LISTED)


def test_asking_for_a_missing_name_tells_the_wheel_and_hasattr_says_no():
    import deepspeed

    with pytest.raises(ImportError, match="it will come with the wheel ds-inference"):
        from_import("deepspeed", "init_inference")
    with pytest.raises(AttributeError, match="it will come with the wheel ds-tensor"):
        _ = deepspeed.tp_model_init
    assert not hasattr(deepspeed, "init_inference")
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from_import("deepspeed", "nonsense")
    with pytest.raises(ImportError, match=r"deepspeed.sequence.*ds-sequence"):
        importlib.import_module("deepspeed.sequence.layer")


def test_importing_it_imports_no_torch_and_says_nothing():
    program = (
        "import sys, json, deepspeed, deepspeed.zero, deepspeed.utils, deepspeed.runtime.lr_schedules;"
        "print(json.dumps([name in sys.modules for name in ('torch', 'ds_core.engine', 'pydantic')]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [False, False, False]
    assert done.stderr == ""


def test_the_distribution_is_found_as_libraries_look_for_it():
    import importlib.metadata

    from packaging.version import Version

    import deepspeed

    found = importlib.metadata.metadata("deepspeed")
    assert found["Version"] == deepspeed.__version__
    assert Version(deepspeed.__version__) > Version("0.19.8")
    assert Version(deepspeed.__version__).public == "0.19.8"
