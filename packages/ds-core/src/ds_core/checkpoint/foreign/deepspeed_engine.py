"""What a DeepSpeed engine saves beside tensors: counters, client state, schedule, loss scale, hyperparameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ds_core.checkpoint.foreign.indexed import IndexedSource
from ds_core.checkpoint.foreign.plain import number, plain
from ds_core.checkpoint.foreign.records import Record

__all__ = ["engine_state", "hyperparameters", "loss_scale", "updates"]

logger = logging.getLogger(__name__)

_OWN = frozenset(
    (
        "module",
        "buffer_names",
        "optimizer",
        "param_shapes",
        "frozen_param_shapes",
        "frozen_param_fragments",
        "shared_params",
        "lr_scheduler",
        "data_sampler",
        "random_ltd",
        "sparse_tensor_module_names",
        "skipped_steps",
        "global_steps",
        "global_samples",
        "dp_world_size",
        "mp_world_size",
        "checkpoint_parallel_dimensions",
        "ds_config",
        "ds_version",
        "universal_checkpoint_info",
        "autotp_uc_info",
    )
)
"""Keys of the engine's dict; the rest is the user's client state."""
_IMPLEMENTATION = frozenset(
    (
        "params",
        "foreach",
        "fused",
        "capturable",
        "differentiable",
        "step",
    )
)
"""Entries of an optimizer's group that say how it computed, and not what."""


def engine_state(source: IndexedSource, saved: Mapping[str, Any]) -> None:
    """Fills the source's counters, client state, schedule and names from the dict of a model states file."""
    left_out: list[str] = []
    counters = {name: saved.get(name) for name in ("global_steps", "global_samples", "skipped_steps")}
    known = {name: int(value) for name, value in counters.items() if isinstance(value, int | float)}
    if "global_steps" in known:
        known["micro_steps"] = known["global_steps"] * _accumulation(saved)
    source.counters = known
    source.values["module"] = _names(saved)
    extra = {key: value for key, value in saved.items() if key not in _OWN}
    source.client_state = plain(extra, "client_state", left_out)
    if saved.get("lr_scheduler") is not None:
        source.values["lr_scheduler"] = plain(saved["lr_scheduler"], "lr_scheduler", left_out)
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        logger.warning(
            "checkpoint %s holds values that are not plain; they were left out: %s%s",
            source.path,
            ", ".join(left_out[:5]),
            more,
        )


def _names(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Which parameters were frozen, where that is told, and further names of those that have several."""
    shared, groups = saved.get("shared_params"), saved.get("param_shapes")
    tied = {str(name): str(of) for name, of in shared.items()} if isinstance(shared, dict) else {}
    if not groups:
        return {"tied": tied}
    trained = [name for group in (groups if isinstance(groups, list) else [groups]) for name in group]
    others = {*(saved.get("buffer_names") or ()), *tied, *trained}
    listed = dict.fromkeys([*(saved.get("module") or ()), *(saved.get("frozen_param_shapes") or ())])
    return {"frozen": [name for name in listed if name not in others], "tied": tied}


def _accumulation(saved: Mapping[str, Any]) -> int:
    """Micro-batches a step, as the saved config says."""
    config = saved.get("ds_config")
    if not isinstance(config, dict):
        return 1
    steps, whole, micro = (
        config.get(name)
        for name in ("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
    )
    if isinstance(steps, int):
        return max(steps, 1)
    ranks = saved.get("dp_world_size")
    if isinstance(whole, int) and isinstance(micro, int) and isinstance(ranks, int) and micro * ranks > 0:
        return max(whole // (micro * ranks), 1)
    return 1


def loss_scale(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The dynamic loss scaler's state, or None where the scale was fixed or there was none.

    `saved` is an optimizer's dict: its ``loss_scaler`` is a record, or the scaler's attributes are in the dict itself.
    """
    scaler = saved.get("loss_scaler")
    state: Mapping[str, Any] = scaler.attributes if isinstance(scaler, Record) else saved
    if not (state.get("dynamic") or saved.get("dynamic_loss_scale")):
        return None
    scale, steps, overflow = (number(state.get(name)) for name in ("cur_scale", "cur_iter", "last_overflow_iter"))
    if not isinstance(scale, int | float) or scale <= 0:
        return None
    found: dict[str, Any] = {"scale": float(scale)}
    if isinstance(steps, int) and isinstance(overflow, int):
        # Counts that follow the last overflow; theirs counts the update it is about to make, ours those it made.
        found["clean_steps"] = max(steps - overflow - 1, 0)
    tolerance = number(state.get("cur_hysteresis"))
    if isinstance(tolerance, int):
        found["tolerance"] = tolerance
    return found


def updates(saved: Mapping[str, Any]) -> int:
    """Updates that were applied, by an engine's dict."""
    steps, skipped = saved.get("global_steps"), saved.get("skipped_steps")
    return max(steps - (skipped if type(skipped) is int else 0), 0) if type(steps) is int else 0


def hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """The plain entries of an optimizer's group."""
    left_out: list[str] = []
    kept = {name: value for name, value in group.items() if name not in _IMPLEMENTATION}
    found: dict[str, Any] = plain(kept, "a group of the optimizer", left_out)
    return found
