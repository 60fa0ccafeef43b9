"""The commands: flags of ``deepspeed`` become a job of ours, ``ds_report`` reports, a hand-written loop runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deepspeed.launcher.runner import DEEPSPEED_ENVIRONMENT_NAME, parse_args, spec_of
from ds_core.errors import LaunchError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.py").write_text("pass")


def spec(*words, environ=None):
    return spec_of(parse_args([*words, "train.py", "--own", "3"]), environ or {})


def test_one_machine_with_some_devices():
    made = spec("--num_gpus", "2", "--master_port", "29600", "--bind_cores_to_rank")
    assert (made.nproc, made.nnodes, made.master_port) == (2, 1, 0)
    assert (made.script, made.arguments) == ("train.py", ("--own", "3"))
    assert made.bind_cores_to_rank
    assert made.local_rank_argument
    assert not spec("--no_local_rank").local_rank_argument
    assert spec("--num_gpus", "4", "--include", "localhost:1,3").nproc == 2


def test_several_machines_start_by_hand(tmp_path):
    (tmp_path / "hosts").write_text("w0 slots=4\nw1 slots=2\n")
    words = ("--hostfile", str(tmp_path / "hosts"))
    made = spec(*words, "--no_ssh", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29501")
    assert (made.nproc, made.nnodes, made.node_rank) == (2, 2, 1)
    assert (made.master_addr, made.master_port) == ("10.0.0.1", 29501)
    with pytest.raises(LaunchError, match="there is no such file"):
        spec("--hostfile", str(tmp_path / "absent"))


def test_several_machines_are_reached_from_here(tmp_path):
    (tmp_path / "hosts").write_text("w0 slots=4\nw1 slots=2\n")
    (tmp_path / DEEPSPEED_ENVIRONMENT_NAME).write_text("NCCL_DEBUG=WARN\n")
    words = ("--hostfile", str(tmp_path / "hosts"), "--ssh_port", "2222", "--launcher_args", "-u 9", "--no_ssh_check")
    made = spec(*words, "--exclude", "w0:1", "--num_gpus", "2", environ={"NCCL_DEBUG": "INFO", "UCX_A": "1", "B": "2"})
    assert (made.hosts, made.nnodes) == ({"w0": (0, 2), "w1": (0, 1)}, 2)
    assert (made.ssh_port, made.launcher_args, made.ssh_check) == (2222, ("-u", "9"), False)
    assert made.exports == {"NCCL_DEBUG": "WARN", "UCX_A": "1"}
    assert spec(*words, "--num_nodes", "1").hosts == {"w0": (0, 1, 2, 3)}
    assert list(spec("--force_multi", "--num_gpus", "2").hosts.values()) == [(0, 1)]
    assert spec("--launcher", "slurm", environ={"SLURM_JOB_NODELIST": "n[1-2]"}).hosts == {"n1": (), "n2": ()}
    with pytest.raises(LaunchError, match="--launcher must be one of pdsh, openmpi"):
        spec(*words, "--launcher", "carrier_pigeon")
    with pytest.raises(LaunchError, match="--num_nodes 2 needs --hostfile"):
        spec("--num_nodes", "2")


PDSH = """#!/bin/sh
# Runs here what the real one would run over there, without this shell's variables.
while [ "$1" != -w ]; do shift; done
first=${2%%,*}; second=${2#*,}
for word; do last=$word; done
for host in $first $second; do
    env -i PATH="$PATH" HOME="$HOME" sh -c "$(printf %s "$last" | sed "s/%h/$host/g")" &
    pids="$pids $!"
done
code=0
for pid in $pids; do wait $pid || code=$?; done
exit $code
"""

MACHINE = """
import os, sys
import deepspeed, torch
deepspeed.init_distributed()
total = torch.ones(())
deepspeed.comm.all_reduce(total)
with open(f"on{deepspeed.comm.get_rank()}", "w") as file:
    file.write(f"{int(total)} {os.environ['GROUP_RANK']} {os.environ.get('FROM_FILE')} {sys.argv[1:]}")
"""


@pytest.mark.ranks
def test_a_host_file_starts_ranks_on_its_machines(tmp_path, monkeypatch):
    import socket

    program = tmp_path / "bin" / "pdsh"
    program.parent.mkdir()
    program.write_text(PDSH)
    program.chmod(0o755)
    (tmp_path / "train.py").write_text(MACHINE)
    (tmp_path / "hosts").write_text("w0 slots=1\nw1 slots=1\n")
    (tmp_path / DEEPSPEED_ENVIRONMENT_NAME).write_text("FROM_FILE=yes\nGLOO_SOCKET_IFNAME=lo\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", "hosts", "--master_addr", "127.0.0.2"]
    command += ["--master_port", str(port), "--no_ssh_check", "train.py", "--own", "a b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environ)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        told = (tmp_path / f"on{rank}").read_text()
        assert told == f"2 {rank} yes ['--local_rank=0', '--own', 'a b']"


def test_variables_of_the_environment_file_reach_the_ranks(tmp_path):
    (tmp_path / DEEPSPEED_ENVIRONMENT_NAME).write_text("NCCL_DEBUG=WARN\nSET_ALREADY=1\n")
    assert spec(environ={"SET_ALREADY": "2"}).env == {"NCCL_DEBUG": "WARN"}


def test_what_is_not_served_says_with_which_wheel_it_comes():
    with pytest.raises(LaunchError, match="ds-elastic"):
        spec("--elastic_training")
    with pytest.raises(LaunchError, match="ds-tune"):
        spec("--autotuning", "tune")


SCRIPT = """
import argparse, sys
import deepspeed, torch

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int, default=-1)
parser.add_argument("--out")
args = deepspeed.add_config_arguments(parser).parse_args()
deepspeed.init_distributed()
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
engine, optimizer, loader, _ = deepspeed.initialize(
    args=args, model=model, model_parameters=model.parameters(),
    training_data=[(torch.ones(4) * i, torch.tensor(i % 2)) for i in range(8)],
)
assert isinstance(engine, deepspeed.DeepSpeedEngine) and not isinstance(engine, deepspeed.PipelineEngine)
for x, y in loader:
    engine.backward(torch.nn.functional.cross_entropy(engine(x), y))
    engine.step()
assert deepspeed.utils.groups.get_data_parallel_world_size() == 2
assert deepspeed.utils.safe_get_full_fp32_param(model.weight).shape == (2, 4)
rank = deepspeed.comm.get_rank()
assert args.local_rank == rank == engine.local_rank
with open(f"{args.out}/{rank}", "w") as file:
    file.write(f"{engine.global_steps} {optimizer.overflow} {optimizer.cur_scale}")
engine.save_checkpoint(args.out + "/saved")
"""


@pytest.mark.ranks
def test_a_script_as_the_guides_write_it_runs_and_its_weights_come_out(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    config = tmp_path / "ds.json"
    config.write_text(
        '{"train_batch_size": 4, "zero_optimization": {"stage": 2}, '
        '"optimizer": {"type": "Adam", "params": {"lr": 0.01}}, /* a remark */ "steps_per_print": 100,}'
    )
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "train.py", "--out", str(tmp_path)]
    command += ["--deepspeed", "--deepspeed_config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-4000:]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["2 False 1.0"] * 2
    tool = [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", str(tmp_path / "saved"), str(tmp_path / "whole")]
    subprocess.run([*tool, "--safe_serialization"], check=True, timeout=60)
    from safetensors.torch import load_file

    (file,) = (tmp_path / "whole").glob("*.safetensors")
    assert load_file(file)["weight"].shape == (2, 4)


def test_ds_report_reports(capsys):
    from deepspeed.env_report import cli_main

    cli_main(["--hide_operator_status"])
    assert "ds-core" in capsys.readouterr().out
