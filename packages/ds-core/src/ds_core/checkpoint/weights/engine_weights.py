"""The weights of a running engine, one gathered unit at a time: as files on the first rank, or as a dict there.

Note [What is in memory]
    A rank holds its shard, and the full values of one unit (`ds_core.units`), which every rank gathers and drops before
    the next. The first rank writes each tensor as it comes, a block at a time. A failure to write is kept until all
    units were gathered, since the other ranks are in those collectives and would wait for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from ds_core import comm
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.together import together
from ds_core.checkpoint.weights.folder import WeightFile, WeightFolder, parse_size, plan_folder
from ds_core.checkpoint.weights.hf_config import model_files
from ds_core.checkpoint.weights.source_weights import FLOATS
from ds_core.checkpoint.weights.tensor_writer import TensorEntry
from ds_core.errors import CheckpointError, DsError

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["consolidated_weights", "export_folder", "save_weights"]

logger = logging.getLogger(__name__)


class _Group(NamedTuple):
    """Tensors that become whole together: parameters of one unit, or all buffers."""

    parameters: dict[str, torch.nn.Parameter]
    buffers: dict[str, torch.Tensor]


class _Target(Protocol):
    """Weights being written on the first rank."""

    def put(self, name: str, values: torch.Tensor) -> None:
        """Writes a tensor."""

    def commit(self) -> None:
        """Makes everything appear."""

    def abandon(self) -> None:
        """Leaves nothing."""


def save_weights(engine: EngineApi, path: Path, *, exclude_frozen: bool = False, disk: Disk = DISK) -> bool:
    """Writes every parameter and persistent buffer in the module's dtype, as one safetensors file of the first rank.

    Called on all ranks. Parameters that share one tensor are written under the first of their names.

    Raises:
        CheckpointError: another suffix than ``.safetensors``; or the first rank could not write, on all ranks.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"save_filename must end in .safetensors, got {path.name!r}; files that torch.load unpickles are not "
            "written, since loading them can run code; pass save_filename='model.safetensors'"
        )
    groups = _groups(engine, exclude_frozen)
    _write(engine, groups, path, lambda: WeightFile(path, _entries(groups, None), disk), None)
    return True


def export_folder(
    engine: EngineApi,
    directory: Path,
    *,
    max_shard_size: int | str = "5GB",
    dtype: torch.dtype | None = None,
    exclude_frozen: bool = False,
    disk: Disk = DISK,
) -> None:
    """Writes a Hugging Face folder from the first rank; see `ds_core.checkpoint.weights.folder`. Called on all ranks.

    Args:
        engine: its module; one of transformers also writes its configuration.
        directory: replaced in place where it holds weights; other files stay.
        max_shard_size: bytes, or a size such as "5GB".
        dtype: of floating-point tensors; None keeps the module's. Another than a parameter's own is made of its master.
        exclude_frozen: leave out parameters that are not trained.
        disk: operations on files.

    Raises:
        CheckpointError: the first rank could not write; on all ranks.
        ConfigError: `max_shard_size` is no size.
    """
    if dtype is not None and dtype not in FLOATS:
        raise CheckpointError(f"dtype must be one of {', '.join(map(str, FLOATS))} or None, got {dtype}")
    groups = _groups(engine, exclude_frozen)
    plan = plan_folder(_entries(groups, dtype), parse_size(max_shard_size))

    def begin() -> WeightFolder:
        files = model_files(engine.module, dtype)
        folder = WeightFolder(directory, plan, disk)
        try:
            for name, content in files.items():
                folder.add(name, content)
        except BaseException:
            folder.abandon()
            raise
        return folder

    _write(engine, groups, directory, begin, dtype)
    logger.info("weights written to %s", directory)


def consolidated_weights(engine: EngineApi, *, exclude_frozen: bool = False) -> dict[str, torch.Tensor] | None:
    """The module's state dict in host memory on the first rank, None on the others. Called on all ranks.

    Names that share one parameter share one tensor.
    """
    is_first = comm.get_rank() == 0
    found: dict[str, torch.Tensor] = {}

    def take(name: str, values: torch.Tensor) -> None:
        found[name] = values.detach().to(device="cpu", copy=True)

    _visit(engine, _groups(engine, exclude_frozen), take if is_first else _ignore)
    if not is_first:
        return None
    first = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        if first[id(parameter)] in found:
            found[name] = found[first[id(parameter)]]
    return found


def _ignore(name: str, values: torch.Tensor) -> None:
    pass


def _write(
    engine: EngineApi,
    groups: Sequence[_Group],
    where: Path,
    begin: Callable[[], _Target],
    dtype: torch.dtype | None,
) -> None:
    """Begins, puts every tensor and commits on the first rank, while all gather. See Note [What is in memory]."""
    is_first = comm.get_rank() == 0
    target: list[_Target] = []
    failure: list[Exception] = []

    def attempt(name: str, values: torch.Tensor) -> None:
        if failure:
            return
        try:
            target[0].put(name, values)
        except (OSError, DsError, RuntimeError) as error:
            failure.append(error)

    def end() -> None:
        if failure:
            raise failure[0]
        target[0].commit()

    try:
        together("begin to write the weights", where, (lambda: target.append(begin())) if is_first else lambda: None)
        _visit(engine, groups, attempt if is_first else _ignore, dtype)
        together("write the weights", where, end if is_first else lambda: None)
    except BaseException:
        for opened in target:
            opened.abandon()
        raise


def _groups(engine: EngineApi, exclude_frozen: bool) -> list[_Group]:
    """Parameters by unit, under the first of their names, then buffers."""
    left = {name: p for name, p in engine.module.named_parameters() if p.requires_grad or not exclude_frozen}
    cuts: list[_Group] = []
    for unit in engine.units:
        members = {name: left.pop(name) for name in unit.names if name in left}
        if members:
            cuts.append(_Group(members, {}))
    # What is in no unit is whole on every rank.
    return [*cuts, _Group(left, dict(_buffers(engine.module)))]


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name not in owner._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def _entries(groups: Sequence[_Group], dtype: torch.dtype | None) -> list[TensorEntry]:
    """What is written, in the order it becomes whole."""
    tensors: list[tuple[str, torch.Tensor]] = [
        item for group in groups for item in (*group.parameters.items(), *group.buffers.items())
    ]
    return [
        TensorEntry(name, dtype if dtype is not None and t.dtype in FLOATS else t.dtype, tuple(t.shape))
        for name, t in tensors
    ]


def _visit(
    engine: EngineApi,
    groups: Sequence[_Group],
    take: Callable[[str, torch.Tensor], Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Calls `take` with every tensor, full, good until it returns. Called on all ranks.

    Parameters that are to have another dtype than their own come from their masters; see Note [Which copy] of
    `ds_core.checkpoint.weights.source_weights`.
    """
    from ds_core.fragments import safe_get_full_fp32_param  # which needs the parts, and parts need this package

    for group in groups:
        other = {n for n, p in group.parameters.items() if dtype not in (None, p.dtype) and p.dtype in FLOATS}
        for name in sorted(other):
            take(name, safe_get_full_fp32_param(group.parameters[name]))
        own = {name: parameter for name, parameter in group.parameters.items() if name not in other}
        if own:
            with engine.gathered(list(own.values())):
                for name, parameter in own.items():
                    take(name, parameter.data)
        for name, buffer in group.buffers.items():
            take(name, buffer)
