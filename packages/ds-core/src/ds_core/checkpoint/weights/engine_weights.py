"""The weights of a running engine, one gathered unit at a time: as files on the first rank, or as a dict there.

Note [What is in memory]
    A rank holds its shard, and the full values of one unit (`ds_core.units`), which every rank gathers and drops before
    the next. The first rank writes each tensor as it comes, a block at a time. A failure to write is kept until all
    units were gathered, since the other ranks are in those collectives and would wait for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from ds_core import comm
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.together import together
from ds_core.checkpoint.weights.divided import Foreign, foreign_tensors, is_divided, joined, pass_on
from ds_core.checkpoint.weights.folder import WeightFile, WeightFolder, parse_size, plan_folder
from ds_core.checkpoint.weights.hf_config import model_files
from ds_core.checkpoint.weights.source_weights import FLOATS
from ds_core.checkpoint.weights.tensor_writer import TensorEntry
from ds_core.errors import CheckpointError, DsError
from ds_core.parameters import persistent_buffers

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi
    from ds_core.holdings import Holding

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
    walk = _Walk.of(engine, exclude_frozen, None)
    _write(walk, path, lambda: WeightFile(path, walk.entries(), disk))
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
    walk = _Walk.of(engine, exclude_frozen, dtype)
    plan = plan_folder(walk.entries(), parse_size(max_shard_size))

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

    _write(walk, directory, begin)
    logger.info("weights written to %s", directory)


def consolidated_weights(engine: EngineApi, *, exclude_frozen: bool = False) -> dict[str, torch.Tensor] | None:
    """The module's state dict in host memory on the first rank, None on the others. Called on all ranks.

    Names that share one parameter share one tensor.
    """
    is_first = comm.get_rank() == 0
    found: dict[str, torch.Tensor] = {}

    def take(name: str, values: torch.Tensor) -> None:
        found[name] = values.detach().to(device="cpu", copy=True)

    _Walk.of(engine, exclude_frozen, None).run(take if is_first else _ignore)
    if not is_first:
        return None
    first = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        if first[id(parameter)] in found:
            found[name] = found[first[id(parameter)]]
    return found


def _ignore(name: str, values: torch.Tensor) -> None:
    pass


def _write(walk: _Walk, where: Path, begin: Callable[[], _Target]) -> None:
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
        walk.run(attempt if is_first else _ignore)
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
    return [*cuts, _Group(left, dict(persistent_buffers(engine.module)))]


class _Walk(NamedTuple):
    """The way through all tensors of a model; the same on all ranks, but for what each of them holds.

    Attributes:
        engine: whose they are.
        groups: this rank's tensors in the order they become whole.
        foreign: by group, what the first rank gets from others then.
        dtype: of floating-point tensors; None: their own.
    """

    engine: EngineApi
    groups: Sequence[_Group]
    foreign: Sequence[Sequence[Foreign]]
    dtype: torch.dtype | None

    @classmethod
    def of(cls, engine: EngineApi, exclude_frozen: bool, dtype: torch.dtype | None) -> _Walk:
        """Plans it. Called on all ranks."""
        groups = _groups(engine, exclude_frozen)
        if not is_divided(engine):
            return cls(engine, groups, [[]] * len(groups), dtype)
        foreign = foreign_tensors(engine, [{**group.parameters, **group.buffers} for group in groups], dtype)
        return cls(engine, groups, foreign, dtype)

    def entries(self) -> list[TensorEntry]:
        """What `run` takes on the first rank, in its order."""
        found = []
        for step, foreign in enumerate(self.foreign):
            group = self.groups[step] if step < len(self.groups) else _Group({}, {})
            for name, tensor in (*group.parameters.items(), *group.buffers.items()):
                is_cast = self.dtype is not None and tensor.dtype in FLOATS
                holding = self._holding(tensor)
                shape = tuple(tensor.shape) if holding is None or holding.shape is None else holding.shape
                found.append(TensorEntry(name, self.dtype if self.dtype and is_cast else tensor.dtype, shape))
            found += [TensorEntry(item.name, item.dtype, item.shape) for item in foreign]
        return found

    def _holding(self, tensor: torch.Tensor) -> Holding | None:
        return self.engine.holdings.get(tensor) if isinstance(tensor, torch.nn.Parameter) else None

    def run(self, take: Callable[[str, torch.Tensor], Any]) -> None:
        """Calls `take` with every tensor, full, good until it returns; on the first rank with those of others, too.

        Called on all ranks.
        """
        for step, foreign in enumerate(self.foreign):
            if step < len(self.groups):
                self._visit(self.groups[step], foreign, take)
            else:
                pass_on(foreign, {}, take, self.engine.device)

    def _visit(self, group: _Group, foreign: Sequence[Foreign], take: Callable[[str, torch.Tensor], Any]) -> None:
        """One group.

        Parameters that are to have another dtype than their own come from their masters; see Note [Which copy] of
        `ds_core.checkpoint.weights.source_weights`.
        """
        from ds_core.fragments import safe_get_full_fp32_param  # which needs the parts, and parts need this package

        engine, dtype = self.engine, self.dtype
        sent = {item.name for item in foreign if item.owner == comm.get_rank()}
        kept: dict[str, torch.Tensor] = {}

        def hand(name: str, values: torch.Tensor, of: torch.Tensor) -> None:
            whole = joined(values, self._holding(of))
            take(name, whole)
            if name in sent:
                kept[name] = whole

        other = {n for n, p in group.parameters.items() if dtype not in (None, p.dtype) and p.dtype in FLOATS}
        for name in sorted(other):
            parameter = group.parameters[name]
            hand(name, safe_get_full_fp32_param(parameter), parameter)
        own = {name: parameter for name, parameter in group.parameters.items() if name not in other}
        with engine.gathered(list(own.values())) if own else nullcontext():
            for name, parameter in own.items():
                hand(name, parameter.data, parameter)
            for name, buffer in group.buffers.items():
                hand(name, buffer, buffer)
            pass_on(foreign, kept, take, engine.device)
