"""The emulated kernels under AddressSanitizer and UBSan: they stay in their memory, and one that does not is caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ds_accel_cuda.libraries import built, emulated
from ds_core.testing import op_cases

PROGRAM = Path(__file__).with_name("sanitized_cases.py")
PARTS = 3
COMPILER = shutil.which("g++")

pytestmark = [
    pytest.mark.skipif(
        "sanitized" not in built().emulated, reason=f"no sanitized library: {built().left_out.get('sanitized')}"
    ),
    pytest.mark.skipif(COMPILER is None, reason="g++, which knows where the sanitizer's library is, is not installed"),
]


def runtime() -> str:
    """What has to be loaded first: the sanitizer, and libstdc++, whose throw it looks for when it starts."""
    assert COMPILER is not None
    asked = ([COMPILER, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so"))
    return " ".join(subprocess.run(one, check=True, capture_output=True, text=True).stdout.strip() for one in asked)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "LD_PRELOAD": runtime(),
        # Python keeps memory to its end on purpose; with malloc each of its objects has a red zone, too.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=170)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_case_stays_within_its_memory(part: int) -> None:
    names = sorted(emulated().kernels)[part::PARTS]
    done = run("cases", *names)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name in names for word in (name, str(len(op_cases.cases(name))))]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("beyond_shared", "index 128 out of bounds"),
        ("beyond_dynamic_shared", "use-after-poison"),
        ("beyond_global", "heap-buffer-overflow"),
    ],
)
def test_an_access_outside_ends_the_process(name: str, kind: str) -> None:
    done = run("fault", str(built().emulated["faults_asan"]), name)
    assert done.returncode != 0
    assert kind in done.stderr and "libdsk_faults_asan.so" in done.stderr, done.stderr[-3000:]


def test_an_error_of_the_emulation_leaves_no_trace_in_the_sanitizer() -> None:
    done = run("fault", str(built().emulated["faults_asan"]), "barrier_in_a_branch")
    assert (done.returncode, done.stdout) == (0, "barrier_in_a_branch returned 4\n"), done.stderr[-3000:]
