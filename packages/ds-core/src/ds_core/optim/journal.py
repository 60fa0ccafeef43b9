"""`Journal`: what speculative updates overwrote, so that they can be undone to the last bit.

Note [Copies and not inverses]
    An update cannot be computed backwards exactly: adding a gradient to a moment drops low bits of both, and an
    overflow, which is why one wants to go back, leaves infinities. So the values are copied before they are
    overwritten. That costs the bytes of the parameter and its states, 12 an element for Adam in float32, for as long as
    an update is in doubt, and one more read and write of them.

Source for updating before the norm is known: X. Lian et al., "SuperOffload: unleashing the power of large-scale LLM
training on superchips", 2025, section 4.4 (speculation, then validation).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ds_core.errors import EngineError

__all__ = ["Journal"]


class _Before(NamedTuple):
    """A parameter before its update: its values, its state as it was (tensors copied), and whether it had any."""

    values: torch.Tensor
    state: dict[str, Any]


class Journal:
    """Values by number of sub-group, one update deep."""

    def __init__(self) -> None:
        self._before: dict[int, _Before] = {}

    def __contains__(self, subgroup_id: int) -> bool:
        """Whether an update of the sub-group can be undone."""
        return subgroup_id in self._before

    @property
    def nbytes(self) -> int:
        """Memory held."""
        tensors = [
            tensor
            for before in self._before.values()
            for tensor in (before.values, *before.state.values())
            if isinstance(tensor, torch.Tensor)
        ]
        return sum(tensor.nbytes for tensor in tensors)

    def note(self, subgroup_id: int, param: torch.Tensor, state: dict[str, Any]) -> None:
        """Copies what the next update of `param` overwrites, into the memory of the last copy where it fits."""
        old = self._before.get(subgroup_id)
        held = {} if old is None else old.state
        self._before[subgroup_id] = _Before(
            _copy(param.detach(), None if old is None else old.values),
            {key: _copy(value, held.get(key)) for key, value in state.items()},
        )

    def undo(self, subgroup_id: int, param: torch.Tensor, state: dict[str, Any]) -> None:
        """Puts `param` and its state back, in place, and forgets them.

        Raises:
            EngineError: no update of the sub-group is noted.
        """
        if subgroup_id not in self._before:
            raise EngineError(
                f"sub-group {subgroup_id} has no update that can be rolled back: it was not stepped by step_subgroup, "
                "or is rolled back or committed already."
            )
        before = self._before.pop(subgroup_id)
        param.detach().copy_(before.values)
        for key in [key for key in state if key not in before.state]:
            del state[key]
        for key, value in before.state.items():
            now = state.get(key)
            if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor):
                now.copy_(value)
            else:
                state[key] = value

    def commit(self, subgroup_id: int | None = None) -> None:
        """Gives up going back: for one sub-group, or for all."""
        if subgroup_id is None:
            self._before.clear()
        else:
            self._before.pop(subgroup_id, None)


def _copy(value: Any, memory: Any) -> Any:
    """A copy of a tensor, in `memory` where that is alike; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(memory, torch.Tensor) and memory.shape == value.shape and memory.dtype == value.dtype:
        return memory.copy_(value)
    return value.clone()
