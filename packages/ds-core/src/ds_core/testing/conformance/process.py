"""`WorkerProcess`: one worker as its parent sees it — requests, answers with a deadline, stacks, the end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import psutil

__all__ = ["Died", "Hung", "WorkerProcess"]

_COMMAND = """\
import sys
sys.path[:] = [path for path in sys.path if path]  # not the working directory: what is installed is tested
from ds_core.testing.conformance.worker import main
main(*sys.argv[1:])
"""
_TAIL_BYTES = 6000
_STACK_S = 1.0


class Died(Exception):
    """The worker ended without an answer; the text says how."""


class Hung(Exception):
    """The worker did not answer in time."""


class WorkerProcess:
    """A worker of its own session, so that what it starts ends with it.

    Args:
        name: the accelerator.
        env: variables on top of this process's.
        library: a library of kernels to test in place of the accelerator.
    """

    def __init__(self, name: str, env: Mapping[str, str], library: Path | None = None) -> None:
        words = [name] if library is None else [name, str(library.resolve())]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={"OMP_NUM_THREADS": "1", **os.environ, **env},  # as a rank has it: the host has other things to do
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader: threading.Thread = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, request: Mapping[str, Any]) -> None:
        """Sends a request."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, OSError):  # told by `answer`
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self, limit_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            Died: there will be none.
            Hung: it did not come within `limit_s`.
        """
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            raise Hung(f"no answer within {limit_s:g} s") from None
        if line is None:
            raise Died(self._how_it_ended())
        message: dict[str, Any] = json.loads(line)
        return message

    def stacks(self) -> str:
        """What the worker wrote last, with the stacks of all its threads."""
        if hasattr(signal, "SIGUSR1") and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)
                time.sleep(_STACK_S)
        return self.tail()

    def tail(self) -> str:
        """The last lines of what the worker wrote to standard output and standard error."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip()

    def stop(self) -> None:
        """Ends the worker and whatever it started."""
        if self._process.poll() is None:
            self.ask({"end": True})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3.0)
        self.kill()

    def kill(self) -> None:
        """Ends the worker and whatever it started, at once."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait(10.0)
        self._reader.join(5.0)
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "it closed its output and goes on"
        if code >= 0:
            return f"the process ended with exit code {code}"
        try:
            return f"the process was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"the process was ended by signal {-code}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)
