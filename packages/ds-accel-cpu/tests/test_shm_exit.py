"""Programs that end with the backend in use: cleanly, whatever is still under way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux"),
]

PROGRAM = """
import sys, torch, torch.distributed as dist
from ds_core import comm

comm.init_distributed(verbose=False)
assert dist.get_backend() == "shm"
rank = dist.get_rank()
group = dist.new_group(backend="shm")
works = [dist.all_reduce(torch.ones(100_000), group=group, async_op=True) for _ in range(5)]
futures = [work.get_future() for work in works]
works.append(dist.isend(torch.ones(10), 1 - rank))
works.append(dist.irecv(torch.empty(10), 1 - rank))
works.append(dist.irecv(torch.empty(10), 1 - rank, tag=7))  # never comes
if sys.argv[1] == "destroyed":
    dist.destroy_process_group()
    for work in works[:5]:
        work.wait()
print("end")
"""


@pytest.mark.parametrize("how", ["destroyed", "left"])
def test_a_program_ends_with_calls_under_way(how: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if name != "DS_COMM_BACKEND"}
    environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, str(program), how],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        out, err = process.communicate(timeout=90)
        assert (process.returncode, out) == (0, "end\n"), err
        assert "terminate" not in err and "Traceback" not in err
