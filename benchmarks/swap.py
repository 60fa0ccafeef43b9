"""S11: 1 GiB between memory and a disk, by the engine that offload uses and by fio with the same blocks and depth.

    python benchmarks/swap.py FOLDER [--bytes N] [--block-size N] [--queue-depth N] [--parallel N] [--rounds N]

Both take turns on one file below FOLDER that is written once beforehand, so that neither pays for making it, and both
go past the page cache. What the ratio says is that the engine does not hold the disk back, not that it is faster than
fio: fio moves everything through a few small buffers and we from a tensor of the whole size, and the disk's rate
depends on how contiguous the pages of either happen to be, which differs from run to run. Prints one JSON line.
Runs in an environment with this project's wheels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Noise, Sample, Unavailable, last_words, machine, take_turns

from ds_core.aio import AsyncIO, aligned_empty, host_io
from ds_core.config.aio import AioSection


def ours(io: AsyncIO, tensor: torch.Tensor, path: Path, job: str) -> float:
    """Seconds to read or write the whole tensor."""
    start = time.perf_counter()
    (io.read if job == "read" else io.write)(tensor, path, 0).wait()
    return time.perf_counter() - start


def fio(path: Path, job: str, settings: argparse.Namespace) -> float:
    """Seconds fio takes for the same bytes, split over as many jobs as we have parts, each with the same depth.

    Raises:
        Unavailable: fio failed.
    """
    part = settings.bytes // settings.parallel
    command = ["fio", "--name=swap", f"--filename={path}", f"--rw={job}", "--direct=1", "--ioengine=libaio"]
    command += [f"--bs={settings.block_size}", f"--iodepth={settings.queue_depth}", f"--numjobs={settings.parallel}"]
    command += [f"--size={part}", f"--offset_increment={part}", "--overwrite=1", "--group_reporting"]
    done = subprocess.run([*command, "--thread", "--output-format=json"], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"fio: {last_words(done.stderr or done.stdout)}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][job]
    return float(found["runtime"]) / 1e3


def measure(settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians and ranges in GB/s by job and engine, and our share of fio's rate."""
    path = folder / "swap.bin"
    tensor = aligned_empty(settings.bytes, torch.uint8)
    tensor.view(torch.int64).random_(generator=torch.Generator().manual_seed(0))
    back = aligned_empty(settings.bytes, torch.uint8).zero_()
    io = host_io(
        AioSection(
            block_size=settings.block_size, queue_depth=settings.queue_depth, intra_op_parallelism=settings.parallel
        )
    )
    noise = Noise()
    results: dict[str, Any] = {"engine": type(io).__name__}
    ours(io, tensor, path, "write")
    for job in ("write", "read"):
        memory = tensor if job == "write" else back
        turns: dict[str, Callable[[], float]] = {"ours": lambda job=job, memory=memory: ours(io, memory, path, job)}
        if shutil.which("fio"):
            turns["fio"] = lambda job=job: fio(path, job, settings)
        samples = take_turns(turns, settings.rounds, lambda line: print(line, file=sys.stderr))
        results[job] = {
            name: Sample(tuple(round(settings.bytes / seconds / 1e9, 3) for seconds in sample.values)).to_json()
            for name, sample in samples.items()
        }
        if job == "write":
            ours(io, tensor, path, "write")  # fio wrote bytes of its own
        if "fio" in samples:
            results[job]["ours_by_fio"] = round(samples["fio"].median / samples["ours"].median, 3)
    results["is_equal"] = torch.equal(tensor, back)
    io.close()
    return {**results, "noise": noise.to_json()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="on the disk to measure")
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--block-size", type=int, default=1 << 20)
    parser.add_argument("--queue-depth", type=int, default=8)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        results = measure(settings, Path(folder))
    wanted = {key: value for key, value in vars(settings).items() if key != "folder"}
    print(json.dumps({"id": "S11", "unit": "GB/s", **wanted, **results, "machine": machine()}))
    return 0 if results["is_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
