"""The global random stream while a model is recorded: notices seeds set and states restored, draws nothing.

Note [Marked states]: a recorded draw does not run, so by itself the generator's state would not move and restoring an
earlier state (`torch.random.fork_rng`) could not be told from doing nothing. So after every recorded draw the generator
gets a state of its own: the outside state with a counter in one word of its table. Whoever saves it and puts it back
puts back that counter, which says which draw to go back to. The outside state returns at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Back", "Draws", "Reseed", "SetState"]

# The CPU generator's state as 64-bit words: seed, position, then the 624 entries of its table.
_COUNTER_WORD = 5
_COUNTER_BASE = 1 << 20


@dataclass(frozen=True, slots=True)
class Back:
    """The state after the first `draws` random steps was put back."""

    draws: int


@dataclass(frozen=True, slots=True)
class Reseed:
    """`torch.manual_seed(seed)` was called."""

    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class SetState:
    """A state from elsewhere was set."""

    state: torch.Tensor


class Draws:
    """Counts recorded draws and tells what happened to the global generator between two of them."""

    def __init__(self) -> None:
        self._outside: torch.Tensor = torch.get_rng_state()
        self._words: torch.Tensor = self._outside.clone()
        self._count: int = 0
        self._expected: bytes = b""
        self._mark(0)

    def change(self) -> Back | Reseed | SetState | None:
        """What was done to the generator since the last draw, or None."""
        state = torch.get_rng_state()
        found = state.numpy().tobytes()
        if found == self._expected:
            return None
        draws = int(state.view(torch.int64)[_COUNTER_WORD]) - _COUNTER_BASE
        if 0 <= draws <= self._count and found == self._marked(draws).numpy().tobytes():
            return Back(draws)
        seed = torch.initial_seed()
        if torch.equal(torch.Generator().manual_seed(seed).get_state(), state):
            return Reseed(seed)
        return SetState(state)

    def drawn(self) -> None:
        """One more random step was recorded."""
        self._mark(self._count + 1)

    def end(self) -> None:
        """Give the generator the state it had outside."""
        torch.set_rng_state(self._outside)

    def restore(self) -> None:
        """Give the generator its marked state again, after real draws were made."""
        torch.set_rng_state(self._marked(self._count))

    @property
    def outside(self) -> torch.Tensor:
        """The state of the generator when recording began."""
        return self._outside

    def _marked(self, draws: int) -> torch.Tensor:
        self._words.view(torch.int64)[_COUNTER_WORD] = _COUNTER_BASE + draws
        return self._words

    def _mark(self, draws: int) -> None:
        self._count = draws
        torch.set_rng_state(self._marked(draws))
        self._expected = torch.get_rng_state().numpy().tobytes()
