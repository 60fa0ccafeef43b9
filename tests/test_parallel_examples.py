"""One program, divided as JSON files say: every division prints the losses of one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "parallel_text"
STEPS = 10


def losses(*arguments: str | Path, ranks: int = 1) -> list[float]:
    """What the example prints as losses."""
    launch = [sys.executable] if ranks == 1 else [str(Path(sys.executable).parent / "ds"), "run", "--nproc", str(ranks)]
    command = [*launch, str(EXAMPLE / "train.py"), "--steps", str(STEPS), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=150, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return [float(found) for found in re.findall(r"^step \d+: loss ([\d.]+)$", result.stdout, re.MULTILINE)]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[float]]:
    """By model, the losses of one process."""
    found = {kind: losses("--model", kind) for kind in ("dense", "experts")}
    assert all(len(each) == 2 and each[1] < each[0] - 0.3 for each in found.values())
    return found


@pytest.mark.ranks
@pytest.mark.parametrize(("kind", "name"), [("dense", "pipeline"), ("experts", "experts")])
def test_the_losses_are_those_of_one_process(kind: str, name: str, alone: dict[str, list[float]]) -> None:
    divided = losses("--model", kind, "--config", EXAMPLE / f"{name}.json", ranks=4)
    assert divided == pytest.approx(alone[kind], abs=2e-5)


@pytest.mark.ranks
def test_stages_and_experts_together(alone: dict[str, list[float]], tmp_path: Path) -> None:
    config = json.loads((EXAMPLE / "pipeline.json").read_text())
    config["expert_parallel"] = json.loads((EXAMPLE / "experts.json").read_text())["expert_parallel"]
    file = tmp_path / "both.json"
    file.write_text(json.dumps(config))
    assert losses("--model", "experts", "--config", file, ranks=4) == pytest.approx(alone["experts"], abs=2e-5)
