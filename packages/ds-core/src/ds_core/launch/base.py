"""The contract of a launcher: turn a `LaunchSpec` into a command, run it, and end it cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import ClassVar

from ds_core.errors import LaunchError, Preempted
from ds_core.launch.listening import listens
from ds_core.launch.outcome import RanksFailedError, explain_exit, read_failures
from ds_core.launch.spec import LaunchSpec

__all__ = ["REPORT_VARIABLE", "Launcher"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
REPORT_VARIABLE = "DS_LAUNCH_REPORT"
"""Names the file in which the agent leaves the ranks' failures for `Launcher.run`."""


class Launcher(ABC):
    """Starts the ranks of one job. A launcher for several machines implements `command` and `environment`."""

    name: ClassVar[str] = ""

    def check(self, spec: LaunchSpec) -> None:
        """Raise `LaunchError` when this launcher cannot serve the job, before anything starts."""
        spec.validate()

    def nproc(self, spec: LaunchSpec) -> int:
        """Ranks on each machine; as many as the accelerator has devices here when the job does not say."""
        if spec.nproc is not None:
            return spec.nproc
        from ds_core.accelerator import select

        return max(1, select().device_count())

    def world(self, spec: LaunchSpec) -> int:
        """Ranks of the whole job; machines whose devices are not known count as this one."""
        if not spec.hosts:
            return self.nproc(spec) * spec.nnodes
        return sum(len(slots) or self.nproc(spec) for slots in spec.hosts.values())

    @abstractmethod
    def command(self, spec: LaunchSpec) -> list[str]:
        """The command that starts the ranks and ends when they do."""

    @abstractmethod
    def environment(self, spec: LaunchSpec, environ: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the command, made from `environ`."""

    def run(self, spec: LaunchSpec) -> None:
        """Start the ranks and wait for them. Signals are passed on; a second SIGINT ends the ranks at once.

        Raises:
            RanksFailedError: a rank failed, or the job was interrupted; it has the exit code. That is 75 when the ranks
                saved their state and stopped (`Preempted`).
            LaunchError: the job could not be started.
        """
        self.check(spec)
        with tempfile.TemporaryDirectory(prefix="ds-run-") as folder:
            report = Path(folder) / "failures.json"
            environ = self.environment(spec, os.environ)
            environ[REPORT_VARIABLE] = str(report)
            environ.setdefault("DS_LAUNCH_SCRATCH", folder)
            code, received = self._supervise(spec, environ)
            failures = read_failures(report)
        if code == Preempted.exit_code and not failures:
            raise RanksFailedError("the ranks saved their state and stopped; start the job again to go on", code)
        if received is not None:
            name = signal.Signals(received).name
            raise RanksFailedError(f"stopped by {name}; the ranks have ended", 128 + received, failures)
        if failures:
            hint = "only on the console; --log-dir DIR keeps a file for each rank"
            raise RanksFailedError.of(failures, self.world(spec), hint)
        if code:
            status = code if code > 0 else 128 - code
            raise RanksFailedError(f"the launcher's agent {explain_exit(code)}; its message is above", status)

    def deliver(self, spec: LaunchSpec, process: subprocess.Popen[bytes], number: int) -> None:
        """Hand a signal on to the ranks, through the running command."""
        process.send_signal(number)

    def end_now(self, spec: LaunchSpec, process: subprocess.Popen[bytes]) -> None:
        """End the ranks without waiting: they notice that their parent is gone and end soon."""
        process.kill()

    def hears(self, process: subprocess.Popen[bytes], number: int) -> bool:
        """Whether the running command handles this signal already; one that does not would be ended by it."""
        return listens(process.pid, number)

    def finish(self, spec: LaunchSpec, process: subprocess.Popen[bytes]) -> None:
        """Tidy up after the command has ended; called while signals are still handled. Nothing where it has no need."""
        del spec, process

    def _supervise(self, spec: LaunchSpec, environ: Mapping[str, str]) -> tuple[int, int | None]:
        """Run the command in a session of its own; its exit code, and the signal that was to end it meanwhile."""
        command = self.command(spec)
        received: list[int] = []
        started: list[subprocess.Popen[bytes]] = []

        def forward(number: int, _frame: FrameType | None) -> None:
            name, is_first = signal.Signals(number).name, not received
            received.append(number)
            for process in started:
                if process.poll() is not None:
                    continue
                if is_first:
                    sys.stderr.write(f"ds run: {name}: waiting for the ranks to end\n")
                    self.deliver(spec, process, number)
                elif number == signal.SIGTERM:  # schedulers send several, and the ranks may be saving
                    sys.stderr.write("ds run: SIGTERM again: still waiting for the ranks; SIGINT ends them at once\n")
                else:
                    self.end_now(spec, process)

        def pass_on(number: int, _frame: FrameType | None) -> None:
            for process in started:
                if self.hears(process, number):
                    self.deliver(spec, process, number)
                else:
                    sys.stderr.write(
                        f"ds run: {signal.Signals(number).name} came before there were ranks: not passed on\n"
                    )

        # Before the start: a signal that we were started with ignored (a shell's `&`) would stay ignored in the agent.
        with _handling(ENDING, forward), _handling(PASSED_ON, pass_on):
            try:
                # A session of its own: Ctrl-C in the terminal must reach the ranks once, by way of us, not twice.
                process = subprocess.Popen(command, env=dict(environ), start_new_session=True)
            except OSError as error:
                raise LaunchError(f"cannot start {command[0]}: {error}") from error
            started.append(process)
            if received:
                self.deliver(spec, process, received[0])
            code = process.wait()
            self.finish(spec, process)
        return code, received[0] if received else None


@contextmanager
def _handling(numbers: Sequence[signal.Signals], handler: signal.Handlers | object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
