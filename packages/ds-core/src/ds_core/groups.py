"""Process groups of the job's mesh by the names that programs written for DeepSpeed and Megatron use.

The mesh is the one of the engine that was built last in this process. Before there is one, every rank of the job is
data-parallel; an axis that the mesh does not have is a group of one rank. Experts of all layers share one axis, so
that the name of an expert group, where a call takes one, says nothing.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NoReturn

from ds_core import comm
from ds_core.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ds_core.mesh import Mesh

__all__ = [
    "current_mesh",
    "get_broadcast_src_rank",
    "get_data_parallel_group",
    "get_data_parallel_rank",
    "get_data_parallel_world_size",
    "get_expert_broadcast_src_rank",
    "get_expert_data_parallel_group",
    "get_expert_data_parallel_rank",
    "get_expert_data_parallel_world_size",
    "get_expert_parallel_group",
    "get_expert_parallel_rank",
    "get_expert_parallel_world_size",
    "get_max_expert_size",
    "get_model_parallel_group",
    "get_model_parallel_rank",
    "get_model_parallel_world_size",
    "get_sequence_parallel_group",
    "get_sequence_parallel_rank",
    "get_sequence_parallel_world_size",
    "get_tensor_model_parallel_group",
    "get_tensor_model_parallel_rank",
    "get_tensor_model_parallel_src_rank",
    "get_tensor_model_parallel_world_size",
    "initialize",
    "set_tensor_model_parallel_rank",
    "set_tensor_model_parallel_world_size",
    "use",
]

EXPERT, SEQUENCE, TENSOR = "expert", "sequence", "tensor"
_MESHES: list[weakref.ref[Mesh]] = []


def use(mesh: Mesh) -> None:
    """Makes `mesh` the one that is asked from now on, as long as somebody keeps it."""
    _MESHES[:] = [weakref.ref(mesh)]


def current_mesh() -> Mesh | None:
    """The mesh of the engine that was built last, if there is one."""
    return _MESHES[0]() if _MESHES else None


def _batch(mesh: Mesh | None) -> tuple[str, ...]:
    return () if mesh is None else mesh.batch_axes


def _group(*axes: str) -> ProcessGroup | None:
    mesh = current_mesh()
    return None if mesh is None else mesh.group(*axes)


def _rank(*axes: str) -> int:
    mesh = current_mesh()
    return 0 if mesh is None else mesh.rank(*axes)


def _size(*axes: str) -> int:
    mesh = current_mesh()
    return 1 if mesh is None else mesh.size(*axes)


def get_data_parallel_group() -> ProcessGroup | None:
    """Ranks among which a batch is divided; None in a job of one process."""
    mesh = current_mesh()
    return comm.get_world_group() if mesh is None else mesh.group(*mesh.batch_axes)


def get_data_parallel_rank() -> int:
    """This rank among them."""
    mesh = current_mesh()
    return comm.get_rank() if mesh is None else mesh.rank(*mesh.batch_axes)


def get_data_parallel_world_size() -> int:
    """How many they are."""
    mesh = current_mesh()
    return comm.get_world_size() if mesh is None else mesh.size(*mesh.batch_axes)


def get_broadcast_src_rank() -> int:
    """World rank of the first data-parallel rank of this rank's model."""
    mesh = current_mesh()
    return 0 if mesh is None else mesh.ranks(*mesh.batch_axes)[0]


def get_model_parallel_group() -> ProcessGroup | None:
    """Ranks that work on one sample together, along all axes that divide the model."""
    mesh = current_mesh()
    return None if mesh is None else mesh.group(*(mesh.model_axes or ("model",)))


def get_model_parallel_rank() -> int:
    """This rank among them."""
    mesh = current_mesh()
    return 0 if mesh is None else mesh.rank(*mesh.model_axes)


def get_model_parallel_world_size() -> int:
    """How many they are."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.size(*mesh.model_axes)


def get_tensor_model_parallel_group() -> ProcessGroup | None:
    """Ranks that share one layer."""
    return _group(TENSOR)


def get_tensor_model_parallel_rank() -> int:
    """This rank among them."""
    return _rank(TENSOR)


def get_tensor_model_parallel_world_size() -> int:
    """How many they are."""
    return _size(TENSOR)


def get_tensor_model_parallel_src_rank() -> int:
    """World rank of the first of them."""
    mesh = current_mesh()
    return comm.get_rank() if mesh is None else mesh.ranks(TENSOR)[0]


def set_tensor_model_parallel_rank(rank: int) -> NoReturn:
    """Refused; see `initialize`."""
    _planned(f"set_tensor_model_parallel_rank({rank})")


def set_tensor_model_parallel_world_size(world_size: int) -> NoReturn:
    """Refused; see `initialize`."""
    _planned(f"set_tensor_model_parallel_world_size({world_size})")


def get_sequence_parallel_group() -> ProcessGroup | None:
    """Ranks that share one sequence."""
    return _group(SEQUENCE)


def get_sequence_parallel_rank() -> int:
    """This rank among them."""
    return _rank(SEQUENCE)


def get_sequence_parallel_world_size() -> int:
    """How many they are."""
    return _size(SEQUENCE)


def get_expert_parallel_group(group_name: str | None = None) -> ProcessGroup | None:
    """Ranks among which the experts of a layer are divided."""
    return _group(EXPERT)


def get_expert_parallel_rank(group_name: str | None = None) -> int:
    """This rank among them."""
    return _rank(EXPERT)


def get_expert_parallel_world_size(group_name: str | None = None) -> int:
    """How many they are."""
    return _size(EXPERT)


def get_max_expert_size() -> int:
    """How many they are in the layer that is divided most."""
    return _size(EXPERT)


def _same_experts() -> tuple[str, ...]:
    return tuple(axis for axis in _batch(current_mesh()) if axis != EXPERT)


def get_expert_data_parallel_group(group_name: str | None = None) -> ProcessGroup | None:
    """Ranks that have the same experts and different samples."""
    return get_data_parallel_group() if current_mesh() is None else _group(*(_same_experts() or ("self",)))


def get_expert_data_parallel_rank(group_name: str | None = None) -> int:
    """This rank among them."""
    return get_data_parallel_rank() if current_mesh() is None else _rank(*_same_experts())


def get_expert_data_parallel_world_size(group_name: str | None = None) -> int:
    """How many they are."""
    return get_data_parallel_world_size() if current_mesh() is None else _size(*_same_experts())


def get_expert_broadcast_src_rank(group_name: str | None = None) -> int:
    """World rank of the first rank that has the same experts."""
    mesh = current_mesh()
    return 0 if mesh is None else mesh.ranks(*(_same_experts() or ("self",)))[0]


def initialize(ep_size: int = 1, mpu: object = None) -> None:
    """Nothing to do for one rank per expert group; else refused, for the mesh is planned from the config.

    Raises:
        ConfigError: `ep_size` above 1, or `mpu`.
    """
    if ep_size != 1 or mpu is not None:
        _planned(f"groups.initialize(ep_size={ep_size}, mpu={mpu!r})")


def _planned(call: str) -> NoReturn:
    raise ConfigError(
        f"{call} is not taken: the mesh is planned from the config by the wheels that divide a model "
        "(expert_parallel.autoep_size, pipeline.stages); set it there"
    )
