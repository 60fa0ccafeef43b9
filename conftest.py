"""Settings of every test run: what is tested is what is installed, and random inputs are the same each time."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent

settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("DS_HYPOTHESIS_PROFILE", "steady"))


INSTALLED = os.environ.get("DS_TEST_INSTALLED", "0")
"""1: every package of the tree is installed as a wheel; ds-core,ds-accel-cpu: those are; 0: no matter."""


def import_names() -> list[str]:
    """Import name of every package in the tree that is to be tested."""
    dists = ("*",) if INSTALLED in {"", "0", "1"} else INSTALLED.split(",")
    return sorted(path.parent.name for dist in dists for path in ROOT.glob(f"packages/{dist}/src/*/__init__.py"))


def pytest_configure(config: pytest.Config) -> None:
    """In the sessions of nox, refuse to test a source tree in place of the installed wheels."""
    if INSTALLED in {"", "0"}:
        return
    sites = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    for name in import_names():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise pytest.UsageError(f"{name} is not installed; run `python -m nox -s tests`, which builds every wheel")
        if not any(site in Path(spec.origin).resolve().parents for site in sites):
            raise pytest.UsageError(f"{name} would be imported from {spec.origin}, not from an installed wheel")


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is tested."""
    where = "whatever is importable" if INSTALLED in {"", "0"} else "installed wheels"
    return f"packages: {', '.join(import_names())} ({where})"


@pytest.fixture(scope="module", autouse=True)
def process_group_ends_with_the_module() -> Iterator[None]:
    """A process group that a module's tests started in this process does not reach the next module."""
    yield
    if "torch.distributed" in sys.modules:
        from ds_core import comm

        if comm.is_initialized():
            comm.destroy_process_group()
