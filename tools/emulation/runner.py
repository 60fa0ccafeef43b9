"""The program that calls kernels under an emulator, and the messages to it; csrc/emulation/runner.cpp is the other end.

A call is a head (magic, bytes of the name, threads, buffers, pointers, nothing), the name, the buffers (bytes, address
here, contents; the argument struct is the first), and the pointers (in which buffer, to which buffer, at which byte, to
which byte). The answer is a status, the number of a buffer that was overrun or -1, and the contents of all buffers but
the first. All numbers are little-endian, as on every processor we build for.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Buffer", "Pointer", "Runner", "RunnerError"]

_MAGIC = 0x524B5344
_HEAD = struct.Struct("<IIiIII")
_BUFFER = struct.Struct("<QQ")
_POINTER = struct.Struct("<IIQQ")
_ANSWER = struct.Struct("<ii")


class RunnerError(RuntimeError):
    """The kernel refused the call, wrote where it must not, or the program died (an instruction it does not have)."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of a call. `address` is where it lies here; there it is aligned alike."""

    contents: bytes
    address: int


@dataclass(frozen=True, slots=True)
class Pointer:
    """Byte `at` of buffer `within` holds the address of byte `offset` of buffer `to`."""

    within: int
    to: int
    at: int
    offset: int


class Runner:
    """One running program with one library loaded; a context manager.

    Args:
        command: the program, with the emulator before it; without the library.
        library: of kernels.
        threads: what kernels are told.
    """

    def __init__(self, command: Sequence[str], library: Path, *, threads: int = 3) -> None:
        self._what = f"{library.name} under {' '.join(command[:-1]) or 'no emulator'}"
        self._threads = threads
        self._process = subprocess.Popen([*command, str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, name: str, buffers: Sequence[Buffer], pointers: Sequence[Pointer]) -> list[bytes]:
        """Runs a kernel and returns what the buffers hold afterwards, all but the first.

        Raises:
            RunnerError: see there.
        """
        out, encoded = self._pipe(self._process.stdin), name.encode()
        try:
            out.write(_HEAD.pack(_MAGIC, len(encoded), self._threads, len(buffers), len(pointers), 0) + encoded)
            for buffer in buffers:
                out.write(_BUFFER.pack(len(buffer.contents), buffer.address) + buffer.contents)
            for p in pointers:
                out.write(_POINTER.pack(p.within, p.to, p.at, p.offset))
            out.flush()
        except BrokenPipeError:
            pass  # the answer, which is missing, says more
        status, overrun = _ANSWER.unpack(self._read(_ANSWER.size, name))
        after = [self._read(len(buffer.contents), name) for buffer in buffers[1:]]
        if status != 0:
            raise RunnerError(f"{name} of {self._what} returned status {status}")
        if overrun >= 0:
            where = "its workspace" if overrun == len(buffers) else f"buffer {overrun} of {len(buffers)}"
            raise RunnerError(f"{name} of {self._what} wrote before or after {where}")
        return after

    def close(self) -> None:
        """Ends the program."""
        for pipe in (self._process.stdin, self._process.stdout):
            self._pipe(pipe).close()
        self._process.wait(10)

    def _read(self, size: int, name: str) -> bytes:
        read = self._pipe(self._process.stdout).read(size)
        if len(read) < size:
            raise RunnerError(f"{name} of {self._what}: the program ended with {self._process.wait(10)}")
        return read

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None, "both ends were asked for"
        return pipe

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
