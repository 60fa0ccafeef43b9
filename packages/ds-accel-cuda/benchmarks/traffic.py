"""How many bytes the row kernels move, counted under emulation and compared with the least that the op needs.

    python benchmarks/traffic.py [FOLDER OF THE BUILD]

Counts every access of a thread to global memory, as if there were no cache, by tensor: 1.00 in the column of a tensor
means that each of its bytes is read (or written) once. What a column of small tensors exceeds 1 by, the caches of a
device serve. `bytes an access` is 16 where threads read and write whole packs. Nothing is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.native import include_dir, load
from ds_core.testing.op_cases import as_tuple

ROOT = Path(__file__).resolve().parents[1]
COUNTED = (
    "-fsanitize=kernel-address",
    "--param=asan-instrumentation-with-call-threshold=0",
    "--param=asan-stack=0",
    "--param=asan-globals=0",
)
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-ffp-contract=off", "-w")


class Counts(NamedTuple):
    """Of one tensor."""

    read: int
    written: int
    accesses: int


class Traffic:
    """A library of the kernels, and what it counted since `clear`."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._count = self._library.dsk_emulation_traffic
        self._count.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]

    def clear(self) -> None:
        """Forgets what was counted."""
        self._library.dsk_emulation_traffic_clear()

    def of(self, tensor: torch.Tensor) -> Counts:
        """What was read and written of a tensor."""
        found = (ctypes.c_uint64 * 3)()
        self._count(tensor.data_ptr(), tensor.nbytes, ctypes.byref(found))
        return Counts(*found)


def build(folder: Path) -> Path:
    """The kernels with calls before each access, the emulation without, and the counter."""
    csrc = ROOT / "csrc"
    common = ["g++", *FLAGS, f"-I{csrc}", f"-I{csrc / 'kernels'}", f"-I{include_dir()}", "-DDSK_EMULATED"]
    common += ['-DDSK_TARGET="counted"', '-DDSK_BUILD="traffic.py"', "-DDSK_EMULATE_WARP=32"]
    objects = []
    for source in (*csrc.glob("kernels/**/*.cu"), *csrc.glob("emulation/*.cpp"), ROOT / "benchmarks" / "traffic.cpp"):
        made = folder / f"{source.parent.name}_{source.name}.o"
        if not made.exists():
            counted = COUNTED if source.suffix == ".cu" else ()
            subprocess.run([*common, *counted, "-x", "c++", "-c", str(source), "-o", str(made)], check=True)
        objects.append(str(made))
    library = folder / "libtraffic.so"
    subprocess.run(["g++", "-shared", "-pthread", "-o", str(library), *objects], check=True)
    return library


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def calls(ops: KernelOps) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """(title, op, arguments) of what is counted: all bfloat16, weights too."""
    for rows, columns in ((64, 1024), (64, 4096), (32, 16_384), (8, 40_000), (64, 1001)):
        x, dy, weight = normal(rows, columns), normal(rows, columns), normal(columns)
        mean, rstd = normal(rows, dtype=torch.float32), normal(rows, dtype=torch.float32)
        target = torch.arange(rows) * 7919 % columns
        size = f"[{rows}, {columns}]"
        yield f"rms_norm_forward {size}", ops.rms_norm_forward, {"x": x, "weight": weight, "eps": 1e-6}
        add = {"x": x, "residual": dy, "weight": weight, "eps": 1e-6}
        yield f"add_rms_norm_forward {size}", ops.add_rms_norm_forward, add
        statistics = {"mean": mean, "rstd": rstd}
        yield (
            f"rms_norm_backward {size}",
            ops.rms_norm_backward,
            {"dy": dy, "x": x, "weight": weight, "rstd": rstd},
        )
        layer = {"x": x, "weight": weight, "bias": weight.clone(), "eps": 1e-5}
        yield f"layer_norm_forward {size}", ops.layer_norm_forward, layer
        yield f"layer_norm_backward {size}", ops.layer_norm_backward, {"dy": dy, "x": x, "weight": weight, **statistics}
        seen = {"x": x, "mask": None, "lengths": None, "scale": 1.0, "causal": False}
        yield f"softmax_forward {size}", ops.softmax_forward, seen
        yield f"softmax_backward {size}", ops.softmax_backward, {"dy": dy, "y": x, "scale": 1.0}
        options = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0}
        yield f"cross_entropy_forward {size}", ops.cross_entropy_forward, {"logits": x, "target": target, **options}
        backward = {"dlosses": mean, "logits": x, "target": target, "lse": rstd, **options}
        yield f"cross_entropy_backward {size}", ops.cross_entropy_backward, backward
        both = {"logits": x.clone(), "target": target, "factor": 1.0, **options}
        yield f"cross_entropy_ {size}", ops.cross_entropy_, both
        gates = {"gate": x, "up": dy, "kind": "silu"}
        yield f"gated_activation {size}", ops.gated_activation, gates
        yield f"gated_activation_backward {size}", ops.gated_activation_backward, {"dy": x.clone(), **gates}
    heads, table = normal(1, 64, 32, 128), normal(64, 64, dtype=torch.float32)
    turn = {"x": heads, "cos": table, "sin": table.clone(), "positions": torch.arange(64).view(1, 64)}
    yield "rotary [64, 32, 128]", ops.rotary, {**turn, "interleaved": False, "inverse": False}


def report(traffic: Traffic, title: str, run: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """One line."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    traffic.clear()
    outputs = as_tuple(run(**arguments))
    tensors |= {f"out{index}": value for index, value in enumerate(outputs)}
    parts, moved, least, accesses = [], 0, 0, 0
    largest = max(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        read, written, times = traffic.of(tensor)
        for word, bytes_moved in (("read", read), ("written", written)):
            if bytes_moved:
                parts.append(f"{name} {word} {bytes_moved / tensor.nbytes:.2f}")
        if tensor.nbytes == largest:  # rows; the others are served by caches
            moved, accesses = moved + read + written, accesses + times
            least += tensor.nbytes * ((read > 0 and name in arguments) + (written > 0))
    return f"{title:38} rows {moved / least:.3f}  bytes an access {moved / accesses:4.1f}  | {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="kept between runs; a temporary one by default")
    asked = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = build(folder)
        traffic, ops = Traffic(path), KernelOps(load(path), HostLauncher())
        for title, run, arguments in calls(ops):
            sys.stdout.write(report(traffic, title, run, arguments) + "\n")


if __name__ == "__main__":
    main()
