"""`Runner`: runs cases in a worker process, one after the other, and outlives every worker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_core.errors import AcceleratorError
from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.outcome import Filter, Outcome, Result
from ds_core.testing.conformance.process import Died, Hung, WorkerProcess

__all__ = ["Runner"]

START_S = 180.0
"""What a process may take to start, and what it may take to import torch with its backends and make the device."""


class Runner:
    """Cases of one accelerator, run in a worker that is reused until it dies, hangs or loses the device.

    Args:
        name: the accelerator, short or ``wheel:name``.
        timeout_s: limit of an ordinary case; some declare a multiple of it.
        env: variables of the workers on top of this process's.
        library: a library of kernels to test in place of the accelerator.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        library: Path | None = None,
    ) -> None:
        self.name: str = name
        self.timeout_s: float = timeout_s
        self.workers_started: int = 0
        self._env: dict[str, str] = dict(env or {})
        self._library: Path | None = library
        self._worker: WorkerProcess | None = None
        self._lost: Filter | None = None

    def run(self, case: Case) -> Result:
        """What became of the case. Never raises for what the device does."""
        if self._lost is not None and case.needs.device:
            return Result(case.id, case.level, Outcome.FILTERED, reason=self._lost.text, filter=self._lost)
        worker = self._ready()
        started = time.perf_counter()
        limit_s = self.timeout_s * case.slowness
        deadline = started + limit_s
        entering = False
        worker.ask({"run": case.id})
        try:
            while True:
                message = worker.answer(max(0.0, deadline - time.perf_counter()))
                if "result" in message:
                    break
                entering = bool(message["entering"])
                deadline = time.perf_counter() + (START_S if entering else limit_s)
        except Died as how:
            result = self._failure(case, Outcome.CRASHED, str(how), worker.tail(), entering)
        except Hung:
            why = f"no end within {START_S if entering else limit_s:g} s"
            result = self._failure(case, Outcome.TIMEOUT, why, worker.stacks(), entering)
        else:
            if not message["healthy"]:
                self._drop()
            return Result.from_dict(message["result"])
        self._drop()
        result.seconds = time.perf_counter() - started
        return result

    def facts(self) -> dict[str, Any]:
        """What the device says of itself; with ``problem`` where it cannot be asked."""
        if self._lost is not None:
            return {"id": self.name, "usable": False, "reason": self._lost.text}
        try:
            worker = self._ready()
            worker.ask({"facts": True})
            while "facts" not in (message := worker.answer(self.timeout_s)):
                pass
        except (Died, Hung, AcceleratorError) as problem:
            self._drop()
            return {"id": self.name, "usable": False, "problem": str(problem)}
        found: dict[str, Any] = message["facts"]
        return found

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _ready(self) -> WorkerProcess:
        if self._worker is None:
            worker = WorkerProcess(self.name, self._env, self._library)
            self.workers_started += 1
            try:
                message = worker.answer(START_S)
            except (Died, Hung) as problem:
                tail = worker.tail()
                worker.kill()
                raise AcceleratorError(f"the worker for {self.name!r} did not start: {problem}\n{tail}") from None
            if not message["ready"]:
                worker.stop()
                raise AcceleratorError(message["error"])
            self._worker = worker
        return self._worker

    def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _failure(self, case: Case, outcome: Outcome, why: str, text: str, entering: bool) -> Result:
        where = "while the device was probed or made: " if entering else ""
        if entering:
            self._lost = Filter("not usable", "the device", f"the device is not usable here: {where}{why}")
        return Result(
            case.id,
            case.level,
            outcome,
            reason=where + why,
            expected="an answer",
            got=where + why,
            contract=case.contract,
            traceback=text,
        )
