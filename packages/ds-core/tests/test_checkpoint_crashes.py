"""A checkpoint cannot be torn: processes are killed at every change of the disk, and the power goes after every one.

What is promised: a load finds the new checkpoint, to the bit, once it is committed, and the former one before; never
parts of either. The next save works and leaves nothing of the failed one behind. Ranks that were not killed end soon.

To be killed after one change is to be killed before the next, so each point is tried once, and every write also in
its middle.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from ds_core.checkpoint.storage.folder import complete, leftovers
from ds_core.errors import CheckpointError, CommError
from ds_core.testing import run_ranks
from ds_core.testing.disks import Operation, WatchedDisk, killing_at
from ds_core.testing.power_loss import States, lay_down
from ds_core.testing.saves import load, save

pytestmark = pytest.mark.ranks

PATIENCE_S = 0.4
AT_ONCE = 16


@dataclass(frozen=True)
class Scenario:
    """What is there before the save that is cut off, and how that one saves state 2."""

    name: str
    tag: str
    keep_last: int | None = None
    earlier: tuple[tuple[str, int], ...] = ()
    has_leftover: bool = False

    @property
    def former(self) -> tuple[str, int] | None:
        return self.earlier[-1] if self.earlier else None

    def prepare(self, root: Path) -> None:
        for tag, number in self.earlier:
            save(root, tag, number)
        if self.has_leftover:
            work = root / ".dead.00ff.writing"
            work.mkdir()
            (work / "rank-00000.safetensors").write_bytes(b"half of a")


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("first", "new"),
        Scenario("retention", "new", keep_last=1, earlier=(("older", 0), ("old", 1))),
        Scenario("replacing", "same", earlier=(("same", 1),)),
        Scenario("leftovers", "new", earlier=(("old", 1),), has_leftover=True),
    )
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of syncs of a real disk would take minutes."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(prefix="ds-crash-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


# --- killed processes ---------------------------------------------------------------------------------------------


def in_child(run: Callable[[], None]) -> int:
    """Forks; the child's process id. It exits with 0, with 3 for an error users see, with 4 for any other."""
    pid = os.fork()
    if pid:
        return pid
    code = 4
    logging.disable()
    try:
        run()
        code = 0
    except (CheckpointError, CommError):
        code = 3
    except BaseException:  # noqa: BLE001 - the boundary of the process
        traceback.print_exc()
    finally:
        os._exit(code)
    raise AssertionError("unreachable")


def ended(pids: list[int], timeout_s: float = 15.0) -> list[int]:
    """Exit codes as they come; a child that does not end is killed and gets code -99."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in pids:
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    for pid in set(pids) - set(codes):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return [codes.get(pid, -99) for pid in pids]


class Attempt:
    """One save of state 2 by `ranks` processes on a copy of what was there, with these disks."""

    def __init__(self, base: Path, name: str, template: Path, scenario: Scenario, disks: list[WatchedDisk]) -> None:
        self.root: Path = base / name / "root"
        self.root.parent.mkdir()
        if template.exists():
            shutil.copytree(template, self.root, symlinks=True)
        self.scenario: Scenario = scenario
        self.disks: list[WatchedDisk] = disks
        self.pids: list[int] = [in_child(lambda rank=rank: self._run(rank)) for rank in range(len(disks))]

    def _run(self, rank: int) -> None:
        ranks = len(self.disks)
        if ranks > 1:
            import torch.distributed as dist

            store = dist.FileStore(str(self.root.parent / "store"), ranks)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=10))
        keep_last = self.scenario.keep_last
        save(
            self.root,
            self.scenario.tag,
            2,
            disk=self.disks[rank],
            rank=rank,
            ranks=ranks,
            keep_last=keep_last,
            patience_s=PATIENCE_S,
        )


def recorded(base: Path, template: Path, scenario: Scenario, ranks: int) -> list[tuple[int, Operation]]:
    """Rank and change of every change of the disk when nothing happens to it, in order; paths are in `template`."""
    log = os.open(base / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    root = base / "recorded" / "root"

    def watched(rank: int) -> WatchedDisk:
        def note(done: Operation) -> None:
            names = [str(path.relative_to(root.parent)) if path else "" for path in (done.path, done.target)]
            os.write(log, (json.dumps([rank, done.name, *names, done.offset, done.data.hex()]) + "\n").encode())

        return WatchedDisk(note)

    attempt = Attempt(base, "recorded", template, scenario, [watched(rank) for rank in range(ranks)])
    assert ended(attempt.pids) == [0] * ranks
    os.close(log)
    found = []
    for number, line in enumerate((base / "log").read_text().splitlines()):
        rank, name, path, target, offset, data = json.loads(line)
        place = template.parent
        moved = place / target.replace("root", template.name, 1) if target else None
        path = place / path.replace("root", template.name, 1)
        found.append((rank, Operation(number, name, path, moved, offset, bytes.fromhex(data))))
    return found


def is_commit(done: Operation, scenario: Scenario) -> bool:
    """Whether this is the rename that makes the checkpoint what its tag names."""
    return done.name == "rename" and done.target is not None and done.target.name == scenario.tag


@dataclass(frozen=True)
class Point:
    """Rank `rank` is killed before its change `number`, or in the middle of it."""

    rank: int
    number: int
    is_half: bool
    what: str


def kill_everywhere(folder: str, name: str, ranks: int) -> tuple[int, list[str]]:
    """Every point of one scenario; how many, and what was wrong."""
    base, scenario = Path(folder), SCENARIOS[name]
    template = base / "template"
    scenario.prepare(template)
    done = recorded(base, template, scenario, ranks)
    changes = [[each for who, each in done if who == rank] for rank in range(ranks)]
    points = [
        Point(rank, number, is_half, f"rank {rank} before {each.name} of {each.path}" + (" (half)" if is_half else ""))
        for rank in range(ranks)
        for number, each in enumerate(changes[rank])
        for is_half in ((False, True) if each.name == "write" else (False,))
    ]
    commit = next(number for number, each in enumerate(changes[0]) if is_commit(each, scenario))
    problems: list[str] = []
    for first in range(0, len(points), AT_ONCE):
        batch = points[first : first + AT_ONCE]
        attempts = []
        for place, point in enumerate(batch):
            disks = [WatchedDisk(lambda _: None) for _ in range(ranks)]
            disks[point.rank] = WatchedDisk(killing_at(point.number, half=point.is_half))
            attempts.append(Attempt(base, f"point{first + place}", template, scenario, disks))
        for point, attempt in zip(batch, attempts, strict=True):
            codes = ended(attempt.pids)
            is_new = point.number > commit if point.rank == 0 else codes[0] == 0
            problem = judge(attempt.root, scenario, is_new) or judge_codes(point, codes)
            if problem:
                problems.append(f"{point.what}: {problem} (exit codes {codes})")
            shutil.rmtree(attempt.root.parent)
    return len(points), problems


def judge_codes(point: Point, codes: list[int]) -> str:
    if codes[point.rank] != -signal.SIGKILL:
        return "the rank was not killed"
    others = [code for rank, code in enumerate(codes) if rank != point.rank]
    return "" if all(code in (0, 3) for code in others) else "the other rank did not end with an error or well"


def judge(root: Path, scenario: Scenario, is_new: bool) -> str:
    """What is wrong with what is found after a crash; empty when nothing is."""
    expected = (scenario.tag, 2) if is_new else scenario.former
    try:
        found = load_all(root)
    except (CheckpointError, AssertionError) as error:
        return f"load says {error}"
    if (found and found[1]) != (expected and expected[1]):
        return f"load finds {found}, not {expected}"
    try:
        save(root, "next", 3)
        found = load(root)
    except (CheckpointError, AssertionError) as error:
        return f"the next save says {error}"
    if found != ("next", 3):
        return f"after the next save, load finds {found}"
    hidden = [path.name for path in root.iterdir() if path.name.startswith(".")]
    return f"the next save left {hidden}" if hidden or leftovers(root) else ""


def load_all(root: Path) -> tuple[str, int] | None:
    """What a load finds; every other checkpoint that seems complete must be whole, too."""
    for tag in complete(root):
        load(root, tag)
    return load(root)


@pytest.mark.parametrize(("name", "ranks"), [*((name, 1) for name in SCENARIOS), ("retention", 2), ("replacing", 2)])
def test_a_kill_at_any_change_of_the_disk_leaves_a_whole_checkpoint(folder: Path, name: str, ranks: int) -> None:
    ((count, problems),) = run_ranks(kill_everywhere, 1, str(folder), name, ranks, init=False, timeout_s=120)
    assert problems == []
    assert count >= 20 * ranks


# --- power loss ---------------------------------------------------------------------------------------------------


def lose_power_everywhere(folder: str, name: str, ranks: int) -> tuple[int, list[str]]:
    """Every state of one scenario that a power failure may leave; how many, and what was wrong."""
    base, scenario = Path(folder), SCENARIOS[name]
    template = base / "root"
    scenario.prepare(template)
    template.mkdir(exist_ok=True)
    done = [each for _, each in recorded(base, template, scenario, ranks)]
    if name == "first":  # the folder itself is made, and synced in its parent, which is not watched
        made = (("make_folder", template), ("sync_folder", template.parent))
        done = [each for each in done if each[1:3] not in made]
    commit = next(place for place, each in enumerate(done) if is_commit(each, scenario))
    durable = next(place for place in range(commit, len(done)) if done[place][1:3] == ("sync_folder", template))
    states, count, problems = States(template), 0, []
    for place in range(len(done) + 1):
        allowed = {scenario.former, (scenario.tag, 2)} if place <= durable else {(scenario.tag, 2)}
        numbers = {each and each[1] for each in allowed}
        for tree in states.after_crash():
            count += 1
            root = base / f"crashed{count}"
            root.mkdir()
            lay_down(tree, root)
            what = f"{place} changes, then {done[place][1:4] if place < len(done) else 'nothing'}: {sorted(tree)}"
            try:
                found = load_all(root)
                if (found and found[1]) not in numbers:
                    problems.append(f"{what}: load finds {found}, not one of {allowed}")
                elif not count % 5:
                    problem = judge(root, scenario, found == (scenario.tag, 2))
                    problems += [f"{what}: {problem}"] if problem else []
            except (CheckpointError, AssertionError) as error:
                problems.append(f"{what}: load says {error}")
            shutil.rmtree(root)
        if place < len(done):
            states.apply(done[place])
    return count, problems


@pytest.mark.parametrize(("name", "ranks"), [*((name, 1) for name in SCENARIOS), ("retention", 2)])
def test_a_power_failure_at_any_change_leaves_a_whole_checkpoint(folder: Path, name: str, ranks: int) -> None:
    ((count, problems),) = run_ranks(lose_power_everywhere, 1, str(folder), name, ranks, init=False, timeout_s=120)
    assert problems == []
    assert count > 100


def last_changes(folder: str) -> list[str]:
    base = Path(folder)
    done = recorded(base, base / "template", SCENARIOS["first"], 2)
    return [[each for who, each in done if who == rank][-1].target.name for rank in (1,)]


def test_what_tells_the_first_rank_that_another_is_done_is_the_others_last_change(folder: Path) -> None:
    """The first rank may rename the folder from that moment on."""
    assert run_ranks(last_changes, 1, str(folder), init=False) == [["rank-00001.json"]]
