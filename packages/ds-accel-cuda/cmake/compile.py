"""Compiles one .cu file, and keeps what ptxas says of its kernels beside the object.

python compile.py OBJECT NVCC ARGUMENT...
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """The compiler's own exit status."""
    target, command = Path(sys.argv[1]), sys.argv[2:]
    done = subprocess.run([*command, "-o", str(target)], stderr=subprocess.PIPE, text=True, check=False)
    said = done.stderr.splitlines()
    # ptxas speaks in lines that begin so, and in one indented line below the name of a function.
    spoken = [line for line in said if line.startswith("ptxas info") or " bytes stack frame" in line]
    sys.stderr.writelines(f"{line}\n" for line in said if line not in spoken)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spoken.append(f"seconds {used.ru_utime + used.ru_stime:.1f}")
    target.with_suffix(".ptxas").write_text("\n".join(spoken) + "\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
