"""Every key of the ``checkpoint`` section does something, as in test_config_keys_act.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import ds_core
from ds_core.checkpoint import latest_tag
from ds_core.checkpoint.storage.manifest import BLOCK_BYTES
from ds_core.config import Facts, load, resolve
from ds_core.errors import CheckpointError, Preempted
from ds_core.testing import run_ranks


def build(**checkpoint):
    config = {
        "train_micro_batch_size_per_gpu": 3,
        "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
        "checkpoint": checkpoint,
    }
    return ds_core.initialize(model=nn.Linear(6, 2), config=config)[0]


def save(engine, folder: Path, *tags: str) -> set[str]:
    """Saves under each tag, one step apart; the names there are afterwards."""
    for tag in tags:
        engine.backward(engine(torch.ones(3, 6)).square().mean())
        engine.step()
        engine.save_checkpoint(folder, tag=tag)
    engine.wait_for_checkpoint()
    return {path.name for path in folder.iterdir()} - {"latest"}


def keep_last(tmp_path: Path) -> None:
    assert save(build(keep_last=1), tmp_path / "one", "a", "b") == {"b"}
    assert save(build(), tmp_path / "all", "a", "b") == {"a", "b"}


def keep_every(tmp_path: Path) -> None:
    assert save(build(keep_last=1, keep_every=2), tmp_path, "a", "b", "c", "d", "e") == {"b", "d", "e"}


def tag_validation(tmp_path: Path) -> None:
    def outcome(policy: str) -> list[str]:
        return run_ranks(_tags, 2, policy, str(tmp_path / policy))

    assert outcome("Fail") == ["refused", "refused"]
    assert outcome("Warn") == ["saved", "saved"]


def _tags(policy: str, folder: str) -> str:
    import torch.distributed as dist

    engine = build(tag_validation=policy)
    try:
        engine.save_checkpoint(folder, tag=f"r{dist.get_rank()}")
    except CheckpointError:
        return "refused"
    return "saved"


def asynchronous(tmp_path: Path) -> None:
    engine = build(asynchronous=False)
    engine.save_checkpoint(tmp_path / "now", tag="t")
    assert engine._saver._pending is None
    assert (tmp_path / "now" / "t").is_dir()
    engine = build()
    engine.save_checkpoint(tmp_path / "later", tag="t")
    assert engine._saver._pending is not None
    engine.wait_for_checkpoint()


class _Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(BLOCK_BYTES))  # 4 bytes each: four blocks and a bit


def blocks_made(folder: Path, **checkpoint) -> int:
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
        "checkpoint": checkpoint,
    }
    engine = ds_core.initialize(model=_Large(), config=config)[0]
    engine.save_checkpoint(folder, tag="t")
    engine.wait_for_checkpoint()
    return engine._saver._pool.made


def snapshot_limit(tmp_path: Path) -> None:
    assert blocks_made(tmp_path, snapshot_limit_bytes=2 * BLOCK_BYTES) == 2
    assert blocks_made(tmp_path) == 5


def keep_memory(tmp_path: Path) -> None:
    assert blocks_made(tmp_path, keep_snapshot_memory=False) == 0
    assert blocks_made(tmp_path, keep_snapshot_memory=True) == 5


def verify(tmp_path: Path) -> None:
    save(build(), tmp_path, "t")
    data = tmp_path / "t" / "rank-00000.safetensors"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-00000.safetensors is not what was written"):
        build().load_checkpoint(tmp_path)
    build(verify=False).load_checkpoint(tmp_path)


def on_signal(tmp_path: Path) -> None:
    engine = build(on_signal={"folder": str(tmp_path / "saved"), "stop": ["SIGUSR2"], "go_on": ["SIGHUP"]})
    os.kill(os.getpid(), signal.SIGHUP)
    save(engine, tmp_path / "other", "t")
    assert latest_tag(tmp_path / "saved") == "global_step1"
    os.kill(os.getpid(), signal.SIGUSR2)
    with pytest.raises(Preempted):
        save(engine, tmp_path / "other", "u")
    assert latest_tag(tmp_path / "saved") == "global_step2"
    engine.destroy()


OBSERVED = {
    "checkpoint.tag_validation": tag_validation,
    "checkpoint.asynchronous": asynchronous,
    "checkpoint.snapshot_limit_bytes": snapshot_limit,
    "checkpoint.keep_snapshot_memory": keep_memory,
    "checkpoint.verify": verify,
    "checkpoint.keep_last": keep_last,
    "checkpoint.keep_every": keep_every,
    "checkpoint.on_signal.folder": on_signal,
    "checkpoint.on_signal.stop": on_signal,
    "checkpoint.on_signal.go_on": on_signal,
}


def test_every_served_key_has_an_observation():
    served = {row.key for row in resolve(load({"train_batch_size": 4}), Facts(1, 1)).rows()}
    assert {key for key in served if key.startswith("checkpoint.")} == set(OBSERVED)


@pytest.mark.parametrize("key", OBSERVED)
def test_setting_the_key_changes_what_is_observed(key, tmp_path):
    OBSERVED[key](tmp_path)
