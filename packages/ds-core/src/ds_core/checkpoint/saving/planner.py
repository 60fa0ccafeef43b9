"""What one engine saves, as a torch.distributed.checkpoint plan: boxes of logical tensors, each written by one rank.

The parts of an engine say which flat ranges of which tensors they hold (`ds_core.state`); here the ranges become items
of a `SavePlan`, and DCP's own planner puts the plans of all ranks together, checks that every element of every tensor
is there exactly once, and makes the metadata from which any load is planned.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from ds_core.checkpoint.storage.boxes import Box, cut
from ds_core.checkpoint.storage.safetensors_file import DTYPES, NAMES
from ds_core.errors import CheckpointError
from ds_core.state import Deferred, Fragment

__all__ = ["EnginePlanner", "box_of", "global_metadata", "item_for", "plan_from_json", "plan_to_json"]


class _Source(NamedTuple):
    fragment: Fragment
    start: int
    """First element of the box in the flattened logical tensor."""


class EnginePlanner(DefaultSavePlanner):
    """Plans the fragments of one rank.

    Args:
        fragments: what this rank writes; no element twice, over all ranks.
    """

    def __init__(self, fragments: Sequence[Fragment] = ()) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._fragments: Sequence[Fragment] = fragments
        self._sources: dict[MetadataIndex, _Source] = {}

    def create_local_plan(self) -> SavePlan:
        """One item per box.

        Raises:
            CheckpointError: a dtype that safetensors has no name for.
        """
        items = []
        for fragment in self._fragments:
            start = fragment.start
            for box in cut(fragment.shape, fragment.start, fragment.stop):
                item = item_for(fragment.key, fragment.dtype, fragment.shape, box)
                self._sources[item.index] = _Source(fragment, start)
                items.append(item)
                start += box.numel
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """The elements of an item, 1-D and contiguous; of a deferred fragment good until the next call."""
        fragment, start = self._sources[write_item.index]
        low = start - fragment.start
        high = low + box_of(write_item).numel
        if isinstance(fragment.tensor, Deferred):
            return fragment.tensor.load(fragment.offset + low, fragment.offset + high)
        return fragment.tensor.detach()[low:high].contiguous()


def item_for(key: str, dtype: torch.dtype, shape: Sequence[int], box: Box) -> WriteItem:
    """The item of a plan that writes `box` of the logical tensor `key`.

    Raises:
        CheckpointError: a dtype that safetensors has no name for.
    """
    if dtype not in NAMES:
        raise CheckpointError(f"{key} is {dtype}, which safetensors cannot hold; it can {', '.join(DTYPES)}")
    chunk = ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.size))
    data = TensorWriteData(chunk, TensorProperties(dtype=dtype), torch.Size(shape))
    return WriteItem(MetadataIndex(key, box.offset), WriteItemType.SHARD, tensor_data=data)


def box_of(item: WriteItem) -> Box:
    """The box an item of a tensor writes."""
    assert item.tensor_data is not None, item
    chunk = item.tensor_data.chunk
    return Box(tuple(chunk.offsets), tuple(chunk.sizes))


def plan_to_json(plan: SavePlan) -> list[list[Any]]:
    """The items as ``[key, dtype, shape, offset, size]``, in order."""
    found = []
    for item in plan.items:
        data = item.tensor_data
        assert data is not None, item
        box = box_of(item)
        found.append([item.index.fqn, NAMES[data.properties.dtype], list(data.size), list(box.offset), list(box.size)])
    return found


def plan_from_json(items: Sequence[Sequence[Any]]) -> SavePlan:
    """What `plan_to_json` wrote."""
    return SavePlan(
        [
            item_for(key, DTYPES[dtype], shape, Box(tuple(offset), tuple(size)))
            for key, dtype, shape, offset, size in items
        ]
    )


def global_metadata(plans: Sequence[SavePlan]) -> Mapping[str, Any]:
    """The metadata of all ranks' plans by key, checked by DCP's planner.

    Raises:
        CheckpointError: an element is missing, or there twice.
    """
    try:
        _, metadata = EnginePlanner().create_global_plan(list(plans))
    except (ValueError, AssertionError) as error:
        raise CheckpointError(f"the ranks' shares do not make up whole tensors: {error}") from error
    found: Mapping[str, Any] = metadata.state_dict_metadata
    return found
