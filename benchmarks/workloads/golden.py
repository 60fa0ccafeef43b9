"""Golden values: what cells of the exactness grid gave when they were recorded, and on what.

A file holds the SHA-256 of the parameters and hexadecimal losses and norms of each cell. Kernels of another torch or
another instruction set add in other orders, so a probe's bits are kept beside: where they are the same, values must be
the same; where they are not, losses and norms must be within `ELSEWHERE_ULPS`.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

ELSEWHERE_ULPS = 256
"""Largest distance of losses and norms on another kernel, in float32 units in the last place of the recorded value."""


class Result(Protocol):
    """What training left: see `exactness.Outcome`."""

    losses: list[float]
    norms: list[float]

    def digest(self) -> str:
        """SHA-256 of the parameters."""


def circumstances() -> dict[str, str]:
    """What bits depend on beside this project: torch, the processor's family, and the bits of a small computation."""
    return {
        "torch": torch.__version__.partition("+")[0],
        "machine": platform.machine(),
        "kernels": _probe(),
    }


def _probe() -> str:
    """SHA-256 of a matrix product, a tanh, a mean and their gradients, of odd sizes, in float32 on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = (torch.arange(4 * 13, dtype=torch.float64) * 0.7).sin().float().view(4, 13).requires_grad_()
        b = (torch.arange(13 * 13, dtype=torch.float64) * 1.3).cos().float().view(13, 13).requires_grad_()
        c = torch.nn.functional.linear(torch.tanh(a @ b), b)
        c.square().mean().backward()
        assert a.grad is not None
        assert b.grad is not None
        bits = b"".join(tensor.detach().numpy().tobytes() for tensor in (c, a.grad, b.grad))
    finally:
        torch.set_num_threads(threads)
    return hashlib.sha256(bits).hexdigest()[:16]


def record(result: Result, per_step: int) -> dict[str, Any]:
    """A cell's golden values from the first rank's result.

    Args:
        per_step: losses of a step; the last one of each step is kept.
    """
    return {
        "parameters": result.digest(),
        "losses": [value.hex() for value in result.losses[per_step - 1 :: per_step]],
        "norms": [value.hex() for value in result.norms],
    }


def read(path: Path) -> dict[str, Any]:
    """A file of golden values, ``{"recorded": circumstances, "cells": {name: {column: values}}}``; empty if none."""
    if not path.exists():
        return {"recorded": {}, "cells": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, cells: Mapping[str, Any]) -> None:
    """Writes `cells` with this machine's circumstances."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"recorded": circumstances(), "cells": cells}, indent=1, sort_keys=True)
    path.write_text(_short_lists(text) + "\n", encoding="utf-8")


def _short_lists(text: str) -> str:
    """Lists on one line, so that a file is read by cell."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and (lines[-1].endswith("[") or (lines[-1].count("[") > lines[-1].count("]"))):
            lines[-1] += line.strip() + ("" if line.strip().startswith("]") else " ")
        else:
            lines.append(line)
    return "\n".join(line.replace(" ]", "]") for line in lines)


def differences(golden: Mapping[str, Any], now: Mapping[str, Any], *, same_kernels: bool) -> Iterator[str]:
    """What is not as recorded, in words; nothing where all is well.

    Args:
        golden, now: values as `record` makes them.
        same_kernels: demand the same bits.
    """
    if same_kernels and golden["parameters"] != now["parameters"]:
        yield f"parameters hash to {now['parameters'][:12]}, recorded {golden['parameters'][:12]}"
    for kind in ("losses", "norms"):
        yield from _apart(kind, golden[kind], now[kind], 0.0 if same_kernels else ELSEWHERE_ULPS)


def _apart(kind: str, golden: Sequence[str], now: Sequence[str], allowed: float) -> Iterator[str]:
    if len(golden) != len(now):
        yield f"{len(now)} {kind}, recorded {len(golden)}"
    for step, (expected, got) in enumerate(zip(map(float.fromhex, golden), map(float.fromhex, now), strict=False), 1):
        unit = 2.0 ** (math.frexp(expected)[1] - 24)
        apart = abs(got - expected) / unit
        if not apart <= allowed:  # a NaN is not within anything
            yield f"{kind}: step {step} is {got.hex()}, recorded {expected.hex()} ({apart:.3g} ulps)"
            return
