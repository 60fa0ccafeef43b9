"""The ``expert_parallel`` section: what is refused says why and what to do, what asks for nothing passes."""

from __future__ import annotations

import pytest

from ds_core.config import Facts, load, resolve
from ds_core.config.catalog import ENTRIES
from ds_core.errors import ConfigError
from ds_moe.config import ExpertParallel


def read(**settings):
    raw = load({"train_micro_batch_size_per_gpu": 1, "expert_parallel": settings})
    return resolve(raw, Facts(world_size=1, device_type="cpu", param_numel=1, model_dtype="float32"))["expert_parallel"]


def test_every_key_of_the_catalog_is_a_field_or_refused():
    known = ENTRIES["expert_parallel"].keys
    served = {*ExpertParallel.model_fields, *ExpertParallel.aliases, *ExpertParallel.refused_keys}
    assert {*known, "use_data_before_expert_parallelism"} == served  # which has its place at the top in DeepSpeed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_tensor_parallel_size", 2),
        ("validate_folding_routing", True),
        ("disable_triton_grouped_mm", True),
        ("combine_impl", "legacy_bmm"),
        ("comm_backend", "deepep"),
        ("comm_num_sm", 12),
        ("comm_qp_margin", 4),
        ("comm_max_tokens_per_rank", 4096),
        ("async_split_plan", True),
        ("row_weighting_impl", "fused"),
        ("gate_up_impl", "fused"),
        ("fused_weighted_sum", True),
        ("expert_activation", "swiglu_oai"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"expert_parallel\.{key}"):
        read(**{key: value})


def test_what_asks_for_nothing_passes():
    section = read(
        expert_tensor_parallel_size=1,
        combine_impl="auto",
        comm_backend="comm",
        row_weighting_impl="auto",
        load_balance_coeff=None,
        score_func="auto",
        routed_scaling_factor="auto",
        route_norm=None,
        num_expert_groups=None,
    )
    assert section == ExpertParallel()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"autoep_size": 2}, "autoep_size is 2 but expert_parallel.enabled is false"),
        ({"enabled": True, "moe_layer_pattern": "("}, "moe_layer_pattern must be a regular expression"),
        ({"num_expert_groups": 2}, "num_limited_groups go together"),
        ({"num_expert_groups": 2, "num_limited_groups": 3}, r"must be at most num_expert_groups \(2\), got 3"),
        ({"expert_w1": "up"}, "expert_w1 and expert_parallel.expert_w2 go together"),
        ({"preset_model": "llama"}, "preset_model"),
        ({"autoep_size": 0}, "autoep_size"),
        ({"load_balance_coeff": -1.0}, "load_balance_coeff"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        read(**settings)


def test_a_scale_has_two_names():
    assert read(routed_scaling_factor=2.5).route_scale == 2.5
