from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from ds_core.errors import PluginError
from ds_core.ops import native

FUNCTION = ctypes.cast(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.c_void_p).value
HERE = Path("/lib.so")


class Made:
    """A descriptor in memory, as a library would export it; keeps everything alive that it points to."""

    def __init__(self, *names: bytes, **fields: object) -> None:
        self.entries = (native._Entry * max(len(names), 1))()
        for entry, name in zip(self.entries, names, strict=False):
            entry.name, entry.version, entry.flags, entry.run = name, 3, 1, FUNCTION
        values: dict[str, object] = {
            "magic": native.MAGIC,
            "abi_major": 1,
            "abi_minor": 0,
            "struct_size": ctypes.sizeof(native._Descriptor),
            "entry_size": ctypes.sizeof(native._Entry),
            "entry_count": len(names),
            "target": b"x86_64_v3",
            "build": b"gcc 12",
            "entries": ctypes.addressof(self.entries),
        }
        self.descriptor = native._Descriptor(**{**values, **fields})
        self.address = ctypes.addressof(self.descriptor)


def read(made: Made) -> native.KernelLibrary:
    return native.read_descriptor(made.address, HERE)


def test_a_descriptor_is_read() -> None:
    made = Made(b"adam_", b"sum_of_squares")
    library = read(made)
    assert (library.abi, library.target, library.build) == ((1, 0), "x86_64_v3", "gcc 12")
    assert list(library.kernels) == ["adam_", "sum_of_squares"]
    second = library.kernels["sum_of_squares"]
    assert (second.version, second.deterministic) == (3, True)
    assert second.address == ctypes.addressof(made.entries) + ctypes.sizeof(native._Entry)


def test_a_newer_minor_with_longer_structs_is_read() -> None:
    class Longer(ctypes.Structure):
        _fields_ = [("known", native._Entry), ("new", ctypes.c_uint64)]

    made = Made(abi_minor=7, struct_size=200, entry_size=ctypes.sizeof(Longer), entry_count=2)
    longer = (Longer * 2)()
    for entry, name in zip(longer, (b"one", b"two"), strict=True):
        entry.known.name, entry.known.run = name, FUNCTION
    made.descriptor.entries = ctypes.addressof(longer)
    assert list(read(made).kernels) == ["one", "two"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Made(magic=0x12345678), r"begins with 0x12345678, expected 0x314b5344"),
        (Made(abi_major=2), r"built for kernel ABI 2\.0; this ds-core reads 1\.1\. Upgrade ds-core\."),
        (Made(abi_major=0, abi_minor=9), r"ABI 0\.9; this ds-core reads 1\.1\. Upgrade the wheel that brings it"),
        (Made(struct_size=16), r"its descriptor has 16 bytes, ABI 1 needs at least \d+"),
        (Made(entry_size=8), r"a row of its op table has 8 bytes, ABI 1 needs at least \d+"),
        (Made(b"adam_", b"adam_"), r"lists 'adam_' twice"),
        (Made(b""), r"row 0 of its op table has no name or no function"),
    ],
)
def test_what_does_not_fit_is_refused(made: Made, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        read(made)
    assert str(HERE) in str(caught.value)


def test_a_null_descriptor_is_refused() -> None:
    with pytest.raises(PluginError, match="returned NULL"):
        native.read_descriptor(None, HERE)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"gone\.so does not exist. Reinstall the wheel"):
        native.load(tmp_path / "gone.so")


def test_a_file_that_is_no_library_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(PluginError, match=r"text\.so cannot be loaded: .+"):
        native.load(tmp_path / "text.so")


@pytest.mark.skipif(sys.platform == "win32", reason="the name of the library is another one")
def test_a_library_without_the_symbol_says_what_to_export() -> None:
    with pytest.raises(PluginError, match=r"exports no 'ds_kernel_descriptor'. Build it against ds_kernel.h"):
        native.load(__import__("_ctypes").__file__)


def test_a_bare_file_name_is_a_path_not_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "libc.so.6").write_text("not the system's")
    with pytest.raises(PluginError, match="cannot be loaded"):
        native.load("libc.so.6")


def test_the_header_is_shipped_and_states_the_abi_that_is_read() -> None:
    header = (native.include_dir() / "ds_kernel.h").read_text()
    assert f"#define DS_KERNEL_ABI_MAJOR {native.ABI[0]}" in header
    assert f"#define DS_KERNEL_ABI_MINOR {native.ABI[1]}" in header
    assert f"0x{native.MAGIC:X}u" in header
    for name, code in (
        ("F32", "float32"),
        ("BF16", "bfloat16"),
        ("F16", "float16"),
        ("F64", "float64"),
        ("I8", "int8"),
    ):
        assert f"DS_{name} = {native.DTYPE_CODES[code]}" in header
