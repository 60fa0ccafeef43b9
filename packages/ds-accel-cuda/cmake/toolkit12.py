"""Puts a CUDA 12 toolkit together from PyPI for Clang to use, and says what CMake has to know as JSON.

    python toolkit12.py CLANG FOLDER

PyPI's packages for CUDA 12 have ptxas, libdevice, headers and the static runtime, but neither nvcc nor its parts that
read C++ (up to 12.9.86, the last); Clang, 19 or newer, reads CUDA by itself and calls the rest. Needed in this Python:
``nvidia-cuda-nvcc-cu12``, ``nvidia-cuda-runtime-cu12``, ``nvidia-cuda-cccl-cu12``, and for ``fatbinary``, which they
lack, the ``nvidia-cuda-nvcc`` of CUDA 13.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

from toolkit import run

_FATBINARY = """#!{python}
import re, subprocess, sys

def turned(argument):  # the option of CUDA 12, which Clang knows, into that of CUDA 13
    found = re.fullmatch(r"-?-image=profile=(sm|compute)_(\\w+),file=(.*)", argument)
    kind = "elf" if found and found[1] == "sm" else "ptx"
    return f"--image3=kind={{kind}},sm={{found[2]}},file={{found[3]}}" if found else argument

sys.exit(subprocess.run(["{real}", *map(turned, sys.argv[1:])], check=False).returncode)
"""
_TRIAL = """
#include <cuda_fp16.h>
__global__ void trial(float* x) { x[threadIdx.x] = __half2float(__float2half_rn(x[threadIdx.x])); }
"""


def package(name: str) -> Path | None:
    """The folder of one of NVIDIA's packages in this Python."""
    spec = importlib.util.find_spec("nvidia")
    places = [Path(place) / name for place in (spec.submodule_search_locations or [])] if spec is not None else []
    return next((place for place in places if place.is_dir()), None)


def link(source: Path, folder: Path) -> None:
    """Links every file below `source` to the same place below `folder`."""
    for path in source.rglob("*"):
        target = folder / path.relative_to(source)
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)


def put_together(folder: Path) -> str:
    """Empty, or what is missing."""
    parts = {name: package(name) for name in ("cuda_nvcc", "cuda_runtime", "cuda_cccl")}
    missing = [f"nvidia-{name.replace('_', '-')}-cu12" for name, place in parts.items() if place is None]
    cu13 = package("cu13")
    real = cu13 / "bin" / "fatbinary" if cu13 is not None else shutil.which("fatbinary")
    if real is None or not Path(real).is_file():
        missing.append("nvidia-cuda-nvcc (of CUDA 13, for fatbinary)")
    if missing:
        return f"the building Python lacks {', '.join(missing)}"
    shutil.rmtree(folder, ignore_errors=True)
    for place in parts.values():
        assert place is not None
        for name in ("bin", "include", "lib", "nvvm"):
            link(place / name, folder / name)
    shim = folder / "bin" / "fatbinary"
    shim.write_text(_FATBINARY.format(python=sys.executable, real=real))
    shim.chmod(0o755)
    (folder / "version.txt").write_text("CUDA Version 12.9\n")
    # Clang's own headers include this one of cuRAND, whatever is compiled.
    (folder / "include" / "curand_mtgp32_kernel.h").touch()
    return ""


def describe(clang: str, folder: Path) -> dict[str, object]:
    """What CMake has to know."""
    reason = put_together(folder)
    ptxas = "" if reason else run(str(folder / "bin" / "ptxas"), "--version").stdout
    version = re.search(r"release [\d.]+, V([\d.]+)", ptxas)
    if not reason:
        source = folder / "trial.cu"
        source.write_text(_TRIAL)
        flags = ["-x", "cuda", f"--cuda-path={folder}", "--offload-arch=sm_70", "-Wno-unknown-cuda-version"]
        done = run(clang, *flags, "-c", str(source), "-o", str(source.with_suffix(".o")))
        reason = "" if done.returncode == 0 else f"{clang}: {' '.join(done.stdout.split())[:300]}"
    return {
        "reason": reason and f"CUDA 12 with Clang: {reason}",
        "nvcc": clang,
        "version": version[1] if version else "",
        "major": "12",
        "root": str(folder),
        "cudart": str(folder / "lib" / "libcudart_static.a"),
        "archs": ["70", "75", "80", "86", "89", "90"],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe(sys.argv[1], Path(sys.argv[2]))))
