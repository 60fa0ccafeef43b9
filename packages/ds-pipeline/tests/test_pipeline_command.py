"""The command ``ds pipeline``: what it says is what the simulation says, and what it writes can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from ds_core.cli import main
from ds_pipeline.schedules import Costs, from_text, make_schedule, peak_bytes, peaks, simulate

ZBV = ["pipeline", "plan", "--schedule", "zbv", "--ranks", "3", "--micro-batches", "7"]


def told(capsys, *arguments: str):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_plan_says_what_the_simulation_says(capsys):
    costs = ["--forward", "1,2,1,2,1,2", "--backward-input", "1.5", "--backward-weight", "0.5", "--transfer", "0.25"]
    found = json.loads(told(capsys, *ZBV, *costs, "--json"))
    schedule = make_schedule("zbv", ranks=3, micro_batches=7)
    run = simulate(schedule, Costs([1, 2, 1, 2, 1, 2], 1.5, 0.5, 0.25))
    assert (found["makespan"], found["bubble_fraction"]) == (run.makespan, run.bubble_fraction)
    assert [row["idle"] for row in found["ranks"]] == [run.idle(rank) for rank in range(3)]
    assert [row["held"] for row in found["ranks"]] == [held.both for held in peaks(schedule)]
    assert [row["stages"] for row in found["ranks"]] == [[0, 5], [1, 4], [2, 3]]


def test_plan_without_a_name_is_1f1b_in_a_table(capsys):
    text = told(capsys, "pipeline", "plan", "--ranks", "2", "--micro-batches", "4")
    assert text.startswith("# 1f1b: 2 stages, 4 micro-batches\n")
    assert "time 15, bubble 20.0%" in text
    assert len([line for line in text.splitlines() if line.split()[0].isdigit()]) == 2


def test_plan_writes_text_that_it_reads_again(capsys, tmp_path):
    path = tmp_path / "made" / "zbv.txt"
    first = told(capsys, *ZBV, "--text", str(path))
    assert from_text(path.read_text()) == make_schedule("zbv", ranks=3, micro_batches=7)
    assert first == told(capsys, "pipeline", "plan", "--file", str(path)) + f"wrote {path}\n"


def test_plan_draws(capsys, tmp_path):
    told(capsys, *ZBV, "--svg", str(tmp_path / "a.svg"), "--png", str(tmp_path / "a.png"))
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_compare_gives_every_schedule_the_same_work(capsys):
    found = json.loads(told(capsys, "pipeline", "compare", "--ranks", "4", "--micro-batches", "8", "--json"))
    by_name = {one["schedule"]: one for one in found}
    assert set(by_name) == {"gpipe", "1f1b", "interleaved", "zb-h1", "zbv", "dualpipev"}
    busy = {row["busy"] for one in found for row in one["ranks"]}
    assert busy == {3.0 * 8}
    assert by_name["zbv"]["held_share"] == by_name["1f1b"]["held_share"] == 4
    bubbles = [by_name[name]["bubble_fraction"] for name in ("gpipe", "interleaved", "zb-h1", "zbv")]
    assert bubbles == sorted(bubbles, reverse=True)


def test_compare_is_a_table_with_a_row_for_each(capsys):
    text = told(capsys, "pipeline", "compare", "--ranks", "2", "--micro-batches", "4")
    for name in ("gpipe", "1f1b", "interleaved", "zb-h1", "zbv", "dualpipev"):
        assert f"\n{name} " in text


def test_plan_adds_up_bytes(capsys):
    sizes = [10, 20, 30, 30, 20, 10]
    found = json.loads(told(capsys, *ZBV, "--activation-bytes", ",".join(map(str, sizes)), "--json"))
    schedule = make_schedule("zbv", ranks=3, micro_batches=7)
    assert [row["peak_bytes"] for row in found["ranks"]] == list(peak_bytes(schedule, sizes))
    assert "peak bytes" in told(capsys, *ZBV, "--activation-bytes", "12e6")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "zbw", "--ranks", "2", "--micro-batches", "2"], "unknown pipeline schedule 'zbw'"),
        (["--ranks", "2"], "needs --ranks and --micro-batches"),
        (["--ranks", "2", "--micro-batches", "2", "--forward", "1,x"], "--forward must be a number"),
        (["--ranks", "2", "--micro-batches", "2", "--activation-bytes", "inf"], "--activation-bytes must be a number"),
        (["--ranks", "2", "--micro-batches", "2", "--forward", "1,2,3"], "one for each of 2 stages, got 3"),
        (["--file", "nowhere.txt"], "--file nowhere.txt cannot be read"),
        (["--file", "nowhere.txt", "--ranks", "2"], "--file already says what --ranks would"),
    ],
)
def test_wrong_options_are_told(capsys, arguments, message):
    assert message in refused(capsys, "pipeline", "plan", *arguments)


def test_a_file_with_a_mistake_is_told_where(capsys, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text("schedule: mine\nmicro-batches: 1\nstages: 0\nrank 0: 0F0 0X0\n")
    assert "line 4, column 14: unknown op 'X'" in refused(capsys, "pipeline", "plan", "--file", str(path))


def test_a_file_that_cannot_run_is_told_why(capsys, tmp_path):
    path = tmp_path / "stuck.txt"
    path.write_text("schedule: mine\nmicro-batches: 1\nstages: 0\nrank 0: 0B0 0F0\n")
    assert "rank 0 has 0B0 before 0F0" in refused(capsys, "pipeline", "plan", "--file", str(path))


def test_the_command_imports_no_torch():
    program = (
        f"import sys\nfrom ds_core.cli import main\nassert main({ZBV!r}) == 0\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.DEVNULL)
