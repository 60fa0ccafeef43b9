"""A stranger's device takes the CPU's place by being installed, and gives it back to who asks for the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BACKEND = "from ds_core.testing.python_device import load\n\nload('slate')\n"
CHOSEN = "from ds_core.accelerator import select; print(select().id)"
TRAIN = """
import json, sys

import torch

import ds_core

sys.path.insert(0, sys.argv[1])
from model import Gpt, Shape

torch.manual_seed(0)
model = Gpt(Shape(vocabulary=32, context=12, layers=2, heads=2, width=16))
engine, *_ = ds_core.initialize(
    model=model,
    config={
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "eps": 1e-4}},
        "zero_optimization": {"stage": 3, "param_persistence_threshold": 0},
    },
)
tokens = torch.randint(32, (4, 13), generator=torch.Generator().manual_seed(1)).to(engine.device)
losses = []
for _ in range(5):
    loss = engine(tokens[:, :-1], tokens[:, 1:])
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
print(json.dumps({"device": engine.device.type, "losses": losses}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel that the template makes for a device, and with its torch backend."""
    folder = tmp_path_factory.mktemp("swap")
    tool = [sys.executable, str(ROOT / "tools" / "new_plugin.py"), "ds-accel-slate", "--kind", "accelerator"]
    subprocess.run([*tool, "--dest", str(folder)], check=True, capture_output=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    wheel = [*pip, "--no-build-isolation", "--target", str(folder / "site"), str(folder / "ds-accel-slate")]
    subprocess.run(wheel, check=True, capture_output=True, timeout=150)
    (folder / "site" / "torch_slate.py").write_text(BACKEND)
    return folder / "site"


def python(site: Path | None, *words: str, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("DS_ACCELERATOR", "RANK", "WORLD_SIZE")}
    clean |= {"PYTHONPATH": str(site or ""), "OMP_NUM_THREADS": "1", **environ}
    done = subprocess.run([sys.executable, *words], env=clean, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def test_it_appears_among_the_plugins(site: Path) -> None:
    code = "import sys; from ds_core.cli import main; sys.exit(main(['plugins', 'why', 'slate']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ds-accel-slate 0.1.0" in done.stdout
    assert str(site) in done.stdout


def test_it_wins_by_priority_over_the_cpu(site: Path) -> None:
    assert python(site, "-c", CHOSEN) == "ds-accel-slate:slate"


def test_it_loses_to_a_name(site: Path) -> None:
    assert not python(site, "-c", CHOSEN, DS_ACCELERATOR="cpu").startswith("ds-accel-slate")


def test_without_it_the_cpu_is_taken() -> None:
    assert "slate" not in python(None, "-c", CHOSEN)


def test_it_trains_the_model_of_the_demo_as_the_cpu_does(site: Path) -> None:
    words = ("-c", TRAIN, str(ROOT / "examples" / "gpt_text"))
    found = {name: json.loads(python(site, *words, DS_ACCELERATOR=name)) for name in ("slate", "cpu")}
    assert {name: each["device"] for name, each in found.items()} == {"slate": "slate", "cpu": "cpu"}
    assert found["slate"]["losses"] == pytest.approx(found["cpu"]["losses"], rel=1e-4)
    assert found["slate"]["losses"][-1] < found["slate"]["losses"][0]
