"""Saving one gigabyte of training state, in turns: checkpoint.py FOLDER [--bytes N] [--rounds R].

One rank: float32 parameters and the two moments of AdamW. Each way saves the same tensors:

    torch.save   torch.save and fsync, training waits
    dcp          torch.distributed.checkpoint.async_save, until it returns; then until it is written
    engine       engine.save_checkpoint, until it returns; then until it is committed
    disk         the same number of bytes, from aligned memory past the page cache, and fsync: what the disk takes

Prints one JSON object: bytes, and seconds of every round by way, ``blocked`` and ``whole``.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import ds_core

PIECE_BYTES = 16 << 20
TENSORS = 48


class Rows(nn.Module):
    """Parameters of the sizes a transformer has, and a loss that touches each."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.rows = nn.ParameterList(nn.Parameter(torch.randn(numel // TENSORS // 64, 64)) for _ in range(TENSORS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(row * x).mean() for row in self.rows]).sum()


def make_engine(nbytes: int) -> Any:
    """An engine whose weights and optimizer state are `nbytes` together."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    }
    return ds_core.initialize(model=Rows(nbytes // 12), config=config)[0]


def step(engine: Any) -> None:
    """One step of training, so that no two saves are of the same values."""
    engine.backward(engine(torch.ones(64)))
    engine.step()


def write_raw(path: Path, nbytes: int) -> None:
    """What the disk takes for so many bytes."""
    memory = mmap.mmap(-1, PIECE_BYTES)
    memory.write(os.urandom(1 << 20) * (PIECE_BYTES >> 20))
    view = memoryview(memory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        handle = os.open(path, flags | os.O_DIRECT)
    except OSError:  # a file system without it
        handle = os.open(path, flags)
    for offset in range(0, nbytes, PIECE_BYTES):
        os.pwrite(handle, view[: min(PIECE_BYTES, nbytes - offset) // 4096 * 4096], offset)
    os.fsync(handle)
    os.close(handle)


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    began = time.perf_counter()
    result = act()
    return time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(os.cpu_count() or 1)
    engine = make_engine(asked.bytes)
    step(engine)
    state = {"model": engine.module.state_dict(), "optimizer": engine.optimizer.state_dict()}
    nbytes = sum(p.numel() for p in engine.module.parameters()) * 12
    folder: Path = asked.folder / "checkpoint"
    times: dict[str, dict[str, list[float]]] = {}

    def note(name: str, **seconds: float) -> None:
        for kind, value in seconds.items():
            times.setdefault(name, {}).setdefault(kind, []).append(value)

    def by_torch() -> None:
        def save() -> None:
            with (folder / "state.pt").open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

        took_s, _ = timed(save)
        note("torch.save", blocked=took_s, whole=took_s)

    def by_dcp() -> None:
        writer = dcp.FileSystemWriter(folder / "dcp", sync_files=True)
        blocked_s, future = timed(lambda: dcp.async_save(state, storage_writer=writer, no_dist=True))
        rest_s, _ = timed(future.result)
        note("dcp", blocked=blocked_s, whole=blocked_s + rest_s)

    def by_engine() -> None:
        blocked_s, _ = timed(lambda: engine.save_checkpoint(folder / "ours", tag="t"))
        rest_s, _ = timed(engine.wait_for_checkpoint)
        note("engine", blocked=blocked_s, whole=blocked_s + rest_s)

    def by_disk() -> None:
        took_s, _ = timed(lambda: write_raw(folder / "raw", nbytes))
        note("disk", blocked=took_s, whole=took_s)

    ways = [by_torch, by_dcp, by_engine, by_disk]
    for index in range(asked.rounds + 1):
        shift = index % len(ways)
        for way in ways[shift:] + ways[:shift]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            os.sync()
            step(engine)
            gc.collect()
            way()
    shutil.rmtree(folder, ignore_errors=True)
    engine.destroy()
    first = {name: {kind: values[0] for kind, values in kinds.items()} for name, kinds in times.items()}
    rest = {name: {kind: values[1:] for kind, values in kinds.items()} for name, kinds in times.items()}
    print(json.dumps({"bytes": nbytes, "first": first, "times": rest}))


if __name__ == "__main__":
    main()
