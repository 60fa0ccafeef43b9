"""S12: optimizer state on disk, four times what may be in memory: time of a step against the disk's own for the bytes.

    python benchmarks/offload.py FOLDER [--params N] [--tiles N] [--buffers N] [--rounds N] [--block-size N] ...

One rank, bf16 weights, fp32 masters and moments in a file below FOLDER, read ahead and written behind. Only
``engine.step()`` is timed. The bound is the time fio takes to read and to write the bytes one step reads and writes,
one after the other, with the same blocks and depth; both take turns. Prints one JSON line. Runs in an environment with
this project's wheels and fio.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Noise, machine, take_turns
from swap import fio

import ds_core


class Weights(torch.nn.Module):
    """Parameters and next to no arithmetic."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(numel))

    def forward(self, factor: torch.Tensor) -> torch.Tensor:
        return (self.values * factor).sum()


def make(settings: argparse.Namespace, folder: Path) -> Any:
    """The engine."""
    offload = {
        "device": "nvme",
        "nvme_path": str(folder),
        "buffer_count": settings.buffers,
        "pipeline_read": settings.buffers > 1,
        "pipeline_write": settings.buffers > 2,
    }
    config = {
        "train_batch_size": 1,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "zero_optimization": {
            "stage": 1,
            "sub_group_size": settings.params // settings.tiles,
            "offload_optimizer": offload,
        },
        "aio": {
            "block_size": settings.block_size,
            "queue_depth": settings.queue_depth,
            "intra_op_parallelism": settings.parallel,
        },
    }
    return ds_core.initialize(model=Weights(settings.params), config=config)[0]


def measure(settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians and ranges of seconds, and the ratio to the bound."""
    engine = make(settings, folder)
    placement = next(part for part in engine.parts if part.name == "optimizer").placement
    state_bytes, buffer_bytes = placement.store.nbytes, placement.pool.nbytes
    factor = torch.full((), 1e-3, dtype=torch.bfloat16)

    def step() -> float:
        engine.backward(engine(factor))
        start = time.perf_counter()
        engine.step()
        return time.perf_counter() - start

    noise = Noise()
    step()
    other = folder / "fio.bin"
    fio_settings = argparse.Namespace(**{**vars(settings), "bytes": state_bytes})
    turns: dict[str, Callable[[], float]] = {
        "step": step,
        "read": lambda: fio(other, "read", fio_settings),
        "write": lambda: fio(other, "write", fio_settings),
    }
    turns["write"]()
    samples = take_turns(turns, settings.rounds, lambda line: print(line, file=sys.stderr))
    engine.destroy()
    bound = samples["read"].median + samples["write"].median
    return {
        "state_bytes": state_bytes,
        "buffer_bytes": buffer_bytes,
        "state_by_buffers": round(state_bytes / buffer_bytes, 2),
        **{name: sample.to_json() for name, sample in samples.items()},
        "bound": round(bound, 4),
        "step_by_bound": round(samples["step"].median / bound, 3),
        "noise": noise.to_json(),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="on the disk to measure")
    parser.add_argument("--params", type=int, default=48_000_000)
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--buffers", type=int, default=3)
    parser.add_argument("--block-size", type=int, default=1 << 20)
    parser.add_argument("--queue-depth", type=int, default=8)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        results = measure(settings, Path(folder))
    wanted = {key: value for key, value in vars(settings).items() if key != "folder"}
    print(json.dumps({"id": "S12", "unit": "s", **wanted, **results, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
