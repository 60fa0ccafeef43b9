"""Finds a CUDA compiler and what it needs, and says so as JSON; run by CMake with the Python that builds.

    python toolkit.py HOST_COMPILER [NVCC]

Looked for, in this order: NVCC, the environment variable CUDACXX, ``nvcc`` on PATH, and what pip installed into this
Python: ``nvidia-cuda-nvcc``, ``nvidia-cuda-crt``, ``nvidia-nvvm``, ``nvidia-cuda-runtime`` and ``nvidia-cuda-cccl``.
The one that is found must compile a kernel with the host's compiler, or ``reason`` says what it said.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_TRIAL = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
__global__ void trial(float* x) { x[threadIdx.x] = __half2float(__float2half_rn(x[threadIdx.x])); }
int main() { return cudaLaunchKernel((const void*)trial, 1, 1, nullptr, 0, 0); }
"""


def candidates(asked: str) -> list[str]:
    """Paths of compilers, best first."""
    if asked:
        return [asked]
    return [path for path in (os.environ.get("CUDACXX"), shutil.which("nvcc"), *from_pypi()) if path]


def from_pypi() -> list[str]:
    """Compilers that pip installed into this Python, newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []
    return [str(path) for folder in folders for path in sorted(folder.glob("*/bin/nvcc"), reverse=True)]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """The command's output as text, both streams together."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def root_of(nvcc: str) -> Path:
    """The toolkit's folder, by what the compiler itself says: ``nvcc`` may be a script or a link to one elsewhere."""
    said = run(nvcc, "--dryrun", "-c", "trial.cu").stdout
    top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parent.parent


def cudart_of(root: Path) -> str:
    """The static runtime library."""
    places = ("lib64", "lib", "targets/*/lib")
    found = [path for place in places for path in sorted(root.glob(f"{place}/libcudart_static.a"))]
    return str(found[0]) if found else ""


def trial(nvcc: str, host: str, arch: str) -> str:
    """Empty if it compiles a kernel, else what it said."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cu"
        source.write_text(_TRIAL)
        done = run(nvcc, "-ccbin", host, f"-arch={arch}", "-c", str(source), "-o", str(source.with_suffix(".o")))
    return "" if done.returncode == 0 else " ".join(done.stdout.split())[:300]


def describe(nvcc: str, host: str) -> dict[str, object]:
    """What CMake has to know of a compiler."""
    try:
        version = re.search(r"release [\d.]+, V([\d.]+)", run(nvcc, "--version").stdout)
    except OSError as error:
        return {"reason": f"{nvcc} cannot be run: {error}"}
    if version is None:
        return {"reason": f"{nvcc} is no CUDA compiler: `{nvcc} --version` names no release"}
    archs = re.findall(r"compute_(\d+)\b", run(nvcc, "--list-gpu-arch").stdout)
    root = root_of(nvcc)
    cudart = cudart_of(root)
    reason = trial(nvcc, host, f"sm_{archs[-1]}") if archs else f"{nvcc} lists no architecture"
    if not reason and not cudart:
        reason = f"{root} has no libcudart_static.a; install nvidia-cuda-runtime beside the compiler"
    return {
        "reason": reason and f"CUDA {version[1]}, {nvcc}: {reason}",
        "nvcc": nvcc,
        "version": version[1],
        "major": version[1].split(".")[0],
        "root": str(root),
        "cudart": cudart,
        "archs": archs,
    }


def main() -> None:
    host, asked = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    found = [describe(nvcc, host) for nvcc in candidates(asked)[:3]]
    usable = [one for one in found if not one["reason"]]
    if usable:
        best = usable[0]
    elif found:
        best = {"reason": "; ".join(str(one["reason"]) for one in found)}
    else:
        best = {"reason": "no CUDA compiler: nvcc is not on PATH, and the building Python has no nvidia-cuda-nvcc"}
    sys.stdout.write(json.dumps(best))


if __name__ == "__main__":
    main()
