"""The segment goes to processes of the same user that were invited, and to nobody else."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ds_accel_cpu import _comm
from ds_accel_cpu.comm import segment
from ds_accel_cpu.comm.hosts import Plan, host_key, plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux")

NOBODY = 65534
CLIENT = """
import socket, sys
name, word = sys.argv[1:]
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.settimeout(10)
connection.connect("\\0ds-comm-" + name)
try:
    connection.sendall((word + " 1").encode())
    data, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(4))
except OSError:
    ancillary = []
print(len(ancillary))
"""


def ask(name: str, word: str) -> int:
    """How many descriptors a client in a process of its own gets."""
    command = [sys.executable, "-c", CLIENT, name, word]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout)


@pytest.fixture
def offered() -> tuple[str, str, threading.Thread]:
    """A segment that waits for one rank to fetch it."""
    name, word, fd = secrets.token_hex(8), secrets.token_hex(8), segment._create(4096)
    listener = segment._listener(name)

    def serve() -> None:
        with listener:
            segment.hand_over(listener, word, fd, [1], 60.0)
        os.close(fd)

    thread = threading.Thread(target=serve)
    thread.start()
    return name, word, thread


def ask_as_nobody(name: str, word: str) -> int:
    """What a child that gives up root gets, as its exit code: descriptors, or 3 if it sees this process's files."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 4
    try:
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(f"\0ds-comm-{name}")
            try:
                connection.sendall(f"{word} 1".encode())
                code = len(connection.recvmsg(1, socket.CMSG_LEN(4))[1])
            except ConnectionError:
                code = 0
        try:
            list(Path(f"/proc/{os.getppid()}/fd").iterdir())
            code = 3
        except PermissionError:
            pass
    finally:
        os._exit(code)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_another_user_gets_nothing(offered: tuple[str, str, threading.Thread]) -> None:
    name, word, thread = offered
    assert ask_as_nobody(name, word) == 0
    assert thread.is_alive()  # it still waits for the rank
    assert ask(name, word) == 1
    thread.join(10)


def test_who_does_not_know_the_word_gets_nothing(offered: tuple[str, str, threading.Thread]) -> None:
    name, word, thread = offered
    assert ask(name, "guess") == 0
    assert thread.is_alive()
    assert ask(name, word) == 1
    thread.join(10)


def test_a_rank_that_does_not_fetch_it_is_named() -> None:
    fd = segment._create(4096)
    with segment._listener(secrets.token_hex(8)) as listener, pytest.raises(TimeoutError, match=r"places \[1, 2\]"):
        segment.hand_over(listener, "word", fd, [1, 2], 0.05)
    os.close(fd)


def test_the_file_can_neither_grow_nor_shrink() -> None:
    fd = segment._create(4096)
    try:
        for size in (0, 8192):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        assert os.fstat(fd).st_mode & 0o777 == 0o600
    finally:
        os.close(fd)


def test_a_segment_is_as_large_as_the_formula_says() -> None:
    found = _comm.segment_bytes(4, 2, 256 * 1024, 64 * 1024)
    assert 0 <= found - (16 * 64 * 1024 + 4 * 2 * 256 * 1024) <= 8 * 4096
    assert found % 4096 == 0


def test_processes_of_one_host_have_one_key() -> None:
    code = "from ds_accel_cpu.comm.hosts import host_key; print(host_key())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == host_key()


def test_a_plan_puts_ranks_on_hosts_in_the_order_of_first_ranks() -> None:
    assert plan(["b", "a", "a", "b"], 3) == Plan(((0, 3), (1, 2)), host=0, lane=1)
    assert plan(["x"], 0).is_one_host
    uneven = plan(["a", "b", "a"], 1)
    assert not uneven.is_even
    assert (uneven.lane_of(2), uneven.host_of(2)) == (1, 0)
