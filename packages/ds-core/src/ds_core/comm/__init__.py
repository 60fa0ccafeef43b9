"""Collectives as torch.distributed names them, counted on every call and explained when they fail.

With one rank and no process group every collective is an identity. Importing this imports torch; making a process
group is left to `init_distributed`.
"""

from __future__ import annotations

from torch.distributed import ProcessGroup, ReduceOp

from ds_core.comm.collectives import (
    all_reduce,
    all_reduce_coalesced,
    barrier,
    broadcast,
    inference_all_reduce,
    monitored_barrier,
    reduce,
)
from ds_core.comm.compat import (
    enable_symm_mem_for_group,
    has_all_gather_into_tensor,
    has_all_reduce_coalesced,
    has_coalescing_manager,
    has_reduce_scatter_tensor,
    in_aml,
    in_aws_sm,
    in_dlts,
    init_deepspeed_backend,
    initialize_mesh_device,
    patch_aml_env_for_torch_nccl_backend,
    patch_aws_sm_env_for_torch_nccl_backend,
    set_backend,
)
from ds_core.comm.counter import (
    CommReport,
    CommRow,
    scope,
)
from ds_core.comm.discovery import (
    Placement,
    discover,
)
from ds_core.comm.issue import (
    Handle,
)
from ds_core.comm.logs import (
    configure,
    get_comm_operation_count,
    get_logged_comm_ops,
    has_comm_data,
    log_summary,
    report,
    reset,
    reset_log,
)
from ds_core.comm.objects import (
    agree,
    all_gather_object,
    broadcast_object_list,
    gather_json,
)
from ds_core.comm.p2p import (
    irecv,
    isend,
    recv,
    send,
)
from ds_core.comm.pieces import (
    all_gather,
    all_gather_coalesced,
    all_gather_into_tensor,
    all_to_all,
    all_to_all_single,
    allgather_fn,
    gather,
    reduce_scatter,
    reduce_scatter_fn,
    reduce_scatter_tensor,
    scatter,
)
from ds_core.comm.quantized import (
    all_gather_quantized,
    reduce_scatter_quantized,
)
from ds_core.comm.ranks import (
    get_all_ranks_from_group,
    get_global_rank,
    get_local_rank,
    get_local_world_size,
    get_rank,
    get_world_group,
    get_world_size,
    is_available,
    is_initialized,
)
from ds_core.comm.setup import (
    destroy_process_group,
    init_distributed,
    mpi_discovery,
    new_group,
)

__all__ = [
    "CommReport",
    "CommRow",
    "Handle",
    "Placement",
    "ProcessGroup",
    "ReduceOp",
    "agree",
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_quantized",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all",
    "all_to_all_single",
    "allgather_fn",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "configure",
    "destroy_process_group",
    "discover",
    "enable_symm_mem_for_group",
    "gather",
    "gather_json",
    "get_all_ranks_from_group",
    "get_comm_operation_count",
    "get_global_rank",
    "get_local_rank",
    "get_local_world_size",
    "get_logged_comm_ops",
    "get_rank",
    "get_world_group",
    "get_world_size",
    "has_all_gather_into_tensor",
    "has_all_reduce_coalesced",
    "has_coalescing_manager",
    "has_comm_data",
    "has_reduce_scatter_tensor",
    "in_aml",
    "in_aws_sm",
    "in_dlts",
    "inference_all_reduce",
    "init_deepspeed_backend",
    "init_distributed",
    "initialize_mesh_device",
    "irecv",
    "is_available",
    "is_initialized",
    "isend",
    "log_summary",
    "monitored_barrier",
    "mpi_discovery",
    "new_group",
    "patch_aml_env_for_torch_nccl_backend",
    "patch_aws_sm_env_for_torch_nccl_backend",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_fn",
    "reduce_scatter_quantized",
    "reduce_scatter_tensor",
    "report",
    "reset",
    "reset_log",
    "scatter",
    "scope",
    "send",
    "set_backend",
]
