"""A stranger's wheel from end to end: built, installed beside the others, and its own tests run against it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ds_core.testing.conformance.document import read_report
from ds_core.testing.conformance.levels import LAST

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples" / "vendor-plugin"
CACHE = ROOT / "build" / "vendor-plugin"
"""Wheels by what they were built from, so that a run builds one only when it has to."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ranks,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="the pretended device asks Linux for its memory"),
]


def sources() -> list[Path]:
    """Everything the wheel is made of."""
    found = [path for folder in ("csrc", "src") for path in (PLUGIN / folder).rglob("*") if path.is_file()]
    found += [PLUGIN / name for name in ("CMakeLists.txt", "pyproject.toml", "README.md")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def key() -> str:
    digest = hashlib.sha256(f"{sys.version} torch {importlib.metadata.version('torch')}".encode())
    for path in sources():
        digest.update(str(path.relative_to(PLUGIN)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = CACHE / key()
    if not list(folder.glob("*.whl")):
        work = tmp_path_factory.mktemp("build")
        out = work / "out"
        pip("wheel", "--no-build-isolation", f"--config-settings=build-dir={work}", "-w", str(out), str(PLUGIN))
        (built,) = out.glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}.partial"
        partial.write_bytes(built.read_bytes())
        partial.rename(folder / built.name)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip("install", "--no-compile", "--target", str(target), str(wheel))
    return target


def environment(site: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("DS_ACCELERATOR", "RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(site), str(PLUGIN / "tests")])
    return clean | {"PYTHONPATH": path, "OPENBOX_AUTOLOAD": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def test_its_own_tests_pass_on_the_installed_wheel(site: Path) -> None:
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests")]
    done = subprocess.run(
        tests, cwd=ROOT, env=environment(site), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_passes_every_level_of_conformance(site: Path, tmp_path: Path) -> None:
    code = "import sys; from ds_core.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["accel", "test", "openbox", "--quiet", "--json", str(tmp_path / "report.json")]
    environ = environment(site)
    environ.pop("OPENBOX_AUTOLOAD")
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environ, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(tmp_path / "report.json")
    assert (report.complete, report.reached_level) == (True, LAST)
    assert {result.filter.kind for result in report.results if result.filter} <= {"capability", "own"}
    ops = [result for result in report.results if result.case == "ops/sum_of_squares"]
    assert ops[0].figures["native"] == ops[0].figures["cases"] > 0


def test_its_plugin_is_in_order(site: Path) -> None:
    code = "import sys; from ds_core.cli import main; sys.exit(main(['plugins', 'why', 'openbox']))"
    environ = environment(site) | {"DS_PLUGINS_STRICT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(site) in done.stdout


def test_the_wheel_holds_no_source_and_no_machine(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        library = archive.read("ds_accel_openbox/lib/libopenbox.so")
        machine = [str(ROOT), sys.prefix, importlib.metadata.distribution("torch").locate_file("torch")]
    assert not [name for name in names if name.endswith((".c", ".cpp", ".h", ".o"))]
    assert not [folder for folder in machine if str(folder).encode() in library]
