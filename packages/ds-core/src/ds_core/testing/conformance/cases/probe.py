"""Level 0: the probe, which is asked in every job and on every machine, most of them without the hardware."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from ds_core.hooks import Availability
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Broken, Kit

__all__ = ["GROUPS"]

PROBE = Group("probe", level=0)
GROUPS = (PROBE,)

ANYWHERE = Needs(device=False)
COLD_LIMIT_S = 20.0
"""For the first probe of a process, the import of torch included; a contract of minutes, not a measure of speed."""
WARM_LIMIT_S = 2.0

_COLD = """\
import json, sys, time
from ds_core.plugins import manager
from ds_core.testing.conformance.target import find_target
entry = find_target(sys.argv[1], manager()).entry
started = time.perf_counter()
answer = entry.is_available()
told = {"usable": bool(answer.usable), "reason": str(answer.reason), "seconds": time.perf_counter() - started}
print("\\n" + json.dumps(told))
"""


def _answer(kit: Kit) -> Availability:
    try:
        answer: object = kit.entry.is_available()
    except Exception as error:
        raise Broken("an Availability, whatever is missing here", f"{type(error).__name__}: {error}") from error
    if not isinstance(answer, Availability):
        raise Broken("a ds_core.hooks.Availability", repr(answer))
    return answer


@PROBE.case("the probe returns Availability and never raises: what is not here is an answer with a reason", ANYWHERE)
def answers(kit: Kit) -> None:
    answer = _answer(kit)
    if answer.usable:
        kit.expect(answer.device_count >= 1, "a device count of at least 1", answer.device_count)
    else:
        kit.expect(bool(answer.reason.strip()), "a reason why it is not usable", answer.reason)
        kit.note(f"not usable here: {answer.reason}")


@PROBE.case("the probe gives the same answer each time", ANYWHERE)
def answers_alike(kit: Kit) -> None:
    first, second = _answer(kit), _answer(kit)
    kit.expect(first == second, f"{first}", f"{second}")


@PROBE.case("the probe is cheap: it may import what it must, and does not compile, download or wait", ANYWHERE)
def is_quick(kit: Kit) -> None:
    _answer(kit)
    started = time.perf_counter()
    _answer(kit)
    seconds = time.perf_counter() - started
    kit.figures["warm_probe_ms"] = round(seconds * 1e3, 3)
    kit.expect(seconds < WARM_LIMIT_S, f"a repeated probe in under {WARM_LIMIT_S:g} s", f"{seconds:.1f} s")


@PROBE.case("the probe works in a process that did nothing else, and does not end it", ANYWHERE)
def works_in_a_fresh_process(kit: Kit) -> None:
    command = [sys.executable, "-c", _COLD, kit.bench.target.id]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * COLD_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Broken(f"an answer within {COLD_LIMIT_S:g} s", f"none within {2 * COLD_LIMIT_S:g} s") from error
    kit.expect(done.returncode == 0, "exit code 0", f"{done.returncode}: {done.stderr[-800:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    kit.figures["cold_probe_ms"] = round(told["seconds"] * 1e3, 1)
    kit.expect(told["seconds"] < COLD_LIMIT_S, f"under {COLD_LIMIT_S:g} s", f"{told['seconds']:.1f} s")
