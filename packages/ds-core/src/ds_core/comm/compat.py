"""The rest of the drop-in names: questions about the build and the surroundings, and what this package does instead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ds_core.comm.setup import init_distributed, mpi_discovery
from ds_core.errors import CommError

__all__ = [
    "enable_symm_mem_for_group",
    "has_all_gather_into_tensor",
    "has_all_reduce_coalesced",
    "has_coalescing_manager",
    "has_reduce_scatter_tensor",
    "in_aml",
    "in_aws_sm",
    "in_dlts",
    "init_deepspeed_backend",
    "initialize_mesh_device",
    "patch_aml_env_for_torch_nccl_backend",
    "patch_aws_sm_env_for_torch_nccl_backend",
    "set_backend",
]


def has_all_gather_into_tensor() -> bool:
    """True: every supported torch has it."""
    return True


def has_reduce_scatter_tensor() -> bool:
    """True: every supported torch has it."""
    return True


def has_all_reduce_coalesced() -> bool:
    """True: it is made of asynchronous all-reduces here."""
    return True


def has_coalescing_manager() -> bool:
    """False: collectives are coalesced by their own functions, not by a context manager."""
    return False


def initialize_mesh_device(mesh_shape: Sequence[int], mesh_dim_names: Sequence[str]) -> DeviceMesh:
    """torch's DeviceMesh of this shape on the accelerator in use; the process group is started when needed."""
    from ds_core.accelerator import select

    init_distributed()
    return init_device_mesh(select().device_type, tuple(mesh_shape), mesh_dim_names=tuple(mesh_dim_names))


def enable_symm_mem_for_group(group_name: str) -> None:
    """Let torch's symmetric memory serve the group; CommError where the device has none."""
    if not torch.cuda.is_available():
        raise CommError(
            f"symmetric memory for group {group_name!r}: torch offers it between CUDA devices only, and there is none "
            "here; the ordinary collectives work without it"
        )
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group as enable

    enable(group_name)  # type: ignore[arg-type]


def set_backend(*_args: Any, **_kwargs: Any) -> NoReturn:
    """Not offered: there is one backend layer, torch.distributed."""
    raise CommError(
        "set_backend: there is no second backend layer beside torch.distributed to switch to; name a torch backend in "
        "init_distributed(dist_backend=...) or DS_COMM_BACKEND, or bring one with the hook ds_comm_backends"
    )


def init_deepspeed_backend(ds_backend: str | None = None, *_args: Any, **_kwargs: Any) -> NoReturn:
    """Not offered: collectives run on torch.distributed backends only."""
    raise CommError(
        f"init_deepspeed_backend({ds_backend!r}): collectives run on torch.distributed backends only; use "
        "init_distributed(dist_backend=...), and the hook ds_comm_backends for one that torch does not know"
    )


def in_aml() -> bool:
    """Whether this is an Azure Machine Learning job."""
    return "AZUREML_EXPERIMENT_ID" in os.environ


def in_aws_sm() -> bool:
    """Whether this is an Amazon SageMaker training job."""
    return "SM_TRAINING_ENV" in os.environ


def in_dlts() -> bool:
    """Whether this is a DLTS job."""
    return "DLTS_JOB_ID" in os.environ


def patch_aml_env_for_torch_nccl_backend(master_port: int = 6105, verbose: bool = True) -> None:
    """Set torchrun's variables in an Azure Machine Learning MPI job; `init_distributed` finds them without it."""
    mpi_discovery(master_port, verbose)


def patch_aws_sm_env_for_torch_nccl_backend(verbose: bool = True) -> None:
    """Set torchrun's variables in a SageMaker MPI job; `init_distributed` finds them without it."""
    mpi_discovery(int(os.environ.get("MASTER_PORT", "29500")), verbose)
