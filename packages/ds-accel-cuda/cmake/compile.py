"""Compiles one .cu file, and keeps what ptxas says of its kernels beside the object.

python compile.py OBJECT NVCC ARGUMENT...
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    """The compiler's own exit status."""
    target, command = Path(sys.argv[1]), sys.argv[2:]
    began = time.monotonic()
    done = subprocess.run([*command, "-o", str(target)], stderr=subprocess.PIPE, text=True, check=False)
    said = done.stderr.splitlines()
    # ptxas speaks in lines that begin so, and in one indented line below the name of a function.
    spoken = [line for line in said if line.startswith("ptxas info") or " bytes stack frame" in line]
    sys.stderr.writelines(f"{line}\n" for line in said if line not in spoken)
    spoken.append(f"seconds {time.monotonic() - began:.2f}")
    target.with_suffix(".ptxas").write_text("\n".join(spoken) + "\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
