"""The ``zero_optimization`` section: what this version serves, and every other key with the reason it is refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ds_core.config import Section
from ds_core.config.catalog import names
from ds_core.config.section import Moved, Refused
from ds_zero.offload.config import OffloadOptimizer, OffloadParam, problems

if TYPE_CHECKING:
    from ds_core.config import Config

__all__ = ["ZeroConfig"]

Positive = Annotated[int, Field(ge=1)]

PLUS = "ZeRO++, MiCS, ZenFlow and SuperOffload are not in this version of ds-zero yet; take it out"
NO_EFFECT = "it would change nothing here"

STAGE_3_PREFIXED = (
    "prefetch_bucket_size",
    "param_persistence_threshold",
    "max_live_parameters",
    "max_reuse_distance",
    "model_persistence_threshold",
    "module_granularity_threshold",
    "allgather_sequential",
    "use_all_reduce_for_fetch_params",
    "gather_16bit_weights_on_model_save",
)
"""Keys that DeepSpeed also knows with ``stage3_`` in front."""


MOE_BLOCKS = (
    "transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock",
    "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeSparseMoeBlock",
    "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock",
)
"""Mixture-of-experts blocks of Hugging Face models: whole, they take one gather rather than one per expert."""


class LeafModules(Section):
    """Modules that are gathered whole at stage 3."""

    classes: tuple[str, ...] = MOE_BLOCKS
    """Class names, plain or qualified."""
    names: tuple[str, ...] = ()
    """Names of modules in the model."""
    name_suffixes: tuple[str, ...] = ()
    """Ends of names of modules in the model."""


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


def _whole(value: Any) -> Any:
    """Without the fraction: programs compute it as nine tenths of a matrix."""
    return math.floor(value) if type(value) is float and math.isfinite(value) else value


class ZeroConfig(Section):
    """Sharding of training state over data-parallel ranks."""

    stage: Annotated[int, Field(ge=0, le=3)] = 0
    """What is sharded: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""
    reduce_scatter: bool = True
    """Reduce-scatter gradients to their owners; false all-reduces them, twice the bytes, for backends that lack it."""
    reduce_bucket_size: Positive = 500_000_000
    """Elements reduced by one collective; a parameter is never cut by a bucket's end."""
    allgather_bucket_size: Positive = 500_000_000
    """Elements gathered by one collective. Gradients and parameters share buckets, so the smaller size counts."""
    overlap_comm: bool | None = None
    """Reduce gradients while backward goes on; null: at stage 3."""
    prefetch_bucket_size: Annotated[int, Field(ge=0), BeforeValidator(_whole)] | None = None
    """Elements gathered ahead of use at stage 3, of a fraction the whole part; null: one unit, which hides a gather at
    the least memory."""
    param_persistence_threshold: Annotated[int, Field(ge=0)] = 100_000
    """Parameters of at most this many elements stay whole at stage 3."""
    model_persistence_threshold: Annotated[int, Field(ge=0)] = sys.maxsize
    """Elements that may stay whole at stage 3, taken from small parameters in order until it is reached."""
    max_live_parameters: Positive = 1_000_000_000
    """Elements gathered at once at stage 3; what is ahead of use or not needed soon is dropped to stay below."""
    max_reuse_distance: Annotated[int, Field(ge=0)] | None = None
    """Parameters stay whole from forward to backward at stage 3 when fewer elements than this are used in between;
    null: 0, all are released. DeepSpeed's default of 10^9 keeps every parameter of models below half of that whole."""
    module_granularity_threshold: Annotated[int, Field(ge=0)] = 0
    """Modules with at most this many elements are gathered whole; 0: with at most the largest parameter's."""
    allgather_sequential: bool = False
    """Wait for each gather before the next is started."""
    use_all_reduce_for_fetch_params: bool = False
    """Gather with all-reduces, twice the bytes, for backends that are poor at all-gathers."""
    allgather_partitions: bool = True
    """Share updated parameters by all-gather; false broadcasts each rank's part in turn."""
    gather_16bit_weights_on_model_save: bool = True
    """``engine.save_16bit_model`` gathers and writes at stage 3; false makes it return False and write nothing."""
    override_module_apply: bool = True
    """``module.apply(fn)`` gathers each module's parameters around `fn` at stage 3 and keeps what it changes."""
    load_from_fp32_weights: bool = True
    """A checkpoint's fp32 masters are restored; false makes masters anew from the loaded working weights."""
    log_trace_cache_warnings: bool = False
    """Log when modules run in another order than in the passes before, which costs gathers nobody foresaw."""
    enable_sanity_checks: bool = False
    """Compare across ranks: the plan once, and after every step whatever all ranks hold whole."""
    leaf_module: LeafModules = Field(default_factory=LeafModules)
    ignore_unused_parameters: bool = True
    """Accept steps in which a parameter receives no gradient on any rank; false makes that an error."""

    sub_group_size: Positive = 1_000_000_000
    """Elements of a tile of offloaded optimizer states: what moves between file, host and device at a time."""
    offload_optimizer: OffloadOptimizer = Field(default_factory=OffloadOptimizer)
    """Master weights, optimizer states and updates away from the device, at stages 1 to 3."""
    offload_param: OffloadParam = Field(default_factory=OffloadParam)
    """Shards of parameters away from the device, at stage 3."""

    legacy_keys: ClassVar[Mapping[str, str | Moved]] = {
        "cpu_offload": Moved("offload_optimizer.device", {True: "cpu", False: "none"}),
        "cpu_offload_param": Moved("offload_param.device", {True: "cpu", False: "none"}),
        "cpu_offload_use_pin_memory": "offload_optimizer.pin_memory",
        "allgather_size": "allgather_bucket_size",
        **{f"stage3_{key}": key for key in STAGE_3_PREFIXED},
        "stage3_gather_fp16_weights_on_model_save": "gather_16bit_weights_on_model_save",
    }
    legacy_values: ClassVar[tuple[tuple[Any, Mapping[str, Any]], ...]] = ((True, {"stage": 1}), (False, {"stage": 0}))
    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        **_plus(),
        "contiguous_gradients": Refused("gradients always lie in one flat buffer; take it out", (True,)),
        "use_multi_rank_bucket_allreduce": Refused("buckets always hold all ranks' parts; take it out", (True,)),
        "memory_efficient_linear": Refused("autograd never keeps gathered weights; take it out", (True,)),
        "elastic_checkpoint": Refused("every checkpoint loads at any number of ranks; take it out", (True,)),
        "round_robin_gradients": Refused("every bucket is spread evenly over all ranks; take it out", (True,)),
        "legacy_stage1": Refused("there is one stage 1; take it out"),
        "pipeline_loading_checkpoint": Refused(f"{NO_EFFECT}: ranks read only their own shard; take it out"),
        "compute_grad_norm": Refused("the norm is always computed; it is what finds overflows; take it out", (True,)),
        "parameter_alignment": Refused("shards are always aligned; take it out"),
    }

    def check(self, config: Config) -> Iterable[str]:
        """Offload that has no place."""
        return problems(self.stage, self.offload_optimizer, self.offload_param)
