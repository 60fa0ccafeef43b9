from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERATOR = ROOT / "tools" / "new_plugin.py"


def run(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command's result, in an environment that prefers nothing of this repository."""
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=150
    )


def generate(dest: Path, name: str, kind: str = "feature") -> subprocess.CompletedProcess[str]:
    """Run the generator as a contributor does."""
    return run(sys.executable, str(GENERATOR), name, "--kind", kind, "--dest", str(dest), cwd=ROOT)


@pytest.fixture(scope="module", params=["feature", "accelerator"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A generated package, the folder its wheel is installed in, and its kind."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    made = generate(folder, f"acme-{kind}", kind)
    assert made.returncode == 0, made.stderr
    package, wheels, target = folder / f"acme-{kind}", folder / "wheels", folder / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run(
        *pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(wheels), str(package), cwd=folder
    )
    assert built.returncode == 0, built.stderr
    wheel = next(wheels.glob("*.whl"))
    put = run(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=folder)
    assert put.returncode == 0, put.stderr
    return package, target, kind


def test_the_new_wheel_appears_in_the_list_of_plugins(installed: tuple[Path, Path, str]) -> None:
    _, target, kind = installed
    ds = Path(sys.executable).parent / "ds"
    listed = run(str(ds), "plugins", "list", "--json", cwd=target, PYTHONPATH=str(target))
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout)
    states = {row["id"]: row["state"] for row in (rows["plugins"] if isinstance(rows, dict) else rows)}
    assert states[f"acme-{kind}:acme-{kind}"] in {"registered", "available", "unavailable"}


def test_a_new_accelerator_conforms_as_soon_as_its_torch_device_exists(installed: tuple[Path, Path, str]) -> None:
    """Levels 0 to 4. Recomputation is left out: torch ends the process on a device that is written in Python."""
    _, target, kind = installed
    if kind != "accelerator":
        pytest.skip("the wheel of a feature brings no device")
    backend = "from ds_core.testing.python_device import load\n\nload('acmeaccelerator')\n"
    (target / "torch_acme_accelerator.py").write_text(backend)
    (target / "expected.txt").write_text("random/recomputation_repeats: written in Python\n")
    ds = Path(sys.executable).parent / "ds"
    words = ("accel", "test", "acme_accelerator", "--level", "4", "--quiet", "--xfail", "expected.txt")
    tested = run(str(ds), *words, cwd=target, PYTHONPATH=str(target))
    (target / "torch_acme_accelerator.py").unlink()
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_new_wheel_passes_its_own_tests(installed: tuple[Path, Path, str]) -> None:
    package, target, _ = installed
    tested = run(
        sys.executable,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--import-mode=importlib", str(package)),
        cwd=target,
        PYTHONPATH=str(target),
        DS_TEST_INSTALLED="",
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert " passed" in tested.stdout


@pytest.mark.parametrize("name", ["Spike", "spike_guard", "ds--x", "ds-", "1st", "../out", ""])
def test_a_name_no_wheel_can_have_is_refused(tmp_path: Path, name: str) -> None:
    made = generate(tmp_path, name)
    assert made.returncode == 2
    assert repr(name) in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "acme-x").mkdir()
    made = generate(tmp_path, "acme-x")
    assert made.returncode == 2
    assert "exists" in made.stderr
    assert list((tmp_path / "acme-x").iterdir()) == []
