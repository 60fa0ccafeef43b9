"""What every benchmark needs: environments, workers that wait for their turn, samples, and what machine this is."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORKLOADS = Path(__file__).parent / "workloads"
ROOT = Path(__file__).parent.parent

DROPPED = ("PYTHONPATH", "PYTHONSAFEPATH", "OMP_NUM_THREADS", "DS_ACCELERATOR", "DS_PLUGINS_STRICT", "DS_BUILD_OPS")
"""Variables of the session that must not decide how any engine runs."""


class Unavailable(Exception):
    """Something cannot be measured here; the text says why, and the page shows it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def text(self, unit: str, convert: Callable[[float], float] = float) -> str:
        """Median and range, for a reader."""
        low, high = sorted((convert(min(self.values)), convert(max(self.values))))
        return f"{short(convert(self.median))} {unit} ({short(low)} to {short(high)})"

    def to_json(self) -> dict[str, Any]:
        """Median, extremes, and every value."""
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "values": list(self.values)}


@dataclasses.dataclass(frozen=True)
class Side:
    """An environment to run engines in: ours, or that of the peers."""

    python: Path
    environ: Mapping[str, str]

    def run(self, arguments: Sequence[str], *, timeout_s: float, **environ: str) -> str:
        """Standard output of a program of this side.

        Raises:
            Unavailable: it failed or took too long; the text is its last line.
        """
        command = [str(self.python), *arguments]
        name = next((Path(word).name for word in arguments if word.endswith(".py")), "python")
        try:
            done = subprocess.run(
                command,
                env={**self.environ, **environ},
                capture_output=True,
                text=True,
                timeout=timeout_s,
                cwd=tempfile.gettempdir(),
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{name} did not end within {timeout_s:.0f} s") from None
        if done.returncode:
            raise Unavailable(f"{name}: {last_words(done.stderr)}")
        return done.stdout


@dataclasses.dataclass(frozen=True)
class Context:
    """Everything a measurement is given.

    Attributes:
        ours: the environment with this project's wheels.
        peers: the environment with deepspeed, or None.
        peers_missing: why there is none.
        quick: tiny sizes and few rounds, to see that everything works; the numbers mean nothing.
        rounds: interleaved rounds of every comparison.
        scratch: a folder that is gone afterwards.
        extensions: where deepspeed keeps the kernels it builds, for what is not about building them.
        say: prints a line of progress.
    """

    ours: Side
    peers: Side | None
    peers_missing: str
    quick: bool
    rounds: int
    scratch: Path
    extensions: Path
    say: Callable[[str], None]

    def side(self, engine: str) -> Side:
        """Where an engine lives.

        Raises:
            Unavailable: it is deepspeed and there is no environment of the peers.
        """
        if not engine.startswith(("ds", "deepspeed")):
            return self.ours
        if self.peers is None:
            raise Unavailable(self.peers_missing)
        return self.peers


def make_side(python: Path, **environ: str) -> Side:
    """A side whose programs see nothing of this session but its PATH, with the side's own programs first."""
    base = {key: value for key, value in os.environ.items() if key not in DROPPED}
    base["PATH"] = os.pathsep.join([str(python.parent), base.get("PATH", os.defpath)])
    return Side(python, {**base, "GLOO_SOCKET_IFNAME": "lo", "TOKENIZERS_PARALLELISM": "false", **environ})


class Worker:
    """A program that does one piece of work each time it is told to, so that engines can take turns.

    It writes one JSON line when it is ready, and one for every line it reads. Everything else it prints goes to a log.
    """

    def __init__(self, side: Side, script: str, *arguments: str, scratch: Path, timeout_s: float, **environ: str):
        self.name = " ".join([script, *arguments[:1]])
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile(mode="w+", dir=scratch)  # noqa: SIM115  (closed in close)
        self._process = subprocess.Popen(
            [str(side.python), str(WORKLOADS / script), *arguments],
            env={**side.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=scratch,
        )
        try:
            self.ready: dict[str, Any] = self._read()
        except Unavailable:
            self.close()
            raise

    def __call__(self, order: str = "go") -> dict[str, Any]:
        """Has the work done once and returns what the worker says about it."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], self._timeout_s)
        if not readable:
            raise Unavailable(f"{self.name} gave no answer within {self._timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(10)
            self._log.seek(0)
            raise Unavailable(f"{self.name} ended: {last_words(self._log.read())}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception): .+)$", re.MULTILINE)


def last_words(text: str) -> str:
    """The last error, or the last line that says something, without the folders of this machine."""
    errors = [error for error in ERROR.findall(text) if "ChildFailedError" not in error]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = (errors or lines or ["it said nothing"])[-1]
    return words.replace(str(ROOT), ".").replace(str(Path.home()), "~").replace(sys.prefix, "env")[:300]


def take_turns(
    turns: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, Sample]:
    """Calls every turn once a round, starting with another one each round, and gathers what each returned."""
    names = list(turns)
    values: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            values[name].append(turns[name]())
        say(f"  round {index + 1} of {rounds}: " + ", ".join(f"{name} {values[name][-1]:.4g}" for name in names))
    return {name: Sample(tuple(taken)) for name, taken in values.items()}


def free_port() -> int:
    """A TCP port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def alone(**environ: str) -> dict[str, str]:
    """Variables of a job of one rank."""
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **environ,
    }


def machine() -> dict[str, Any]:
    """The processor, memory and system that measure."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    flags = set(fields.get("flags", "").split())
    telling = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "family": "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "instruction_sets": [flag for flag in telling if flag in flags],
        "cores": os.cpu_count(),
        "cache": fields.get("cache size", "unknown"),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "virtual": "hypervisor" in flags,
        "system": " ".join([platform.system(), *platform.release().split("-")[:1]]),
        "python": platform.python_version(),
    }


class Noise:
    """How busy the machine was with other things while something was measured."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._stolen, self._total = _cpu_ticks()
        self._started = time.time()

    def to_json(self) -> dict[str, Any]:
        """Load before, share of processor time the hypervisor gave to others, and when."""
        stolen, total = _cpu_ticks()
        began = datetime.datetime.fromtimestamp(self._started, tz=datetime.timezone.utc)
        return {
            "load_before": round(self._load, 2),
            "stolen_percent": round(100 * (stolen - self._stolen) / max(total - self._total, 1), 2),
            "began": began.isoformat(timespec="seconds"),
            "took_s": round(time.time() - self._started, 1),
        }


def _cpu_ticks() -> tuple[int, int]:
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 1
    ticks = [int(word) for word in stat.read_text().splitlines()[0].split()[1:]]
    return ticks[7] if len(ticks) > 7 else 0, sum(ticks[:8])
