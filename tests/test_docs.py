from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("docs/tutorial/*.md"),
        *ROOT.glob("docs/how-to/*.md"),
        *ROOT.glob("packages/*/README.md"),
    ]
)
TUTORIAL = ROOT / "docs" / "tutorial" / "first-training.md"
DEVICE = ROOT / "docs" / "tutorial" / "bring-your-device.md"
FENCE = re.compile(
    r'^(?P<skip><!-- not run: .+? -->\n+)?```(?P<kind>\w+)(?: title="(?P<title>[\w./-]+)")?\n(?P<text>.*?)^```$',
    flags=re.MULTILINE | re.DOTALL,
)
RUNNABLE = {"ds", "python", "torchrun"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page. A title is a file to save it as; a block that cannot run here says why."""

    kind: str
    title: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, without those that say they are not run."""
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        if not found["skip"]:
            yield Block(found["kind"], found["title"], found["text"])


def run(command: list[str], folder: Path) -> str:
    """What a command prints, in `folder`, with the programs of this environment first."""
    programs = Path(sys.executable).parent
    program = str(programs / command[0]) if (programs / command[0]).exists() else command[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONSAFEPATH": "",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def follow(page: Path, folder: Path) -> list[tuple[str, str]]:
    """Do what the page says: save the files, run the commands, run the Python. Returns commands with their output."""
    done: list[tuple[str, str]] = []
    script = ""
    for block in blocks(page):
        if block.title is not None:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            script += block.text + "\n"
        elif block.kind == "console":
            for line in block.text.splitlines():
                command = line.removeprefix("$ ").split()
                if line.startswith("$ ") and command[0] in RUNNABLE:
                    done.append((line.removeprefix("$ "), run(command, folder)))
    if script:
        (folder / "page.py").write_text(script, encoding="utf-8")
        done.append(("page.py", run(["python", "page.py"], folder)))
    return done


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in (TUTORIAL, DEVICE)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path)


def test_the_tutorial_ends_as_it_says(tmp_path: Path) -> None:
    """Every command runs, and the resumed run prints the losses of one that was never interrupted."""
    printed = dict(follow(TUTORIAL, tmp_path))
    shutil.rmtree(tmp_path / "runs")
    command = "ds run --nproc 1 train.py --steps"
    whole = run(f"{command} 20".split(), tmp_path)

    def steps(text: str) -> list[str]:
        return re.findall(r"step \d+ loss .*", text)

    assert len(steps(whole)) == 20
    assert steps(printed[f"{command} 10"]) + steps(printed[f"{command} 20"]) == steps(whole)
    assert len(steps(printed["ds run --nproc 2 train.py --steps 30"])) == 10


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_vendor_gets_from_an_empty_folder_to_conformance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip installs into a folder of its own here, from what is installed."""
    site = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", str(site))
    for name, value in {"TARGET": str(site), "NO_DEPS": "1", "NO_INDEX": "1", "DISABLE_PIP_VERSION_CHECK": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    printed = dict(follow(DEVICE, tmp_path))
    first, last = re.findall(r"on slate:0: loss ([\d.]+) to ([\d.]+)", printed["ds run --nproc 2 train.py"])[0]
    assert float(last) < float(first) / 2
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {case["outcome"] for case in report["results"]} == {"passed", "filtered", "expected failure"}
    own = run(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "-k", "packaging"], tmp_path)
    assert " passed" in own


def test_relative_links_lead_somewhere() -> None:
    generated = ROOT / "docs" / "reference"
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists() and generated not in (page.parent / target).resolve().parents
    ]
    assert broken == []


def test_python_in_the_pages_parses() -> None:
    for page in [*PAGES, *ROOT.glob("docs/explanation/*.md")]:
        for block in blocks(page):
            if block.kind == "python":
                ast.parse(block.text)


def test_the_reference_is_made_from_the_installed_wheels(tmp_path: Path) -> None:
    run(["python", str(ROOT / "tools" / "gen_reference.py"), "--out", str(tmp_path)], tmp_path)
    config = (tmp_path / "config.md").read_text(encoding="utf-8")
    assert "`train_batch_size`" in config
    assert "## zero_optimization" in config
    assert "ds_ops" in (tmp_path / "hooks.md").read_text(encoding="utf-8")
    assert "ds::adam_(" in (tmp_path / "ops.md").read_text(encoding="utf-8")
    assert "ds plugins why" in (tmp_path / "cli.md").read_text(encoding="utf-8")
    assert "did_you_mean" not in (tmp_path / "errors.md").read_text(encoding="utf-8")
    assert "initialize" in (tmp_path / "api.md").read_text(encoding="utf-8")
