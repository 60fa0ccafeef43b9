"""Where the kernel forbids io_uring, which is decided when a program runs: threads serve, and the report says why."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ds_accel_cpu.accelerator import CpuAccelerator
from ds_accel_cpu.aio import refusal
from ds_core.aio import ThreadedIO
from ds_core.config.aio import AioSection

FORBID = """
import ctypes

class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]

class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter))]

def forbid(call: int, code: int) -> None:
    '''Installs a seccomp filter: this system call fails with `code`, all others pass.'''
    libc = ctypes.CDLL(None, use_errno=True)
    load_number = Filter(0x20, 0, 0, 0)
    is_call = Filter(0x15, 0, 1, call)
    lines = (Filter * 4)(load_number, is_call, Filter(0x06, 0, 0, 0x00050000 | code), Filter(0x06, 0, 0, 0x7FFF0000))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(Program(4, lines)), 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""

USE = """
import sys, torch
from pathlib import Path
forbid(425, int(sys.argv[2]))  # io_uring_setup
from ds_accel_cpu import plugin
from ds_accel_cpu.aio import refusal
from ds_core.accelerator import select
from ds_core.aio import make_io
from ds_core.config.aio import AioSection
io = make_io(select("cpu"), AioSection())
out = torch.zeros(9999)
io.write(torch.ones(9999), Path(sys.argv[1]), 8).wait()
io.read(out, Path(sys.argv[1]), 8).wait()
io.close()
print(type(io).__name__, int(out.sum()))
print(refusal())
print([row for row in plugin.ds_report() if row.name == "file I/O"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the system call may have another number")
@pytest.mark.parametrize(("code", "words"), [(1, "EPERM"), (38, "ENOSYS")])
def test_a_seccomp_filter_leaves_the_work_to_threads(tmp_path: Path, code: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORBID + USE), str(tmp_path / "file"), str(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    used, reason, row = done.stdout.splitlines()
    assert used == "ThreadedIO 9999"
    assert f"the kernel refuses io_uring_setup ({words})" in reason
    assert "threads: " + reason in row and "status='warn'" in row


def test_the_accelerator_brings_an_engine_where_it_can() -> None:
    io = CpuAccelerator().async_io(AioSection())
    assert (io is None) == bool(refusal())
    if io is not None:
        assert not isinstance(io, ThreadedIO)
        io.close()


def test_files_and_device_memory_are_not_the_cpus_business() -> None:
    assert CpuAccelerator().async_io(AioSection(use_gds=True)) is None


@pytest.mark.skipif(bool(refusal()), reason="io_uring cannot be used here at all")
def test_rings_that_cannot_be_had_are_said_once_and_threads_serve(caplog: pytest.LogCaptureFixture) -> None:
    assert CpuAccelerator().async_io(AioSection.model_construct(queue_depth=1_000_000_000)) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("threads move tensors to and from files: no 1 io_uring of 1000000000 entries")
