"""The ``zero_optimization`` section: what this version serves, and every other key with the reason it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ds_core.config import Section
from ds_core.config.catalog import names
from ds_core.config.section import Moved, Refused

__all__ = ["ZeroConfig"]

Positive = Annotated[int, Field(ge=1)]

STAGE_3 = "it acts on sharded parameters (stage 3), which this version of ds-zero does not have yet; take it out"
OFFLOAD = "offload is not in this version of ds-zero yet; take it out or set device to none"
PLUS = "ZeRO++, MiCS, ZenFlow and SuperOffload are not in this version of ds-zero yet; take it out"
NO_EFFECT = "it would change nothing here"

_STAGE_3_KEYS: Mapping[str, tuple[Any, ...]] = {
    "prefetch_bucket_size": (50_000_000,),
    "param_persistence_threshold": (100_000,),
    "model_persistence_threshold": (9_223_372_036_854_775_807,),
    "max_live_parameters": (1_000_000_000,),
    "max_reuse_distance": (1_000_000_000,),
    "gather_16bit_weights_on_model_save": (),
    "module_granularity_threshold": (0,),
    "use_all_reduce_for_fetch_params": (),
    "allgather_sequential": (),
}
"""Keys of sharded parameters and the values that ask for nothing: their defaults."""


def _stage_3() -> dict[str, Refused]:
    refused = {}
    for key, idle in _STAGE_3_KEYS.items():
        refused[key] = refused[f"stage3_{key}"] = Refused(STAGE_3, idle)
    refused["stage3_gather_fp16_weights_on_model_save"] = Refused(STAGE_3)
    refused["sub_group_size"] = Refused(STAGE_3, (1_000_000_000,))
    for key in ("memory_efficient_linear", "override_module_apply"):
        refused[key] = Refused(STAGE_3, (True,))
    refused["leaf_module"] = Refused(STAGE_3, keys=names("classes names name_suffixes"))
    refused["log_trace_cache_warnings"] = Refused(STAGE_3)
    return refused


def _offload() -> dict[str, Refused]:
    param = names("device nvme_path buffer_count buffer_size max_in_cpu pin_memory")
    optimizer = names(
        "device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio super_offload "
        "cpuadam_cores_perc"
    )
    none = ({"device": "none"},)
    refused = {
        "offload_param": Refused(OFFLOAD, none, param),
        "offload_optimizer": Refused(OFFLOAD, none, optimizer),
    }
    return refused | {
        key: Refused(f"{OFFLOAD}; the current key is offload_optimizer")
        for key in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory")
    }


def _plus() -> dict[str, Refused]:
    zenflow = (
        "topk_ratio select_strategy select_interval update_interval overlap_step offload auto_ratio "
        "full_warm_up_rounds pt_reserved_cores_perc steps_per_epoch"
    )
    return {
        "zero_hpz_partition_size": Refused(PLUS, (1,)),
        "zero_quantized_weights": Refused(PLUS),
        "zero_quantized_nontrainable_weights": Refused(PLUS),
        "zero_quantized_gradients": Refused(PLUS),
        "zeropp_loco_param": Refused(PLUS, keys=names("err_beta reset_T")),
        "mics_shard_size": Refused(PLUS, (-1,)),
        "mics_hierarchical_params_gather": Refused(PLUS),
        "zenflow": Refused(PLUS, keys=names(zenflow)),
        "save_muon_momentum_buffer_in_memory": Refused(PLUS),
    }


class ZeroConfig(Section):
    """Sharding of training state over data-parallel ranks."""

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What is sharded: 0 nothing, 1 optimizer state; 2 (gradients) and 3 (parameters) are not served yet."""
    reduce_scatter: bool = True
    """Reduce-scatter gradients to their owners; false all-reduces them, twice the bytes, for backends that lack it."""
    reduce_bucket_size: Positive = 500_000_000
    """Elements reduced by one collective; a parameter is never cut by a bucket's end."""
    allgather_bucket_size: Positive = 500_000_000
    """Elements gathered by one collective. Gradients and parameters share buckets, so the smaller size counts."""
    ignore_unused_parameters: bool = True
    """Accept steps in which a parameter receives no gradient on any rank; false makes that an error."""

    legacy_keys: ClassVar[Mapping[str, str | Moved]] = {
        "allgather_size": "allgather_bucket_size",
    }
    legacy_values: ClassVar[tuple[tuple[Any, Mapping[str, Any]], ...]] = ((True, {"stage": 1}), (False, {"stage": 0}))
    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        **_stage_3(),
        **_offload(),
        **_plus(),
        "contiguous_gradients": Refused("gradients always lie in one flat buffer; take it out", (True,)),
        "use_multi_rank_bucket_allreduce": Refused("buckets always hold all ranks' parts; take it out", (True,)),
        "allgather_partitions": Refused("parameters are always all-gathered, not broadcast; take it out", (True,)),
        "overlap_comm": Refused(
            "this version reduces after the last backward of a step, which serves any number of backwards; take it out"
        ),
        "load_from_fp32_weights": Refused("masters are always restored from fp32; take it out", (True,)),
        "elastic_checkpoint": Refused("every checkpoint loads at any number of ranks; take it out", (True,)),
        "round_robin_gradients": Refused(f"{NO_EFFECT}: no stage copies gradients; take it out"),
        "legacy_stage1": Refused("there is one stage 1; take it out"),
        "pipeline_loading_checkpoint": Refused(f"{NO_EFFECT}: ranks read only their own shard; take it out"),
        "enable_sanity_checks": Refused("it is not in this version of ds-zero yet; take it out"),
        "compute_grad_norm": Refused("the norm is always computed; it is what finds overflows; take it out", (True,)),
        "parameter_alignment": Refused("shards are always aligned; take it out"),
    }

    def check(self, config: Any) -> list[str]:
        """Stages this version does not have."""
        if self.stage > 2:
            return [
                f"zero_optimization.stage {self.stage} is not in this version of ds-zero: it has stages 0 and 1; "
                "set it to 1"
            ]
        return []
