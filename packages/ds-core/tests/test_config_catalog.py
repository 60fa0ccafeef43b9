"""Every key DeepSpeed's config has ends in exactly one outcome: served, waiting for a wheel, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds_core.config import Facts, load, resolve
from ds_core.config.catalog import ELSEWHERE, ENTRIES, OPTIMIZERS, RELEASED, Tree
from ds_core.errors import ConfigError, MissingWheelError

LINES = (Path(__file__).parent / "data" / "config_keys.txt").read_text().splitlines()
KEYS = [line for line in LINES if not line.startswith("#")]
TRAINING = [key for key in KEYS if "=" not in key and not key.startswith("@")]
OPTIMIZER_PARAMS = [key.removeprefix("optimizer.type=") for key in KEYS if "=" in key]
OTHERS = [key[1:] for key in KEYS if key.startswith("@")]

SERVED_SECTIONS = {
    "bf16", "bfloat16", "checkpoint", "comms_logger", "data_types", "fp16", "jsonl_monitor", "optimizer", "scheduler",
    "tensorboard", "timers", "torch_autocast", "aio",
}  # fmt: skip
SERVED_SCALARS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "managed_gradient_accumulation", "steps_per_print", "gradient_clipping", "prescale_gradients",
    "gradient_predivide_factor", "gradient_allreduce_op", "communication_data_type", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "dump_state", "wall_clock_breakdown", "memory_breakdown", "dataloader_drop_last", "log_level", "vocabulary_size",
    "data_parallel_size", "accelerator", "seed",
}  # fmt: skip
REFUSED = {
    "optimizer.legacy_fusion", "sparse_gradients", "disable_allgather", "graph_harvesting", "amp.enabled",
    "amp.opt_level", "checkpoint.load_universal", "checkpoint.use_node_local_storage",
    "checkpoint.checkpoint_serialization", "checkpoint.parallel_write.pipeline_stage", "checkpoint.writer.type",
    "checkpoint.writer.decoupled", "checkpoint.writer.io_buffer_size", "checkpoint.writer.io_buffer_double",
    "checkpoint.writer.show_statistics", "checkpoint.writer.data_parallel", "checkpoint.writer.io_multiplier",
}  # fmt: skip


def written(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def outcomes(key: str) -> set[str]:
    """What the reader says about `key` when it asks for something."""
    try:
        load(written(key, "some value"), sections=())
    except MissingWheelError:
        return {"missing"}
    except ConfigError as error:
        text = str(error)
        found = {"unknown"} if "is not a known key" in text else set()
        found |= {"refused"} if "is not served" in text else set()
        return found or {"served"}  # a value of the wrong type: somebody looked at it
    return {"served"}


def test_the_list_is_whole() -> None:
    assert len(KEYS) == len(set(KEYS))
    assert len(KEYS) > 650
    tops = {key.partition(".")[0] for key in TRAINING}
    assert set(ENTRIES) <= tops
    assert tops >= SERVED_SCALARS | SERVED_SECTIONS


def test_every_training_key_has_exactly_one_outcome() -> None:
    found = {key: outcomes(key) for key in TRAINING}
    assert [key for key, kinds in found.items() if len(kinds) != 1 or "unknown" in kinds] == []
    by_kind: dict[str, set[str]] = {}
    for key, kinds in found.items():
        by_kind.setdefault(next(iter(kinds)), set()).add(key)
    assert by_kind["refused"] == REFUSED
    served = {key for key in TRAINING if key.partition(".")[0] in SERVED_SECTIONS | SERVED_SCALARS} - REFUSED
    assert by_kind["served"] == served


@pytest.mark.parametrize("key", sorted(key for key, entry in ENTRIES.items() if entry.keys and "*" not in entry.keys))
def test_a_typo_is_caught_where_nobody_serves_the_section(key: str) -> None:
    entry = ENTRIES[key]
    name = sorted(entry.keys)[-1]
    with pytest.raises(ConfigError) as caught:
        load({key: {name + "x": 1}}, sections=())
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{key}.{name}x is not a known key")
    assert "Did you mean" in first


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("zero_optimization.stage", "zero_optimization asks for ds-zero, which is not installed: pip install ds-zero"),
        ("pipeline.stages", "pipeline asks for ds-pipeline, which is not installed: pip install ds-pipeline"),
        ("wandb.project", "wandb is planned in ds-monitors, which is not released yet"),
        ("flops_profiler.module_depth", "flops_profiler is planned in ds-profile, which is not released yet"),
        ("sequence_parallel_size", "sequence_parallel_size is planned in ds-sequence, which is not released yet"),
    ],
)
def test_a_missing_wheel_is_named_honestly(key: str, message: str) -> None:
    with pytest.raises(MissingWheelError) as caught:
        load(written(key, 3), sections=())
    assert str(caught.value).startswith(message)
    assert ("pip install" in message) == (ENTRIES[key.partition(".")[0]].wheel in RELEASED)


@pytest.mark.parametrize(
    "idle",
    [
        {"zero_optimization": {"stage": 0, "overlap_comm": True}},
        {"zero_optimization": False},
        {"zero_force_ds_cpu_optimizer": True},
        {"wandb": {"enabled": False, "project": "x"}},
        {"data_efficiency": {"enabled": False, "data_sampling": {"enabled": True}}},
        {"compression_training": {"row_pruning": {"shared_parameters": {"enabled": False, "method": "l1"}}}},
        {"activation_checkpointing": {"partition_activations": False, "number_checkpoints": None}},
        {"tensor_parallel": {"autotp_size": 0}},
        {"sequence_parallel_size": 1},
        {"aio": {}},
        {"pipeline": None, "comet": "auto"},
        {"amp": {"enabled": False, "opt_level": "O1"}},
        {"sparse_gradients": False, "disable_allgather": False, "graph_harvesting": None},
        {"checkpoint": {"load_universal": False, "checkpoint_serialization": True, "writer": None,
                        "parallel_write": {"pipeline_stage": False}}},
        {"$schema": "ds.schema.json"},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_passes(idle: dict[str, Any]) -> None:
    resolve(load({"train_batch_size": 1, **idle}, sections=()), Facts(1, 1))


@pytest.mark.parametrize(
    "asking",
    [
        {"zero_optimization": {"stage": 1}},
        {"wandb": {"enabled": True}},
        {"wandb": {"project": "x"}},
        {"datastates_ckpt": {}},
        {"activation_checkpointing": {"partition_activations": True}},
        {"compression_training": {"row_pruning": {"shared_parameters": {"enabled": True}}}},
        {"sequence_parallel_size": 2},
        {"zero_optimization": True},
    ],
)
def test_what_asks_for_something_does_not(asking: dict[str, Any]) -> None:
    with pytest.raises(MissingWheelError):
        load(asking, sections=())


def has(tree: Tree, path: list[str]) -> bool:
    node: Tree | None = tree
    for name in path:
        if node is None or name not in node:
            return False
        node = node[name]
    return True


def test_keys_of_other_configs_are_known_and_named() -> None:
    for line in OTHERS:
        config, _, key = line.partition(":")
        assert has(ELSEWHERE[config][2], key.split(".")), line
    for key, where in {"kernel_inject": "init_inference", "restful_api_port": "MIIConfig"}.items():
        with pytest.raises(ConfigError, match=f"It is a key of {where}"):
            load({key: 1}, sections=())


def test_optimizers_and_their_parameters_are_known() -> None:
    for line in OPTIMIZER_PARAMS:
        name, _, param = line.partition(".")
        wheel, params = OPTIMIZERS[name]
        assert param in params, line
        raw = load({"train_batch_size": 1, "optimizer": {"type": name, "params": {param: 1}}}, sections=())
        if wheel in RELEASED:
            resolve(raw, Facts(1, 1))
        else:
            with pytest.raises(MissingWheelError, match=wheel):
                resolve(raw, Facts(1, 1))


def test_unknown_top_level_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"train_batch_sise": 8}, sections=())
    assert str(caught.value) == (
        "train_batch_sise is not a known key (its value: 8). Did you mean 'train_batch_size'?"
        " `ds config schema` lists the known ones."
    )
    with pytest.raises(ConfigError, match="Did you mean 'zero_optimization'"):
        load({"zero_optimisation": {}}, sections=())
