"""The process behind the cases: makes the device, runs the cases it is told, and says what became of each.

Lines of JSON: on standard input ``{"run": "group/name"}``, ``{"facts": true}`` or ``{"end": true}``; on standard output
``{"ready": ...}``, ``{"entering": true|false}`` around what the vendor's probe and factory do, and a result for each
request. Whatever else the process writes goes to standard error, which the parent keeps in a file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

from ds_core.errors import DsError
from ds_core.ops.selftest import SWITCH
from ds_core.plugins import manager
from ds_core.testing.conformance.bench import Bench, LibraryBench
from ds_core.testing.conformance.case import Case
from ds_core.testing.conformance.kit import Broken, Filtered, Kit
from ds_core.testing.conformance.outcome import Outcome, Result
from ds_core.testing.conformance.registry import all_cases
from ds_core.testing.conformance.target import find_target

__all__ = ["main", "run_case"]


_ENGINES = 6
"""The first level whose cases make engines and process groups."""


def main(name: str, library: str = "") -> None:
    """Serves until the parent closes the pipe or says so."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a vendor's library writes to standard output must not reach the protocol
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[SWITCH] = "0"  # the cases judge the kernels; one that is wrong must not be replaced by the reference
    cases = {case.id: case for case in all_cases()}
    gc.freeze()
    try:
        if library:
            bench: Bench = LibraryBench(Path(library), name)
        else:
            target = find_target(name, manager())
            os.environ["DS_ACCELERATOR"] = target.id  # as in a job: backends that torch loads by itself look at it
            bench = Bench(target, lambda inside: _say(told, {"entering": inside}))
    except DsError as error:
        _say(told, {"ready": False, "error": str(error)})
        return
    _say(told, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        if "end" in request:
            return
        if "facts" in request:
            _say(told, {"facts": _facts(bench)})
            continue
        result = run_case(cases[request["run"]], bench)
        _say(told, {"result": result.to_dict(), "healthy": _clean_up(bench, result)})


def run_case(case: Case, bench: Bench) -> Result:
    """Runs one case in this process; a crash takes the process with it."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ds-conformance-") as folder:
        kit = Kit(bench, Path(folder))
        result = _judged(case, bench, kit)
    result.seconds = time.perf_counter() - started
    result.notes, result.figures = kit.notes, kit.figures
    return result


def _judged(case: Case, bench: Bench, kit: Kit) -> Result:
    result = Result(case.id, case.level, Outcome.PASSED)
    try:
        missing = bench.unmet(case.needs)
        if missing is not None:
            raise Filtered(missing)
        case.check(kit)
    except Filtered as reason:
        result.outcome, result.filter, result.reason = Outcome.FILTERED, reason.reason, reason.reason.text
    except Broken as broken:
        result.outcome, result.reason = Outcome.FAILED, str(broken)
        result.expected, result.got = broken.expected, broken.got
        result.traceback = traceback.format_exc()
    except BaseException as error:  # noqa: BLE001 - whatever a vendor's code raises, SystemExit too, is an outcome
        crashed = _crash_of_a_rank(error)
        result.outcome = Outcome.CRASHED if crashed else Outcome.FAILED
        result.reason = crashed or f"{type(error).__name__}: {error}"
        result.expected, result.got = "no exception", result.reason
        result.traceback = traceback.format_exc()
    if result.outcome.is_bad:
        result.contract = case.contract
    return result


def _crash_of_a_rank(error: BaseException) -> str:
    """How a rank that the case started died; empty when none did."""
    failures: dict[int, Any] = getattr(error, "failures", {}) if isinstance(error, DsError) else {}
    return "; ".join(f"rank {rank} {f.kind}" for rank, f in failures.items() if f.kind.startswith("died"))


def _facts(bench: Bench) -> dict[str, Any]:
    import torch

    try:
        told = bench.facts()
    except Exception as error:  # noqa: BLE001 - the report says so
        told = {"problem": f"{type(error).__name__}: {error}"}
    return {**told, "torch": str(torch.__version__)}


def _clean_up(bench: Bench, result: Result) -> bool:
    """Leaves the process as the next case expects it; False where the device does not answer any more."""
    if result.level >= _ENGINES or result.outcome.is_bad:
        gc.collect()  # engines, and tensors in tracebacks; of other cases nothing is left in cycles
    comm: Any = sys.modules.get("ds_core.comm")
    if comm is not None:
        comm.reset()
        comm.reset_log()
        comm.destroy_process_group()
    if not result.outcome.is_bad:
        return True
    with contextlib.suppress(Filtered):
        try:
            import torch

            if bench.is_library:
                return True
            accelerator = bench.accelerator()
            return bool(torch.ones(2, device=accelerator.device()).sum().item() == 2.0)
        except Filtered:
            raise
        except Exception:  # noqa: BLE001 - an error of an earlier kernel may come up here
            return False
    return True


def _say(told: IO[str], message: dict[str, Any]) -> None:
    told.write(json.dumps(message) + "\n")
    told.flush()
