"""Training that torch itself distributes, over shared memory as over gloo."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ds_core.testing import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]


def group_of(backend: str) -> dist.ProcessGroup:
    from ds_core.comm.backends import choose_backend
    from ds_core.comm.discovery import discover

    choose_backend("shm", {}, discover({}))
    group: dist.ProcessGroup = dist.new_group(backend=backend, timeout=timedelta(seconds=20))
    return group


def network() -> torch.nn.Sequential:
    torch.manual_seed(1)
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(33, 33), torch.nn.GELU())]
    return torch.nn.Sequential(*layers, torch.nn.Linear(33, 1))


def losses_of(model: torch.nn.Module) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(5):
        x = torch.randn(8, 33, generator=generator)
        loss = (model(x).float() - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def train_replicas(backend: str) -> list[float]:
    return losses_of(DistributedDataParallel(network(), process_group=group_of(backend), bucket_cap_mb=0.005))


def test_replicas_of_torch_have_the_same_losses() -> None:
    ours, gloos = run_ranks(train_replicas, 2, "shm"), run_ranks(train_replicas, 2, "gloo")
    assert ours == gloos  # two ranks: one sum in any order
    assert ours[0] != ours[1]


def train_shards(backend: str, narrow: bool) -> list[float]:
    mesh = DeviceMesh.from_group(group_of(backend), "cpu")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32 if narrow else None)
    model = network()
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh, mp_policy=policy if narrow else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh, mp_policy=policy if narrow else MixedPrecisionPolicy())
    return losses_of(model)


@pytest.mark.parametrize("narrow", [False, True])
def test_shards_of_torch_have_the_same_losses(narrow: bool) -> None:
    ours, gloos = run_ranks(train_shards, 2, "shm", narrow), run_ranks(train_shards, 2, "gloo", narrow)
    for mine, theirs in zip(ours, gloos, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def save_and_load(folder: str) -> bool:
    """A checkpoint of torch, saved and loaded in the group that shares memory."""
    group = group_of("shm")
    mesh = DeviceMesh.from_group(group, "cpu")
    model = network()
    fully_shard(model, mesh=mesh)
    before = {name: value.full_tensor() for name, value in model.state_dict().items()}
    dcp.save(model.state_dict(), checkpoint_id=folder, process_group=group)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state = model.state_dict()
    dcp.load(state, checkpoint_id=folder, process_group=group)
    model.load_state_dict(state)
    return all(torch.equal(value.full_tensor(), before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_of_torch(tmp_path: Path) -> None:
    assert run_ranks(save_and_load, 2, str(tmp_path)) == [True, True]
