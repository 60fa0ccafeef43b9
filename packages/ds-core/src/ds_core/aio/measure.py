"""How fast a disk moves tensors: timed reads and writes with given settings, by an engine of ours or by fio."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ds_core.aio.files import O_DIRECT, SystemCalls
from ds_core.aio.make import host_io, threaded_io
from ds_core.aio.memory import aligned_empty
from ds_core.aio.request import FileIO
from ds_core.aio.threaded import ThreadedIO
from ds_core.config.aio import AioSection
from ds_core.errors import OffloadError, did_you_mean

__all__ = ["ENGINES", "JOBS", "Bench", "Result", "best", "measure", "sweep"]

ENGINES = ("auto", "uring", "threads")
JOBS = ("write", "read")
_CLOSE_TO_BEST = 0.97


@dataclass(frozen=True, slots=True)
class Bench:
    """What to measure.

    Args:
        folder: an existing folder on the disk; the file made there is removed again.
        nbytes: size of the tensor, rounded up to a whole block.
        section: block size, depth, parallelism and the rest, as a config has them.
        engine: one of `ENGINES`; ``auto`` is what a training job would get.
        jobs: some of `JOBS`.
        loops: timed repetitions, after one whose time is not taken.
        validate: compare what is read with what was written.
        with_fio: let fio take turns with the engine, on the same file.
    """

    folder: Path
    nbytes: int
    section: AioSection
    engine: str = "auto"
    jobs: tuple[str, ...] = JOBS
    loops: int = 3
    validate: bool = False
    with_fio: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of each repetition of one job by one program."""

    job: str
    by: str
    section: AioSection
    nbytes: int
    seconds: tuple[float, ...]
    is_direct: bool

    @property
    def rate(self) -> float:
        """Median rate in GB/s (1e9 bytes)."""
        return self.nbytes / statistics.median(self.seconds) / 1e9

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rates = [round(self.nbytes / one / 1e9, 4) for one in self.seconds]
        keys = ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events")
        settings = {key: getattr(self.section, key) for key in keys}
        more = {"bytes": self.nbytes, "direct": self.is_direct, "gb_per_s": round(self.rate, 4), "all_gb_per_s": rates}
        return {"job": self.job, "by": self.by, **settings, **more}


def measure(bench: Bench, *, calls: SystemCalls | None = None) -> list[Result]:
    """One result for each job, and another one by fio where that was asked for.

    Args:
        bench: what to measure.
        calls: system calls of the threads; replaceable for tests.

    Raises:
        OffloadError: the folder, the room in it, the engine or fio is missing; or what is read is not what was written.
    """
    with _prepared(bench) as (path, tensor):
        return _measure(bench, path, tensor, calls)


def sweep(bench: Bench, sections: Sequence[AioSection], told: Callable[[Result], None]) -> list[Result]:
    """Results for each of several settings on one file; each is `told` as soon as it is known."""
    found = []
    with _prepared(bench) as (path, tensor):
        for section in sections:
            for result in _measure(replace(bench, section=section), path, tensor):
                told(result)
                found.append(result)
    return found


def best(results: Sequence[Result]) -> AioSection:
    """Settings of the highest rate: of bytes that are written and read again, where both were measured.

    Among those within 3% of it, which noise alone may decide, the one with the least memory under way.
    """
    sections = list(dict.fromkeys(result.section for result in results))
    if not sections:
        raise OffloadError("no setting was measured; give at least one block size, depth and parallelism")

    def rate(section: AioSection) -> float:
        return 1 / sum(1 / result.rate for result in results if result.section == section)

    def under_way(section: AioSection) -> tuple[int, int]:
        bytes_under_way = section.block_size * section.queue_depth * section.intra_op_parallelism
        return bytes_under_way, section.intra_op_parallelism

    limit = _CLOSE_TO_BEST * max(map(rate, sections))
    return min((section for section in sections if rate(section) >= limit), key=under_way)


@contextmanager
def _prepared(bench: Bench) -> Iterator[tuple[Path, torch.Tensor]]:
    folder = bench.folder
    if not folder.is_dir():
        raise OffloadError(f"{folder} is not a folder; name one on the disk that is to be measured")
    if bench.with_fio and shutil.which("fio") is None:
        raise OffloadError("fio is not installed; install it (apt install fio), or leave out --compare-fio")
    room = shutil.disk_usage(folder).free
    if room < bench.nbytes:
        raise OffloadError(
            f"{folder} has {room} bytes free and {bench.nbytes} are to be moved; choose a smaller --size"
        )
    tensor = aligned_empty(bench.nbytes, torch.uint8)
    tensor.random_(0, 256, generator=torch.Generator().manual_seed(0))
    try:
        with tempfile.TemporaryDirectory(prefix="ds-io-", dir=folder) as made:
            yield Path(made) / "file.bin", tensor
    except PermissionError as error:
        raise OffloadError(f"{folder} is not writable ({error.strerror}); name another folder on the disk") from error


def _measure(bench: Bench, path: Path, tensor: torch.Tensor, calls: SystemCalls | None = None) -> list[Result]:
    io = _engine(bench, calls)
    back = torch.empty(0)
    found = []
    try:
        _seconds(lambda: io.write(tensor, path, 0).wait())  # so that nobody's time is that of making the file
        for job in bench.jobs:
            if job == "read" and not back.numel():
                back = aligned_empty(bench.nbytes, torch.uint8).zero_()
            memory = tensor if job == "write" else back
            if not bench.with_fio:  # as offload's buffers are; fio pins its own for each block
                io.register(memory)
            begin = io.write if job == "write" else io.read
            ours, fios = [], []
            for loop in range(bench.loops + 1):
                taken = _seconds(lambda: begin(memory, path, 0).wait())  # noqa: B023 - called at once
                ours += [taken] if loop else []
                if bench.with_fio and loop:
                    fios.append(_fio(bench, path, job))
            io.unregister(memory)
            if job == "write" and (fios or bench.validate):
                if bench.validate and not fios:
                    _check(path, tensor)
                io.write(tensor, path, 0).wait()  # fio wrote bytes of its own
            if job == "read" and bench.validate and not torch.equal(back, tensor):
                raise OffloadError(f"what was read from {path} is not what was written to it")
            common = (bench.section, bench.nbytes)
            is_direct = _takes_direct(path)
            found.append(Result(job, io.name, *common, tuple(ours), is_direct))
            if fios:
                found.append(Result(job, "fio", *common, tuple(fios), is_direct))
    finally:
        io.close()
    return found


def _engine(bench: Bench, calls: SystemCalls | None) -> FileIO[Any]:
    if bench.engine not in ENGINES:
        raise OffloadError(
            f"--engine must be {', '.join(ENGINES)}, got {bench.engine}.{did_you_mean(bench.engine, ENGINES)}"
        )
    found = threaded_io(bench.section, calls) if bench.engine == "threads" else host_io(bench.section)
    if not isinstance(found, FileIO):
        raise OffloadError(
            f"the host's engine is a {type(found).__name__}, which this benchmark cannot name; use --engine threads"
        )
    if bench.engine == "uring" and isinstance(found, ThreadedIO):
        found.close()
        raise OffloadError(
            "--engine uring cannot be had here: ds-accel-cpu is not installed, or the kernel forbids io_uring (see"
            " ds report); use --engine threads"
        )
    return found


def _check(path: Path, tensor: torch.Tensor) -> None:
    kept = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    if not torch.equal(kept, tensor):
        raise OffloadError(f"what is in {path} is not what was written to it")


def _seconds(act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _takes_direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | O_DIRECT))
    except OSError:
        return False
    return bool(O_DIRECT)


def _fio(bench: Bench, path: Path, job: str) -> float:
    section, parts = bench.section, bench.section.intra_op_parallelism
    part = bench.nbytes // parts // section.block_size * section.block_size
    words = ["fio", "--name=ds-io", f"--filename={path}", f"--rw={job}", f"--direct={int(_takes_direct(path))}"]
    words += ["--ioengine=libaio", f"--bs={section.block_size}", f"--iodepth={section.queue_depth}"]
    words += [f"--numjobs={parts}", f"--size={part}", f"--offset_increment={part}", "--overwrite=1"]
    words += ["--group_reporting", "--thread", "--output-format=json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OffloadError(f"fio failed with exit code {done.returncode}: {said[-1] if said else 'it said nothing'}")
    stated = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][job]
    # Its clock counts whole milliseconds; the rate of what it moved is scaled to our bytes.
    return float(stated["runtime"]) / 1e3 * bench.nbytes / float(stated["io_bytes"])
