"""Process groups of the job's mesh."""

from __future__ import annotations

from deepspeed._doors import doors

mpu = None
"""The mesh is planned from the config; nobody hands one in."""

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.groups": (
            "get_data_parallel_group get_data_parallel_rank get_data_parallel_world_size get_model_parallel_group "
            "get_model_parallel_rank get_model_parallel_world_size get_tensor_model_parallel_group "
            "get_tensor_model_parallel_rank get_tensor_model_parallel_world_size "
            "get_tensor_model_parallel_src_rank set_tensor_model_parallel_world_size "
            "set_tensor_model_parallel_rank initialize _get_data_parallel_group=get_data_parallel_group "
            "_get_data_parallel_rank=get_data_parallel_rank "
            "_get_data_parallel_world_size=get_data_parallel_world_size "
            "_get_sequence_parallel_group=get_sequence_parallel_group "
            "_get_sequence_parallel_rank=get_sequence_parallel_rank "
            "_get_sequence_parallel_world_size=get_sequence_parallel_world_size "
            "_get_sequence_data_parallel_group=get_data_parallel_group "
            "_get_sequence_data_parallel_rank=get_data_parallel_rank "
            "_get_sequence_data_parallel_world_size=get_data_parallel_world_size "
            "_get_expert_parallel_group=get_expert_parallel_group "
            "_get_expert_parallel_rank=get_expert_parallel_rank "
            "_get_expert_parallel_world_size=get_expert_parallel_world_size "
            "_get_expert_data_parallel_group=get_expert_data_parallel_group "
            "_get_expert_data_parallel_rank=get_expert_data_parallel_rank "
            "_get_expert_data_parallel_world_size=get_expert_data_parallel_world_size "
            "_get_max_expert_size=get_max_expert_size _get_broadcast_src_rank=get_broadcast_src_rank "
            "_get_expert_broadcast_src_rank=get_expert_broadcast_src_rank "
            "_get_model_parallel_group=get_model_parallel_group _get_model_parallel_rank=get_model_parallel_rank "
            "_get_model_parallel_world_size=get_model_parallel_world_size"
        ),
    },
    waiting={
        "ds-zero": (
            "_create_zero_param_parallel_group _get_zero_param_intra_parallel_group "
            "_get_zero_param_intra_parallel_rank_in_mygroup _get_zero_param_intra_parallel_group_world_size "
            "_get_zero_param_intra_parallel_group_ranks _get_local_all_to_all_group"
        ),
    },
    refusals={
        "_create_expert_and_data_parallel": "the mesh is planned from the config; see expert_parallel.autoep_size",
    },
)
