"""Folders of torch.distributed.checkpoint as a `Source`.

``.metadata`` says which boxes of which tensor lie where in the ``__r_n.distcp`` files; each is a small file of
torch.save by itself, looked into when it is read. Names are those users give: ``{"model": ..., "optimizer": ...}`` with
what `torch.distributed.checkpoint.state_dict.get_state_dict` returns, the same within one more dict
(``{"app": ...}``), or a model's state dict alone. Other entries that are plain are the client state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.foreign.dcp_metadata import METADATA, Chunk, Item, items, read_metadata
from ds_core.checkpoint.foreign.deepspeed_engine import hyperparameters
from ds_core.checkpoint.foreign.deepspeed_folder import named_tag
from ds_core.checkpoint.foreign.guard import understood
from ds_core.checkpoint.foreign.indexed import IndexedSource
from ds_core.checkpoint.foreign.pieces import Piece
from ds_core.checkpoint.foreign.plain import plain
from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.checkpoint.foreign.torch_file import read_torch_window
from ds_core.checkpoint.foreign.window import open_window
from ds_core.errors import CheckpointError

__all__ = ["DcpSource", "detect", "open_dcp"]

logger = logging.getLogger(__name__)

FORMAT = "torch-dcp"
MODEL = ("model", "module", "model_state_dict")
OPTIMIZER = ("optimizer", "optim", "optimizer_state_dict")
SCHEDULE = ("lr_scheduler", "scheduler")
PREFIXES = ("module.", "_orig_mod.")
"""What wrappers (DistributedDataParallel, torch.compile) put before every name of a model."""
MAX_OBJECT_BYTES = 64 << 20
"""Longest object other than a tensor that is read."""


def detect(directory: Path, tag: str | None) -> str | None:
    """``""`` where `directory` has the metadata, or the tag (given, or in ``latest``) whose folder has it."""
    if tag is None and (directory / METADATA).is_file():
        return ""
    found = named_tag(directory, tag) if tag is not None or (directory / "latest").is_file() else None
    return found if found is not None and (directory / found / METADATA).is_file() else None


def open_dcp(directory: Path, tag: str, strict: bool) -> IndexedSource:
    """The checkpoint; no tensor is read.

    Raises:
        CheckpointError: the metadata is damaged, or a tensor is not whole.
    """
    with understood(directory / tag, FORMAT):
        return DcpSource(directory / tag, strict)


@dataclass(frozen=True, slots=True)
class _Blob:
    """The elements of a chunk; the little file it is in is looked into at every read."""

    chunk: Chunk
    dtype: torch.dtype
    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.chunk.file

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.chunk.size or ())

    def read(self, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements from `start` on.

        Raises:
            CheckpointError: the chunk is no tensor of this size and dtype.
        """
        tensor = _object(self.chunk, self.folder)
        if not isinstance(tensor, StoredTensor) or tensor.shape != self.chunk.size or tensor.dtype != self.dtype:
            raise CheckpointError(f"{self.path} has something else at byte {self.chunk.start} than the metadata says")
        tensor.read(out, start)


class DcpSource(IndexedSource):
    """A folder of torch.distributed.checkpoint.

    Step counts are tensors in the files, so `value` reads them when they are asked for.
    """

    def __init__(self, path: Path, strict: bool) -> None:
        super().__init__(path, FORMAT, strict)
        self._steps: dict[str, Item] = {}
        """The tensors without dimensions of optimizer states, by ``<state>/<parameter>``."""
        found = list(items(path, read_metadata(path)))
        level = _level(found)
        model, optimizer, other = _divided(found, level)
        prefix = _prefix([_joined(item.path) for item in model if item.dtype is not None])
        for item in model:
            if item.dtype is not None:
                self._add(f"model/{_joined(item.path).removeprefix(prefix)}", item)
        if optimizer:
            self._add_optimizer(optimizer, prefix)
        self._add_others(other)
        self.seal()

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value."""
        if name == "optimizer_scalars" and name not in self.values and self._steps:
            self.values[name] = self._scalars()
        return super().value(name, default)

    def _add(self, key: str, item: Item) -> None:
        assert item.dtype is not None
        for chunk in item.chunks:
            piece = Piece(item.shape, chunk.offset, chunk.size or (), _Blob(chunk, item.dtype, self.path))
            self.add_piece(key, item.dtype, item.shape, piece)

    def _add_optimizer(self, optimizer: list[Item], prefix: str) -> None:
        """States by parameter, and groups; nothing where the states are numbered."""
        groups: dict[Any, dict[str, Any]] = {}
        for item in optimizer:
            state = _place(item.path, "state")
            if state is not None and item.dtype is not None:
                name, key = state
                if isinstance(name, int) or name.isdecimal():
                    logger.warning(
                        "checkpoint %s numbers its optimizer states and does not name them (save what get_state_dict "
                        "of torch.distributed.checkpoint.state_dict returns); they are left out",
                        self.path,
                    )
                    return
                name = name.removeprefix(prefix)
                if item.shape:
                    self._add(f"optimizer/{key}/{name}", item)
                else:
                    self._steps[f"{key}/{name}"] = item
                continue
            place = _place(item.path, "param_groups")
            if place is not None and item.dtype is None:
                groups.setdefault(place[0], {})[place[1]] = _object(item.chunks[0], self.path)
        listed = [hyperparameters(group) for _, group in sorted(groups.items(), key=lambda pair: str(pair[0]).zfill(9))]
        if groups and all(isinstance(index, str) for index in groups):  # by parameter: equal ones were a group
            listed = [group for index, group in enumerate(listed) if group not in listed[:index]]
        self.values["optimizer"] = {"type": None, "groups": listed}

    def _scalars(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for place, item in self._steps.items():
            state, name = place.split("/", 1)
            assert item.dtype is not None
            number = torch.empty(1, dtype=torch.float64)
            _Blob(item.chunks[0], item.dtype, self.path).read(number)
            entry = found.setdefault(name, {"taken": 0})
            entry[state] = {"tensor": number.item()}
            if state == "step":
                entry["taken"] = int(number.item())
        return found

    def _add_others(self, other: list[Item]) -> None:
        """Schedule and client state, nested again."""
        tree: dict[str, Any] = {}
        left_out: list[str] = []
        for item in other:
            if item.dtype is not None:
                left_out.append(f"{_joined(item.path)} (Tensor)")
                continue
            place = tree
            for part in item.path[:-1]:
                inner = place.setdefault(str(part), {})
                place = inner if isinstance(inner, dict) else {}
            place[str(item.path[-1])] = plain(_object(item.chunks[0], self.path), _joined(item.path), left_out)
        for name in SCHEDULE:
            if name in tree:
                self.values["lr_scheduler"] = tree.pop(name)
        self.client_state = tree
        if left_out:
            logger.warning("checkpoint %s: left out %s", self.path, ", ".join(left_out[:5]))


def _object(chunk: Chunk, folder: Path) -> Any:
    """What is in a chunk's little file."""
    if chunk.size is None and chunk.length > MAX_OBJECT_BYTES:
        raise CheckpointError(
            f"{chunk.file} has an object of {chunk.length} bytes; {MAX_OBJECT_BYTES} are read at most"
        )
    window = open_window(chunk.file, folder).part(chunk.start, chunk.length, "an entry")
    return read_torch_window(window)


# ---- names


def _level(found: Sequence[Item]) -> int:
    """How many dicts lie around those called model and optimizer: 0 or 1, and -1 where there is but a model's dict."""
    for level in (0, 1):
        if any(len(item.path) > level + 1 and item.path[level] in MODEL for item in found):
            return level
    return -1


def _divided(found: Sequence[Item], level: int) -> tuple[list[Item], list[Item], list[Item]]:
    """The items of the model, of the optimizer and the others, the first two without what leads to them."""
    if level < 0:
        return [item for item in found if item.dtype is not None], [], [item for item in found if item.dtype is None]
    parts: tuple[list[Item], list[Item], list[Item]] = [], [], []
    for item in found:
        root = item.path[level] if len(item.path) > level + 1 else None
        which = 0 if root in MODEL else 1 if root in OPTIMIZER else 2
        path = item.path[level + 1 :] if which < 2 else item.path[level:] or item.path
        parts[which].append(Item(path, item.dtype, item.shape, item.chunks))
    return parts


def _joined(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def _prefix(names: Sequence[str]) -> str:
    """What wrappers put before all of `names`."""
    found = ""
    while names:
        more = next((prefix for prefix in PREFIXES if all(name.startswith(found + prefix) for name in names)), None)
        if more is None:
            break
        found += more
    return found


def _place(path: tuple[str | int, ...], root: str) -> tuple[str | int, str] | None:
    """What an entry of an optimizer is below `root`, nested (`root`, name, key) or flat (``root.name.key``).

    Below ``state``: parameter and state. Below ``param_groups``: group (its number, or where groups are written by
    parameter, the parameter) and hyperparameter. None: it is elsewhere.
    """
    if len(path) == 3 and path[0] == root:
        return path[1], str(path[2])
    flat = _joined(path)
    if flat.startswith(f"{root}.") and flat.count(".") >= 2:
        name, _, key = flat.removeprefix(f"{root}.").rpartition(".")
        return name, key
    return None
