"""`ds checkpoint`: what is listed, shown, checked, compared and deleted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from ds_core.checkpoint import open_source
from ds_core.checkpoint.manage import catalog
from ds_core.checkpoint.storage.folder import Leftover, owner
from ds_core.cli._progress import human_bytes, progress


def data_file(folder, tag):
    return folder / tag / "rank-00000.safetensors"


def flip(path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# --- ls -----------------------------------------------------------------------------------------------------------


def test_ls_has_a_line_for_each_and_marks_the_latest(ds, folder):
    code, out, _ = ds("ls", folder)
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["global_step1", "global_step2", "global_step3"]
    assert [row[1] == "latest" for row in rows] == [False, False, True]
    assert all(row[-2:] == ["ds", "complete"] for row in rows)
    (latest,) = [row for row in json.loads(ds("ls", folder, "--json")[1])["checkpoints"] if row["is_latest"]]
    assert (latest["tag"], latest["step"], latest["ranks"]) == ("global_step3", 3, 1)
    assert latest["nbytes"] == sum(path.stat().st_size for path in (folder / "global_step3").iterdir())


def test_ls_tells_what_is_wrong_and_what_was_left_behind(ds, folder):
    data_file(folder, "global_step2").unlink()
    (folder / ".global_step9.abc123.writing").mkdir()
    (folder / "notes").mkdir()
    (folder / "latest").write_text("global_step8")
    code, out, _ = ds("ls", folder)
    assert code == 0
    state = {line.split()[0]: line for line in out.splitlines()}
    assert state["global_step2"].endswith("damaged") or "global_step2: " in out
    assert "rank-00000.safetensors is missing" in out
    assert "notes: no manifest.json" in out
    assert "names 'global_step8', which is not there" in out
    assert ".global_step9.abc123.writing (writing, 0 B" in out
    assert f"`ds checkpoint prune {folder} --leftovers`" in out


def test_what_vanishes_while_it_is_listed_is_left_out(ds, folder, monkeypatch):
    gone = folder / ".x.0a.deleting"
    monkeypatch.setattr(catalog, "tags", lambda root: {"gone": gone, "global_step1": folder / "global_step1"})
    monkeypatch.setattr(catalog, "leftovers", lambda root: [Leftover(gone, "x", "deleting")])
    code, out, _ = ds("ls", folder)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["tag", "global_step1"]


def test_an_empty_folder_and_none_at_all(ds, tmp_path):
    assert ds("ls", tmp_path)[:2] == (0, f"no checkpoint in {tmp_path}\n")
    code, _, err = ds("ls", tmp_path / "none")
    assert code == 2
    assert "is not there" in err


def test_one_checkpoint_is_listed_alone_and_not_pruned(ds, folder):
    out = ds("ls", folder / "global_step2")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["tag", "global_step2"]
    code, _, err = ds("prune", folder / "global_step2", "--keep-last", 1)
    assert code == 2
    assert "is one checkpoint" in err


# --- show ---------------------------------------------------------------------------------------------------------


def test_show_tells_everything_but_the_elements(ds, folder):
    told = json.loads(ds("show", folder, "global_step2", "--json", "--tensors", "optimizer/exp_avg/0.*")[1])
    assert told["counters"]["global_steps"] == 2
    assert told["client_state"] == {"epoch": 1}
    assert told["mesh"] == {"axes": {"data": 1}, "ranks": 1}
    assert told["plan"]["precision"] == "bf16"
    assert told["tools"]["torch"] == torch.__version__
    assert told["values"]["optimizer"]["groups"][0]["lr"] == 1e-2
    weight = {one["name"]: one for one in told["tensors"]}["optimizer/exp_avg/0.weight"]
    assert (weight["dtype"], weight["shape"], weight["bytes"]) == ("float32", [5, 6], 120)
    assert [piece["size"] for piece in weight["pieces"]] == [[5, 6]]
    groups = {group["group"]: group for group in told["groups"]}
    assert groups["model"] == {
        "group": "model", "tensors": 4, "elements": 53, "bytes": 106, "dtypes": {"bfloat16": 4}
    }  # fmt: skip


def test_show_takes_the_newest_or_the_checkpoint_that_is_named(ds, folder):
    newest, named = ds("show", folder)[1], ds("show", folder / "global_step1")[1]
    assert "tag: global_step3" in newest
    assert "tag: global_step1" in named
    assert "optimizer/master" in named


# --- verify -------------------------------------------------------------------------------------------------------


def test_verify_says_ok_of_what_is_whole(ds, folder):
    code, out, _ = ds("verify", folder)
    assert (code, out.split()[:4]) == (0, ["global_step3:", "ok,", "1", "files,"])
    told = json.loads(ds("verify", folder, "--all", "--json")[1])
    assert told["ok"]
    assert [row["tag"] for row in told["checkpoints"]] == ["global_step1", "global_step2", "global_step3"]


def test_verify_names_each_damaged_file(ds, folder):
    flip(data_file(folder, "global_step1"), data_file(folder, "global_step1").stat().st_size - 3)
    data_file(folder, "global_step2").unlink()
    flip(folder / "global_step3" / "manifest.json", 400)
    code, out, _ = ds("verify", folder, "--all")
    assert code == 1
    assert out.count("damaged") >= 3
    assert "rank-00000.safetensors: block 0 of 1 was changed" in out
    assert "rank-00000.safetensors: it cannot be read" in out
    assert "manifest.json: " in out
    assert ds("verify", folder, "global_step1")[0] == 1


def test_verify_finds_bytes_that_are_too_many_or_too_few(ds, folder):
    path = data_file(folder, "global_step3")
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        code, out, _ = ds("verify", folder)
        assert code == 1
        assert f"it has {len(content)} bytes instead of {len(whole)}" in out


@pytest.mark.parametrize("words", [("none",), ("global_step1", "--all")])
def test_verify_of_what_is_not_there_is_a_wrong_call(ds, folder, words):
    assert ds("verify", folder, *words)[0] == 2


# --- diff ---------------------------------------------------------------------------------------------------------


def test_diff_has_a_row_for_each_difference(ds, folder):
    count = len(open_source(folder).keys())
    assert ds("diff", folder, folder / "global_step3")[:2] == (0, f"equal: {count} tensors\n")
    code, out, _ = ds("diff", folder, folder, "--tag-a", "global_step1", "--tag-b", "global_step2")
    assert code == 1
    assert "counters.global_steps: 1 | 2" in out
    assert "client_state.epoch: 0 | 1" in out
    code, out, _ = ds("diff", folder, folder, "--tag-a", "global_step1", "--json", "--tensors", "optimizer/master/*")
    told = json.loads(out)
    assert code == 1
    assert not told["equal"]
    assert not told["values"]
    assert {one["key"] for one in told["tensors"]} <= {
        f"optimizer/master/{i}.{n}" for i in (0, 1) for n in ("weight", "bias")
    }
    largest = max(one["max_abs"] for one in told["tensors"])
    words = ("--tag-a", "global_step1", "--tensors", "optimizer/master/*", "--tolerance")
    assert ds("diff", folder, folder, *words, largest)[0] == 0
    assert ds("diff", folder, folder, *words, largest / 2)[0] == 1


# --- prune --------------------------------------------------------------------------------------------------------


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_prune_keeps_the_newest_and_milestones(ds, folder):
    code, out, _ = ds("prune", folder, "--keep-last", 1, "--keep-every", 2, "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == "would delete global_step1"
    assert len(names(folder)) == 3
    told = json.loads(ds("prune", folder, "--keep-last", 1, "--keep-every", 2, "--json")[1])
    assert told["deleted"] == ["global_step1"]
    assert names(folder) == ["global_step2", "global_step3"]


def test_prune_never_deletes_the_one_that_latest_names(ds, folder):
    (folder / "latest").write_text("global_step1")
    ds("prune", folder, "--keep-last", 1)
    assert names(folder) == ["global_step1", "global_step3"]


def test_prune_deletes_nothing_while_the_newest_is_damaged(ds, folder):
    data_file(folder, "global_step3").unlink()
    code, _, err = ds("prune", folder, "--keep-last", 1)
    assert code == 2
    assert "nothing was deleted" in err
    assert len(names(folder)) == 3


def test_prune_must_be_told_what_to_keep(ds, folder):
    assert ds("prune", folder)[0] == 2
    assert ds("prune", folder, "--keep-every", 2)[0] == 2
    assert len(names(folder)) == 3


def test_leftovers_go_and_a_replaced_checkpoint_gets_its_tag_back(ds, folder):
    (folder / ".a.0a.writing").mkdir()
    (folder / ".b.0b.deleting").mkdir()
    (folder / "global_step2").rename(folder / ".global_step2.0c.replaced")
    code, out, _ = ds("prune", folder, "--leftovers")
    assert code == 0
    assert "restored global_step2" in out
    assert names(folder) == ["global_step1", "global_step2", "global_step3"]


def test_what_a_living_process_writes_is_left_alone(ds, folder):
    work = folder / ".a.0a.writing"
    work.mkdir()
    parent = psutil.Process(os.getppid())
    (work / "owner.json").write_text(json.dumps({**owner(), "pid": parent.pid, "started": parent.create_time()}))
    code, out, _ = ds("prune", folder, "--leftovers")
    assert code == 0
    assert f"process {parent.pid} is writing" in out
    assert work.is_dir()


def test_what_a_rank_of_another_machine_writes_is_left_alone(ds, folder, monkeypatch):
    monkeypatch.setattr(catalog, "BEAT_S", 0.1)
    work = folder / ".a.0a.writing"
    work.mkdir()
    beat, end = work / "rank-00001.alive", threading.Event()
    beat.touch()

    def write() -> None:
        while not end.wait(0.05):
            with contextlib.suppress(FileNotFoundError):
                os.utime(beat, ns=(time.time_ns(), time.time_ns()))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert "rank-00001.alive" in ds("prune", folder, "--leftovers")[1]
    finally:
        end.set()
        thread.join()
    assert work.is_dir()
    ds("prune", folder, "--leftovers")
    assert not work.exists()


# --- common -------------------------------------------------------------------------------------------------------


def test_help_imports_no_torch():
    code = (
        "import sys; from ds_core.cli.main import main\n"
        "assert main(['checkpoint', 'export', '--help']) == 0; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, draws in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("verify", 100) as told:
            told(50)
        assert bool(stream.getvalue()) is draws


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (45_600_000_000, "45.6 GB")]
)
def test_sizes_have_three_digits(nbytes, text):
    assert human_bytes(nbytes) == text
