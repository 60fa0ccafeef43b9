"""init_distributed: one rank, many ranks, several schemes, the backend's choice, and errors that help."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ds_core import comm
from ds_core.accelerator import select
from ds_core.comm.backends import choose_backend
from ds_core.comm.discovery import discover
from ds_core.comm.setup import default_timeout
from ds_core.errors import CommError
from ds_core.hooks import CommBackendEntry
from ds_core.testing import run_ranks


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listening() -> set[str]:
    """Addresses, as in /proc/net/tcp, on which this process listens."""
    inodes = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(str(link.readlink()))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].split(":")[0])
    return found


def start_alone() -> dict[str, Any]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        os.environ.pop(name, None)
    comm.init_distributed()
    comm.init_distributed()
    tensor = torch.ones(2)
    comm.all_reduce(tensor)
    own = select().comm_backend()
    out = {"size": comm.get_world_size(), "listening": listening(), "backend": dist.get_backend(), "own": own}
    comm.destroy_process_group()
    assert not comm.is_initialized()
    comm.init_distributed()
    assert comm.is_initialized()
    return out


def test_one_rank_listens_on_loopback_at_most() -> None:
    (out,) = run_ranks(start_alone, 1, init=False)
    assert out["size"] == 1
    assert out["backend"] == out["own"]
    assert out["listening"] <= {"0100007F"}


def start(how: str, port: int, path: str = "") -> dict[str, Any]:
    rank = int(os.environ.pop("RANK"))
    os.environ.pop("WORLD_SIZE")
    os.environ.pop("GLOO_SOCKET_IFNAME")
    arguments: dict[str, Any] = {}
    if how == "arguments":
        os.environ["MASTER_PORT"] = str(port)
        arguments = {"rank": rank, "world_size": 2}
    elif how == "torchrun":
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    elif how == "slurm":
        os.environ.update(SLURM_PROCID=str(rank), SLURM_NTASKS="2", SLURM_NODELIST="localhost")
        arguments = {"distributed_port": port}
    elif how == "file":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        arguments = {"rank": rank, "world_size": 2, "init_method": f"file://{path}"}
    comm.init_distributed(timeout=timedelta(seconds=20), **arguments)
    tensor = torch.tensor([rank + 1.0])
    comm.all_reduce(tensor)
    return {"sum": float(tensor), "rank": comm.get_rank(), "listening": listening()}


@pytest.mark.parametrize("how", ["arguments", "torchrun", "slurm", "file"])
def test_two_ranks_meet_on_loopback_only(how: str, tmp_path: Path) -> None:
    results = run_ranks(start, 2, how, free_port(), str(tmp_path / "store"), init=False)
    for rank, result in enumerate(results):
        assert result["sum"] == 3.0
        assert result["rank"] == rank
        assert result["listening"] <= {"0100007F"}


def refuse() -> list[str]:
    messages = []
    for arguments in ({"rank": 1, "world_size": 2}, {"rank": 0, "world_size": 4}):
        with pytest.raises(CommError) as caught:
            comm.init_distributed(**arguments)
        messages.append(str(caught.value))
    return messages


def test_an_existing_group_that_does_not_fit_is_an_error() -> None:
    (messages,) = run_ranks(refuse, 1)
    assert "rank=1): the process group exists already with rank 0" in messages[0]
    assert "world_size=4): the process group exists already with world_size 1" in messages[1]


def taken(port: int) -> str:
    with pytest.raises(CommError) as caught:
        comm.init_distributed(rank=0, world_size=2)
    return str(caught.value)


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (message,) = run_ranks(taken, 1, port, init=False, env={"MASTER_PORT": str(port)})
    assert f"127.0.0.1:{port}" in message
    assert "in use" in message


def required() -> str:
    with pytest.raises(CommError) as caught:
        comm.init_distributed(dist_init_required=False, rank=0, world_size=2)
    return str(caught.value)


def test_dist_init_required_false_wants_a_group() -> None:
    assert "dist_init_required=False" in run_ranks(required, 1, init=False)[0]


def test_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_COMM_TIMEOUT_S", raising=False)
    monkeypatch.delenv("DEEPSPEED_TIMEOUT", raising=False)
    assert default_timeout() == timedelta(minutes=30)
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "10")
    assert default_timeout() == timedelta(minutes=10)
    monkeypatch.setenv("DS_COMM_TIMEOUT_S", "7.5")
    assert default_timeout() == timedelta(seconds=7.5)
    monkeypatch.setenv("DS_COMM_TIMEOUT_S", "soon")
    with pytest.raises(CommError, match="DS_COMM_TIMEOUT_S='soon'"):
        default_timeout()


class OneBackendAccelerator:
    """Answers only what the choice of a backend asks."""

    name = "fake"
    device_type = "cpu"

    def comm_backend(self) -> str:
        return "gloo"


def test_the_backend_is_argument_then_environment_then_the_accelerators() -> None:
    alone = discover({})
    accelerator: Any = OneBackendAccelerator()
    assert choose_backend("gloo", {"DS_COMM_BACKEND": "nonsense"}, alone) == "gloo"
    assert choose_backend(None, {}, alone, accelerator) == "gloo"
    with pytest.raises(CommError, match=r"DS_COMM_BACKEND asks for the communication backend 'glo'.*mean 'gloo'"):
        choose_backend(None, {"DS_COMM_BACKEND": "glo"}, alone)
    if not dist.is_nccl_available():
        with pytest.raises(CommError, match=r"dist_backend asks for .*'nccl', which is not part of this torch build"):
            choose_backend("nccl", {}, alone)


@dataclass(frozen=True)
class OneBackendManager:
    """A plugin manager whose plugins bring one communication backend."""

    entry: CommBackendEntry

    def collect(self, hook: str) -> list[Any]:
        assert hook == "ds_comm_backends"
        return [SimpleNamespace(item=self.entry)]

    def by_name(self, hook: str, name: str) -> Any:
        return self.collect(hook)[0]


def brought_by_a_plugin() -> tuple[str, str, float]:
    entry = CommBackendEntry("ds_test_gloo", ("cpu",), "torch.distributed:ProcessGroupGloo")
    manager: Any = OneBackendManager(entry)
    placement = discover(os.environ, rank=int(os.environ["RANK"]), world_size=2)
    chosen = choose_backend("DS_TEST_GLOO", {}, placement, manager=manager)
    comm.init_distributed(chosen, rank=placement.rank, world_size=2)
    tensor = torch.ones(1)
    comm.all_reduce(tensor)
    return chosen, dist.get_backend(), float(tensor)


def test_a_plugin_can_bring_a_backend() -> None:
    environ = {"MASTER_PORT": str(free_port())}
    results = run_ranks(brought_by_a_plugin, 2, init=False, env=environ)
    assert results == [("ds_test_gloo", "ds_test_gloo", 2.0)] * 2


def test_a_plugins_backend_may_decline() -> None:
    # "builtins:dict" answers with what it was asked, which is not empty and so a reason
    entry = CommBackendEntry("ds_test_gloo", ("cpu",), "torch.distributed:ProcessGroupGloo", "builtins:dict")
    manager: Any = OneBackendManager(entry)
    with pytest.raises(
        CommError, match=r"'ds_test_gloo', which cannot serve this job: \{'device_type': 'cpu', 'world_size': 1"
    ):
        choose_backend("ds_test_gloo", {}, discover({}), manager=manager)


def test_a_backend_nobody_asked_for_gives_way_to_gloo(caplog: pytest.LogCaptureFixture) -> None:
    class Choosing(OneBackendAccelerator):
        def comm_backend(self) -> str:
            return "ds_test_gloo"

    chosen: Any = Choosing()
    entry = CommBackendEntry("ds_test_gloo", ("cpu",), "torch.distributed:ProcessGroupGloo", "builtins:dict")
    manager: Any = OneBackendManager(entry)
    assert choose_backend(None, {}, discover({}), chosen, manager) == "gloo"
    assert "ds_test_gloo cannot serve this job, gloo is used: {'device_type'" in caplog.text


def mpi_names() -> dict[str, str | None]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name)
    os.environ.update(
        OMPI_COMM_WORLD_RANK="1",
        OMPI_COMM_WORLD_SIZE="2",
        OMPI_COMM_WORLD_LOCAL_RANK="1",
        OMPI_COMM_WORLD_LOCAL_SIZE="2",
    )
    comm.mpi_discovery(distributed_port=4321, verbose=False)
    return {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}


def test_mpi_discovery_sets_torchruns_variables() -> None:
    assert run_ranks(mpi_names, 1, init=False)[0] == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4321",
    }
