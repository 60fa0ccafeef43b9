"""The example with a mixture of experts runs, dense and with experts over ranks, and says what it costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).resolve().parent.parent / "examples" / "moe_text" / "train.py"
LAST = re.compile(r"([\d,]+) parameters, ([\d,]+) operations a byte, [\d,]+ bytes/s, loss ([\d.]+) nats a byte")
TINY = ("--steps", "30", "--batch", "8", "--context", "32", "--layers", "2", "--width", "32", "--held-out", "2048")


def train(ranks: int, *more: str) -> tuple[int, int, float]:
    """Parameters, operations a byte and the loss on held-out text that a run ends with."""
    program = str(Path(sys.executable).parent / "ds")
    command = [program, "run", "--nproc", str(ranks), str(TRAIN), *TINY, *more]
    result = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    (found,) = LAST.findall(result.stdout)
    return int(found[0].replace(",", "")), int(found[1].replace(",", "")), float(found[2])


@pytest.mark.ranks
def test_experts_add_parameters_and_next_to_no_work(tmp_path: Path) -> None:
    dense = train(1, "--experts", "0")
    sparse = train(2, "--experts", "8", "--ep", "2", "--metrics", str(tmp_path))
    assert sparse[0] - dense[0] == 7 * (2 * 32 * 128 + 128 + 32) + 8 * 32
    assert sparse[1] - dense[1] == 3 * 2 * 8 * 32  # the gate alone, forward and two products as large backward
    assert max(dense[2], sparse[2]) < 5.0  # of 5.5 without having learned anything
    names = {json.loads(line)["name"] for path in tmp_path.rglob("*.jsonl") for line in path.read_text().splitlines()}
    assert "Train/MoE/load_share/expert_7" in names
