"""What was built: nothing of torch or of CUDA's shared runtime is linked, one symbol is exported, no kernel spills."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path

import pytest

from ds_accel_cuda.libraries import built, resources
from ds_core.ops.native import load

OBJDUMP = shutil.which("objdump")
CUDA = built().cuda
NO_CUDA = f"no library for NVIDIA GPUs: {built().left_out.get('cuda')}"
EVERY = [*(build.path for build in CUDA.values()), *built().emulated.values()]

needs_objdump = pytest.mark.skipif(OBJDUMP is None, reason="objdump (binutils) is not installed")
needs_cuda = pytest.mark.skipif(not CUDA, reason=NO_CUDA)

SANITIZERS = {"libasan.so.8", "libasan.so.6", "libubsan.so.1"}
ALLOWED = {
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "libstdc++.so.6",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}


@cache
def objdump(path: Path, *arguments: str) -> str:
    assert OBJDUMP is not None
    return subprocess.run([OBJDUMP, *arguments, str(path)], check=True, capture_output=True, text=True).stdout


def name_of(path: Path) -> str:
    return path.stem


def test_the_record_names_every_library_of_the_wheel() -> None:
    assert {path.name for path in EVERY} == {path.name for path in EVERY[0].parent.glob("*.so*")}


@needs_objdump
@pytest.mark.parametrize("path", EVERY, ids=name_of)
def test_neither_torch_nor_a_shared_cuda_runtime_is_linked(path: Path) -> None:
    needed = set(re.findall(r"NEEDED\s+(\S+)", objdump(path, "-p")))
    assert needed <= ALLOWED | (SANITIZERS if path.stem.endswith("_asan") else set())
    undefined = re.findall(r"\*UND\*.*?\s(\S+)$", objdump(path, "-T"), re.MULTILINE)
    assert not [name for name in undefined if re.search(r"c10|N?2at\d|torch|^cu[A-Z]|^cuda", name)]
    assert not re.search(r"RPATH|RUNPATH", objdump(path, "-p"))


@needs_objdump
@pytest.mark.parametrize("path", EVERY, ids=name_of)
def test_only_the_descriptor_and_the_questions_of_the_emulation_are_exported(path: Path) -> None:
    exported = {line.split()[-1] for line in objdump(path, "-T").splitlines() if re.search(r" [gwu].* \.\w+", line)}
    emulated = {f"dsk_emulation_{what}" for what in ("error", "launches", "set_order")}
    if "faults" in path.stem:
        assert exported == emulated | {"dsk_emulation_fault"}
    else:
        assert exported == {"ds_kernel_descriptor"} | (emulated if "emulated" in path.stem else set())


@needs_cuda
@pytest.mark.parametrize("major", CUDA)
def test_a_library_for_gpus_loads_without_one_and_has_the_ops_of_the_emulated(major: int) -> None:
    library = load(CUDA[major].path)
    assert library.target.split() == [*CUDA[major].sass, CUDA[major].ptx]
    assert set(library.kernels) == set(load(built().emulated["plain"]).kernels)


def code_in(path: Path) -> set[tuple[str, int]]:
    """("sass" or "ptx", architecture) of every piece of device code; cuobjdump, which is seldom installed, lists them.

    A container begins with a magic number, the size of its header and that of what follows; a piece with its kind, the
    size of its header, its own size, and 28 bytes in its architecture.
    """
    data, found, place = path.read_bytes(), set(), 0
    magic = struct.pack("<IHH", 0xBA55ED50, 1, 16)
    while (place := data.find(magic, place)) >= 0:
        (size,) = struct.unpack_from("<Q", data, place + 8)
        piece, end = place + 16, place + 16 + size
        while piece < end:
            kind, _, header, own = struct.unpack_from("<HHIQ", data, piece)
            (arch,) = struct.unpack_from("<I", data, piece + 28)
            found.add(({1: "ptx", 2: "sass"}[kind], arch))
            piece += header + own
        place = end
    return found


@needs_cuda
@pytest.mark.parametrize("major", CUDA)
def test_the_code_in_a_library_is_for_the_recorded_architectures(major: int) -> None:
    build = CUDA[major]
    want = {("sass", int(arch.removeprefix("sm_"))) for arch in build.sass}
    assert code_in(build.path) == want | {("ptx", int(build.ptx.removeprefix("compute_")))}


# Clang allots registers less well than nvcc for the narrow dtypes; such a library says so in its resources.
@needs_cuda
@pytest.mark.parametrize("major", [major for major, build in CUDA.items() if build.compiler == "nvcc"])
def test_no_kernel_spills_registers_to_memory(major: int) -> None:
    rows = resources(major)
    assert {row.arch for row in rows} == set(CUDA[major].sass)
    assert [row for row in rows if row.spill_store_bytes or row.spill_load_bytes] == []


@needs_cuda
@pytest.mark.parametrize("major", CUDA)
def test_every_kernel_fits_a_block_of_its_size_on_every_device(major: int) -> None:
    assert [row for row in resources(major) if row.shared_bytes > 48 * 1024 or row.registers > 255] == []
