"""Makes one JSON of what ptxas said of every kernel for every architecture.

python resources.py OUT FOLDER...
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
# nvcc names the anonymous namespace of a file by a hash and the file.
_ANONYMOUS = re.compile(r"_GLOBAL__N__[0-9a-z_]+::|\(anonymous namespace\)::")


def read(path: Path) -> list[dict[str, object]]:
    """The kernels of one file."""
    kernels: list[dict[str, object]] = []
    for line in path.read_text().splitlines():
        if entry := _ENTRY.search(line):
            kernels.append({"kernel": entry[1], "file": path.stem, "arch": f"sm_{entry[2]}", "shared_bytes": 0})
        elif not kernels:
            continue
        elif (frame := _FRAME.search(line)) and "stack_bytes" not in kernels[-1]:
            keys = ("stack_bytes", "spill_store_bytes", "spill_load_bytes")
            kernels[-1].update(zip(keys, map(int, frame.groups()), strict=True))
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            kernels[-1].update(registers=int(used[1]), shared_bytes=int(shared[1]) if shared else 0)
    return kernels


def readable(names: list[str]) -> dict[str, str]:
    """Mangled name to the one in the source, without parameters; unchanged where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    said = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = (_ANONYMOUS.sub("", line).replace("dsk::", "") for line in said.splitlines())
    return {name: _without_parameters(text) for name, text in zip(names, plain, strict=True)}


def _without_parameters(text: str) -> str:
    text = text.removeprefix("void ")
    depth = 0
    for place, letter in enumerate(text):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return text[:place]
    return text


def main() -> None:
    out, *folders = map(Path, sys.argv[1:])
    files = sorted(path for folder in folders for path in folder.glob("*.ptxas"))
    kernels = [kernel for path in files for kernel in read(path)]
    names = readable(sorted({str(kernel["kernel"]) for kernel in kernels}))
    for kernel in kernels:
        kernel["kernel"] = names[str(kernel["kernel"])]
    kernels.sort(key=lambda kernel: (kernel["file"], kernel["kernel"], int(re.sub(r"\D", "", str(kernel["arch"])))))
    out.write_text(json.dumps({"kernels": kernels}, indent=0) + "\n")


if __name__ == "__main__":
    main()
