"""Several machines: stand-ins for pdsh, mpirun and srun start every machine's share here, and its ranks really meet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from standin_programs import asked, put_on_path

from ds_core.errors import LaunchError
from ds_core.launch import LaunchSpec
from ds_core.launch.exports import read_environment_file
from ds_core.launch.machines import MachineChoice
from ds_core.launch.mpi import ImpiLauncher, MpichLauncher, MvapichLauncher, OpenMpiLauncher
from ds_core.launch.node import decode, encode, node_rank
from ds_core.launch.pdsh import PdshLauncher
from ds_core.launch.slurm import SlurmLauncher

DS_RUN = [sys.executable, "-c", "import sys; from ds_core.cli import main; sys.exit(main())", "run"]
VERSIONS = {"openmpi": "mpirun (Open MPI) 5.0.7", "mpich": "HYDRA build details:"}

MEETING = """
import json, os, sys
from pathlib import Path
import torch
from ds_core import comm
comm.init_distributed()
total = torch.tensor([comm.get_rank() + 1.0])
comm.all_reduce(total)
kept = {name: os.environ.get(name) for name in ("GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTHONTOLD", "TOLD")}
kept |= {"mpi": [name for name in os.environ if name.startswith(("PMI_", "OMPI_COMM_"))]}
Path(f"rank{comm.get_rank()}.json").write_text(json.dumps(
    kept | {"total": float(total), "world": comm.get_world_size(), "arguments": sys.argv[1:], "cwd": os.getcwd()}))
comm.destroy_process_group()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(MEETING)
    (tmp_path / "hosts").write_text("w0 slots=2\nw1 slots=1\n")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("PYTHONTOLD", "it's 100%, $HOME")
    return tmp_path


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def words_for(launcher: str, *more: str) -> list[str]:
    meeting = ["--master-addr", "127.0.0.2", "--master-port", str(free_port())]
    return [*DS_RUN, "--launcher", launcher, "--hostfile", "hosts", *meeting, *more]


@pytest.mark.ranks
@pytest.mark.parametrize("launcher", ["pdsh", "openmpi", "mpich", "slurm"])
def test_ranks_of_two_machines_meet(folder, monkeypatch, launcher):
    put_on_path(folder, monkeypatch, version=VERSIONS.get(launcher, ""))
    given = ["--lr", "a b", "$HOME", "100%h", "it's"]
    command = words_for(launcher, "--env", "TOLD=1,2 3", "train.py", *given)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(3)]
    assert [(row["GROUP_RANK"], row["LOCAL_RANK"], row["LOCAL_WORLD_SIZE"]) for row in rows] == [
        ("0", "0", "2"),
        ("0", "1", "2"),
        ("1", "0", "1"),
    ]
    for row in rows:
        assert (row["total"], row["world"], row["cwd"]) == (6.0, 3, str(folder))
        assert row["arguments"] == given
        assert (row["PYTHONTOLD"], row["TOLD"]) == ("it's 100%, $HOME", "1,2 3")
        assert row["mpi"] == []


STOPPING = """
import os, signal, sys, time
from pathlib import Path
rank = os.environ["RANK"]
def stop(number, frame):
    Path(f"saved{rank}").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
Path(f"ready{rank}").write_text("")
if sys.argv[1:] == [rank]:
    while not all(Path(f"ready{other}").exists() for other in range(3)):
        time.sleep(0.05)
    sys.exit(7)
time.sleep(90)
"""


@pytest.mark.ranks
def test_a_signal_reaches_the_ranks_on_every_machine(folder, monkeypatch):
    log = put_on_path(folder, monkeypatch)
    (folder / "train.py").write_text(STOPPING)
    process = subprocess.Popen(words_for("pdsh", "train.py"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and len(list(folder.glob("ready*"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, told
    assert [(folder / f"saved{rank}").read_text() for rank in range(3)] == ["SIGTERM"] * 3
    assert len(asked(log, "pdsh")) >= 2


@pytest.mark.ranks
@pytest.mark.parametrize(("failing", "elsewhere"), [(2, [0, 1]), (0, [2])])
def test_a_machine_that_fails_ends_the_others(folder, monkeypatch, failing, elsewhere):
    put_on_path(folder, monkeypatch)
    (folder / "train.py").write_text(STOPPING)
    done = subprocess.run(
        words_for("pdsh", "train.py", str(failing)), capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 7, done.stderr[-3000:]
    assert f"rank {failing} of 3 exited with code 7" in done.stderr
    assert "another machine's ranks failed" in done.stderr
    assert [(folder / f"saved{rank}").read_text() for rank in elsewhere] == ["SIGTERM"] * len(elsewhere)


def spec_for(**changes) -> LaunchSpec:
    known = {"hosts": {"w0": (0, 1), "w1": (3,)}, "nnodes": 2, "master_addr": "w0", "master_port": 29500}
    return LaunchSpec(**{"script": "train.py", **known, **changes})


def test_the_job_crosses_a_shell_unchanged(folder):
    spec = spec_for(arguments=("a b", "ü", "'\"\n"), max_restarts=2, devices_variable="CARDS")
    assert decode(encode(spec)) == (spec, folder)


def test_each_machine_is_told_its_devices_and_number(folder):
    from ds_core.launch.node import share_of

    share = share_of(spec_for(devices_variable="CARDS"), 1)
    assert (share.node_rank, share.nproc, share.env) == (1, 1, {"CARDS": "3"})
    assert node_rank(spec_for(), {"PMI_RANK": "1"}) == 1
    assert node_rank(spec_for(), {"SLURMD_NODENAME": "w1", "SLURM_PROCID": "0"}) == 1
    with pytest.raises(LaunchError, match="more than one process on a machine"):
        node_rank(spec_for(), {"OMPI_COMM_WORLD_RANK": "2"})


def test_what_each_program_is_asked(folder):
    spec = spec_for(exports={"PYTHONPATH": "/a b"}, launcher_args=("--extra", "x"), ssh_port=2222)
    words = PdshLauncher().command(spec)
    assert words[:7] == ["pdsh", "-f", "1024", "-w", "w0,w1", "-S", "--extra"]
    assert words[6:8] == ["--extra", "x"]
    assert words[-1].startswith("export PYTHONPATH='/a b'; ")
    assert " --host=%h " in words[-1]
    assert PdshLauncher().environment(spec, {})["PDSH_SSH_ARGS_APPEND"] == "-p 2222"
    words = OpenMpiLauncher().command(spec)
    assert words[:7] == ["mpirun", "-n", "2", "--host", "w0:1,w1:1", "--map-by", "ppr:1:node"]
    assert words[words.index("-x") + 1] == "PYTHONPATH"
    words = MpichLauncher().command(spec)
    assert words[:7] == ["mpirun", "-n", "2", "-ppn", "1", "-hosts", "w0,w1"]
    assert words[words.index("-genvlist") + 1] == "PYTHONPATH"
    assert ImpiLauncher().command(spec)[:-2] == MvapichLauncher().command(spec)[:-2] == words[:-2]
    words = SlurmLauncher().command(spec)
    assert {"--nodes=2", "--ntasks=2", "--nodelist=w0,w1", "--kill-on-bad-exit=1"} <= set(words)


@pytest.mark.parametrize(
    ("launcher", "changes", "says"),
    [
        (PdshLauncher, {"hosts": {}}, "--launcher pdsh needs --hostfile"),
        (PdshLauncher, {"nnodes": 3}, "--nnodes 3, but the host file and its filters leave 2"),
        (OpenMpiLauncher, {"venv_script": "a.sh"}, "--venv_script works with pdsh only"),
        (SlurmLauncher, {"ssh_port": 22}, "--ssh_port works with pdsh only"),
        (MpichLauncher, {}, r"needs MPICH's mpirun, and the one on PATH says 'mpirun \(Open MPI\) 5'"),
        (PdshLauncher, {}, r"cannot reach w0 \(exit code 255\), w1 .* --no-ssh-check"),
        (SlurmLauncher, {}, "needs the program srun"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(folder, monkeypatch, launcher, changes, says):
    put_on_path(folder, monkeypatch, version="mpirun (Open MPI) 5", ssh_code=255, without=("srun",))
    with pytest.raises(LaunchError, match=says):
        launcher().check(spec_for(**changes))


def test_the_check_by_ssh_can_be_left_out(folder, monkeypatch):
    log = put_on_path(folder, monkeypatch, ssh_code=255)
    PdshLauncher().check(spec_for(ssh_check=False))
    assert asked(log, "ssh") == []


def test_machines_are_chosen_by_filter_count_and_devices():
    pool = {"w0": 4, "w1": 2}
    assert MachineChoice(pool, include="w0:1,3@w1").hosts("pdsh", {}) == {"w0": (1, 3), "w1": (0, 1)}
    assert MachineChoice(pool, nodes=1, devices=2).hosts("pdsh", {}) == {"w0": (0, 1)}
    with pytest.raises(LaunchError, match="--num_gpus 3: machine 'w1' has 2"):
        MachineChoice(pool, devices=3).hosts("pdsh", {})
    with pytest.raises(LaunchError, match="--num_nodes 3: there are 2 machines"):
        MachineChoice(pool, nodes=3).hosts("pdsh", {})
    assert MachineChoice().hosts("slurm", {"SLURM_JOB_NODELIST": "n[1-2]"}) == {"n1": (), "n2": ()}
    with pytest.raises(LaunchError, match="SLURM_JOB_NODELIST is not set"):
        MachineChoice().hosts("slurm", {})
    with pytest.raises(LaunchError, match="openmpi needs --hostfile"):
        MachineChoice().hosts("openmpi", {})


def test_a_file_of_variables(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".env").write_text("A=1\nB=2\n")
    (tmp_path / ".env").write_text("# over there\nB = x=y \n\n")
    assert read_environment_file(".env", (home, tmp_path)) == {"A": "1", "B": "x=y"}
    (tmp_path / ".env").write_text("A=1\nrm -rf x\n")
    with pytest.raises(LaunchError, match=r"line 2: a line is NAME=VALUE, got 'rm -rf x'"):
        read_environment_file(".env", (home, tmp_path))
    assert os.environ.get("A") is None
