"""`PositionalSource`: optimizer states that are numbered, not named; the engine that loads them says whose they are.

torch optimizers number their parameters: state 0 is of the first parameter of the first group. Names can be concluded
when there is one way only to deal the module's parameters, in order, to the numbers by shape; otherwise an engine names
them (`name_parameters`), and before that there are none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_core.checkpoint.foreign.deepspeed_engine import hyperparameters, loss_scale
from ds_core.checkpoint.foreign.indexed import IndexedSource
from ds_core.checkpoint.foreign.pieces import flat_piece
from ds_core.checkpoint.foreign.plain import number
from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.errors import CheckpointError

__all__ = ["PositionalSource", "deal"]

logger = logging.getLogger(__name__)

MAX_WAYS = 50_000
"""Most partial assignments that are followed in search of the only one."""

Shape = tuple[int, ...]


class PositionalSource(IndexedSource):
    """An `IndexedSource` whose optimizer states get their names later, where they cannot be concluded."""

    def __init__(self, path: Path, format: str, strict: bool) -> None:
        super().__init__(path, format, strict)
        self._groups: list[list[dict[str, Any]]] = []
        """States of every numbered parameter, by optimizer group; one entry for all of a group where it is flat."""
        self._is_flat = False
        self._taken = 0
        self._trainable: dict[str, StoredTensor] = {}
        self._is_named = False

    def take(self, optimizer: Any, trainable: Mapping[str, StoredTensor], taken: int) -> None:
        """Takes an optimizer's dict, as torch or DeepSpeed's wrappers of half-precision training save it.

        Args:
            optimizer: None where none was saved.
            trainable: parameters of the module, in order, that may have been trained.
            taken: updates so far, for optimizers that do not count them.
        """
        if optimizer is None:
            return
        base = optimizer.get("optimizer_state_dict", optimizer) if isinstance(optimizer, dict) else None
        groups = base.get("param_groups") if isinstance(base, dict) else None
        states = base.get("state") if isinstance(base, dict) else None
        if not isinstance(groups, list) or not isinstance(states, dict):
            raise CheckpointError(f"checkpoint {self.path} holds an optimizer in a form that is not known here")
        flats, listed = optimizer.get("fp32_groups_flat"), optimizer.get("fp32_groups")
        self._is_flat, self._taken, self._trainable = flats is not None, taken, dict(trainable)
        for index, group in enumerate(groups):
            entries = [dict(states.get(number, {})) for number in group.get("params", ())]
            masters = [flats[index]] if flats is not None else listed[index] if listed is not None else []
            for entry, master in zip(entries, masters, strict=False):
                entry["master"] = master
            self._groups.append(entries)
        self.values["optimizer"] = {"type": None, "groups": [hyperparameters(group) for group in groups]}
        scale = loss_scale(optimizer)
        if scale is not None:
            self.values["loss_scale"] = scale
        if not self._is_flat:
            shapes = [[_shape(entry) for entry in entries] for entries in self._groups]
            names = deal(shapes, [(name, tensor.shape) for name, tensor in trainable.items()])
            if names is not None:
                self.name_parameters(names)

    def name_parameters(self, groups: Sequence[Sequence[str]]) -> None:
        """Says whose the numbered states are: names of the parameters of each optimizer group, in its order.

        Raises:
            CheckpointError: there are other numbers of groups or parameters, or of other shapes.
        """
        if self._is_named or "optimizer" not in self.values:
            return
        if len(groups) != len(self._groups):
            raise CheckpointError(
                f"checkpoint {self.path} has {len(self._groups)} optimizer groups, this engine has {len(groups)}"
            )
        scalars: dict[str, dict[str, Any]] = {}
        for index, (names, entries) in enumerate(zip(groups, self._groups, strict=True)):
            if not self._is_flat and len(names) != len(entries):
                raise CheckpointError(
                    f"optimizer group {index} of checkpoint {self.path} has {len(entries)} parameters, this engine's "
                    f"has {len(names)}"
                )
            at = 0
            for position, name in enumerate(names):
                tensor = self._trainable.get(name)
                if tensor is None:
                    raise CheckpointError(f"checkpoint {self.path} has optimizer states and no weights of {name!r}")
                entry = entries[0 if self._is_flat else position]
                scalars[name] = self._add_states(name, tensor, entry, at if self._is_flat else None)
                at += tensor.numel
        self.values["optimizer_scalars"] = scalars
        self._is_named = True
        self.seal()

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value; nothing about an optimizer whose states have no names yet."""
        if name == "optimizer" and "optimizer" in self.values and not self._is_named:
            logger.warning(
                "checkpoint %s numbers its optimizer states, and shapes do not tell whose they are; they are left out. "
                "An engine of the model can load them",
                self.path,
            )
            return default
        return super().value(name, default)

    def _add_states(self, name: str, tensor: StoredTensor, entry: Mapping[str, Any], at: int | None) -> dict[str, Any]:
        """Adds a parameter's states, which begin at `at` of flat ones; its scalars."""
        scalars: dict[str, Any] = {}
        for state, value in entry.items():
            if isinstance(value, StoredTensor) and value.shape:
                if state == "master" and value.dtype == tensor.dtype:
                    continue
                if at is None:
                    self.add(f"optimizer/{state}/{name}", value)
                    continue
                piece = flat_piece(tensor.numel, 0, tensor.numel, value, at)
                self.add_piece(f"optimizer/{state}/{name}", value.dtype, tensor.shape, piece)
            elif isinstance(number(value), int | float):
                scalars[state] = {"tensor": float(number(value))} if state == "step" else number(value)
        scalars["taken"] = int(scalars["step"]["tensor"]) if "step" in scalars else self._taken
        return scalars


def _shape(entry: Mapping[str, Any]) -> Shape | None:
    """The shape of a parameter by its states; None when none has one."""
    shapes = [value.shape for value in entry.values() if isinstance(value, StoredTensor) and value.shape]
    return shapes[0] if shapes else None


def deal(groups: Sequence[Sequence[Shape | None]], candidates: Sequence[tuple[str, Shape]]) -> list[list[str]] | None:
    """The names of every group, when one way only deals the candidates to them; None when there is none or several.

    A group's parameters are in the candidates' order, as those of a model that were chosen by a condition are;
    candidates may be left over (frozen ones). A shape of None fits any.
    """
    start = (0,) * len(groups)
    ways: dict[tuple[int, ...], tuple[int, tuple[Any, ...]]] = {start: (1, ())}
    for name, shape in candidates:
        after = dict(ways)  # the candidate is left over
        for places, (count, chosen) in ways.items():
            for index, place in enumerate(places):
                if place < len(groups[index]) and groups[index][place] in (shape, None):
                    moved = (*places[:index], place + 1, *places[index + 1 :])
                    earlier, linked = after.get(moved, (0, (chosen, index, name)))
                    after[moved] = (min(earlier + count, 2), linked)
        ways = after
        if len(ways) > MAX_WAYS:
            return None
    count, chosen = ways.get(tuple(map(len, groups)), (0, ()))
    if count != 1 or not math.prod(map(len, groups), start=1):
        return None
    names: list[list[str]] = [[] for _ in groups]
    while chosen:
        chosen, index, name = chosen
        names[index].append(name)
    return [list(reversed(group)) for group in names]
