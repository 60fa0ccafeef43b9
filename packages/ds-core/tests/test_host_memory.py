"""What the host's allocator is asked for, seen from the outside: in the memory of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, torch
from ds_core.accelerator import HostAccelerator

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

host = HostAccelerator()
host.prepare()
before = resident()
tensors = [torch.ones(1 << 18) for _ in range(200)]  # 1 MiB each: from the heap
last = torch.ones(1 << 19)  # and this one above them all: too large for a gap below
del tensors
freed = resident()
host.empty_cache()
print(freed - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("switch", "gives_back"), [("", True), ("default", False)])
def test_freed_memory_goes_back_to_the_system_unless_the_user_keeps_the_allocator_as_it_is(
    switch: str, gives_back: bool
) -> None:
    environ = {"DS_HOST_MALLOC": switch, "MALLOC_TOP_PAD_": "0", "OMP_NUM_THREADS": "1"}
    if not gives_back:
        environ["MALLOC_MMAP_THRESHOLD_"] = str(4 << 20)  # the heap serves it, as with our own setting
        environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 30)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True, timeout=120
    )
    kept, left = (int(figure) for figure in run.stdout.split())
    assert kept > 150
    assert (left < 50) == gives_back
