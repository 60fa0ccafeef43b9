"""What sharded parameters say about themselves: the ``ds_*`` attributes that libraries written for DeepSpeed read.

A sharded parameter here keeps its logical shape, so ``ds_shape`` and ``ds_numel`` repeat what it says anyway; libraries
ask for them first. Whether values are there changes all the time and is answered when it is asked.
"""

from __future__ import annotations

import enum
import itertools
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.placeholder import is_placeholder

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["OffloadDeviceEnum", "ZeroParamStatus", "ZeroParamType", "ZeroStageEnum", "describe", "describe_copy"]
__all__ += ["describe_shard"]
__all__ += ["forget", "is_described"]

_numbers = itertools.count()
_ATTRIBUTES = (
    "ds_id",
    "ds_shape",
    "ds_numel",
    "ds_status",
    "ds_param_type",
    "ds_persist",
    "ds_process_group",
    "ds_tensor",
    "all_gather",
    "partition",
    "partition_numel",
)


class ZeroParamStatus(enum.Enum):
    """Where the values of a parameter are."""

    AVAILABLE = 1
    """Here, all of them."""
    NOT_AVAILABLE = 2
    """In shards."""
    INFLIGHT = 3
    """On the way; never seen from outside here, for who asks waits."""


class ZeroParamType(enum.Enum):
    """How a parameter is kept."""

    NORMAL = 1
    PARTITIONED = 2
    REMOTE = 3


class ZeroStageEnum(enum.IntEnum):
    """The stages by name."""

    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3
    max_stage = 3


class OffloadDeviceEnum(str, enum.Enum):
    """Where offloaded states and parameters go."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


class _Status:
    """Equal to the `ZeroParamStatus` that a parameter has when it is compared."""

    __hash__ = None  # type: ignore[assignment] # it changes

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        self._parameter: weakref.ref[torch.nn.Parameter] = weakref.ref(parameter)

    def now(self) -> ZeroParamStatus:
        """The status of the moment."""
        parameter = self._parameter()
        is_here = parameter is None or not is_placeholder(parameter.data)
        return ZeroParamStatus.AVAILABLE if is_here else ZeroParamStatus.NOT_AVAILABLE

    @property
    def name(self) -> str:
        """As of the enum's member."""
        return self.now().name

    def __eq__(self, other: object) -> bool:
        return self.now() is (other.now() if isinstance(other, _Status) else other)

    def __repr__(self) -> str:
        return repr(self.now())


class _Calls:
    """``all_gather`` and ``partition`` of one parameter."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        self._parameter: weakref.ref[torch.nn.Parameter] = weakref.ref(parameter)
        self._open: ExitStack | None = None

    def all_gather(self, param_list: Sequence[torch.nn.Parameter] | None = None, **_: Any) -> None:
        """Makes this parameter, or those listed, whole until `partition`. Called on all ranks."""
        from ds_zero.gathered import GatheredParameters

        if self._open is None:
            self._open = ExitStack()
            self._open.enter_context(GatheredParameters(param_list or [self._parameter()]))

    def partition(self, param_list: Any = None, has_been_updated: bool = False, **_: Any) -> None:
        """Ends what `all_gather` began; changes made alike on all ranks are kept. Called on all ranks."""
        stack, self._open = self._open, None
        if stack is not None:
            stack.close()


def describe(parameter: torch.nn.Parameter, group: ProcessGroup | None, *, persists: bool = False) -> None:
    """Gives `parameter` its ``ds_*`` attributes, those of its own life."""
    said: Any = parameter
    ranks = comm.get_world_size(group)
    calls = _Calls(parameter)
    said.ds_id = next(_numbers)
    said.ds_shape = parameter.shape
    said.ds_numel = parameter.numel()
    said.ds_status = _Status(parameter)
    said.ds_param_type = ZeroParamType.PARTITIONED
    said.ds_persist = persists
    said.ds_process_group = group
    said.all_gather = calls.all_gather
    said.partition = calls.partition
    said.partition_numel = lambda: -(-said.ds_numel // ranks)


def describe_shard(parameter: torch.nn.Parameter, shard: torch.Tensor) -> None:
    """Gives `parameter` its ``ds_tensor``: this rank's part of the values, flat, the memory itself and no copy."""
    said: Any = shard
    said.ds_numel = shard.numel()
    said.final_location = None
    said.status = ZeroParamStatus.AVAILABLE
    vars(parameter)["ds_tensor"] = shard


def is_described(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a parameter with ``ds_*`` attributes."""
    return "ds_id" in vars(tensor)


def describe_copy(values: torch.Tensor, parameter: torch.Tensor) -> None:
    """Gives full `values` of a parameter what the parameter says about itself; these are there to stay."""
    said = vars(values)
    said.update((name, vars(parameter)[name]) for name in _ATTRIBUTES if name in vars(parameter))
    said["ds_status"] = ZeroParamStatus.AVAILABLE


def forget(parameter: torch.nn.Parameter) -> None:
    """Takes them away from a parameter that is an ordinary one again."""
    for name in _ATTRIBUTES:
        vars(parameter).pop(name, None)
