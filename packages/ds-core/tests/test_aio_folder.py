from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ds_core.aio.folder import MARKER, PREFIX, SwapFolder, remove_stale
from ds_core.errors import OffloadError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SETTING = "zero_optimization.offload_optimizer.nvme_path"
HOLD = (
    "import sys; from pathlib import Path; from ds_core.aio.folder import SwapFolder\n"
    "folder = SwapFolder(Path(sys.argv[1]), 3, 'key'); print(folder.path, flush=True); (folder.path / 'x').touch()\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def held(tmp_path):
    """Another process that has a folder in `tmp_path`, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    path = Path(process.stdout.readline().strip())
    yield process, path
    process.kill()
    process.communicate()


def test_a_folder_is_private_and_gone_after_close(tmp_path):
    folder = SwapFolder(tmp_path, 5, SETTING)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert folder.path.name.startswith(f"{PREFIX}rank00005-{os.getpid()}-")
    (folder.path / "file").write_bytes(b"x")
    folder.close()
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_two_folders_of_one_process_and_rank_differ(tmp_path):
    one, other = SwapFolder(tmp_path, 0, SETTING), SwapFolder(tmp_path, 0, SETTING)
    assert one.path != other.path
    one.close()
    assert other.path.exists()
    other.close()


def test_a_folder_goes_with_its_process(held, tmp_path):
    process, path = held
    assert path.exists()
    process.communicate("")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_a_folder_that_the_next_start_removes(held, tmp_path):
    process, path = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()
    folder = SwapFolder(tmp_path, 0, SETTING)
    assert list(tmp_path.iterdir()) == [folder.path]
    folder.close()


def test_the_folder_of_a_living_process_stays(held, tmp_path):
    _, path = held
    assert remove_stale(tmp_path) == []
    assert path.exists()


def change(path: Path, **values) -> None:
    marker = path / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **values}))


@pytest.fixture
def dead(tmp_path):
    """The folder of a process that ended without cleaning up."""
    child = os.fork()
    if child == 0:
        folder = SwapFolder(tmp_path, 3, SETTING)
        (folder.path / "x").touch()
        os._exit(0)
    os.waitpid(child, 0)
    (path,) = tmp_path.iterdir()
    return path


def test_a_folder_from_before_the_machine_was_started_is_removed(dead, tmp_path):
    change(dead, boot="another", pid=os.getpid())
    assert remove_stale(tmp_path) == [dead]


def test_a_folder_of_another_host_stays(dead, tmp_path):
    change(dead, boot="another", host="another")
    assert remove_stale(tmp_path) == []


def test_without_locks_the_pid_decides(dead, tmp_path):
    change(dead, locked=False, pid=os.getpid())
    assert remove_stale(tmp_path) == []
    change(dead, pid=2**22 + 1)  # above the largest pid Linux gives
    assert remove_stale(tmp_path) == [dead]


@pytest.mark.parametrize("text", [None, "", "[]", '{"kind": "mine", "pid": 1}', '{"pid": 4194305, "boot": "x"}'])
def test_what_this_class_did_not_make_stays(tmp_path, text):
    other = tmp_path / f"{PREFIX}rank00000-1-x"
    other.mkdir()
    if text is not None:
        (other / MARKER).write_text(text)
    assert remove_stale(tmp_path) == []
    assert other.exists()


def test_a_link_to_a_dead_folder_is_not_followed(dead, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{PREFIX}link").symlink_to(dead)
    assert remove_stale(tmp_path / "elsewhere") == []
    assert (dead / "x").exists()


def test_a_forked_child_does_not_remove_its_parents_folder(tmp_path):
    folder = SwapFolder(tmp_path, 0, SETTING)
    child = os.fork()
    if child == 0:
        folder.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.path.exists()
    folder.close()


def test_a_missing_folder_is_named_with_its_setting(tmp_path):
    with pytest.raises(OffloadError, match=rf"{SETTING} is .*none, which does not exist; make it"):
        SwapFolder(tmp_path / "none", 0, SETTING)
    (tmp_path / "file").touch()
    with pytest.raises(OffloadError, match=rf"{SETTING} is .*file, which is not a folder"):
        SwapFolder(tmp_path / "file", 0, SETTING)


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder where not even root may write (/sys)")
def test_a_folder_that_cannot_be_written_is_named_with_its_setting():
    with pytest.raises(
        OffloadError, match=rf"{SETTING} is /sys/kernel, where no folder can be made \(.*right to write"
    ):
        SwapFolder(Path("/sys/kernel"), 0, SETTING)
