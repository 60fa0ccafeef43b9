"""The random streams while a model is recorded: notices seeds set and states restored, draws nothing.

Note [Marked states]: a recorded draw does not run, so by itself a generator's state would not move, and restoring an
earlier state (`torch.random.fork_rng`) could not be told from doing nothing. So after every recorded draw its generator
gets a state of its own: the outside state with a counter in one word of its table. Whoever saves it and puts it back
puts back that counter, which says which draw to go back to. The outside states return at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ds_core.errors import ModelError

__all__ = ["Back", "Change", "Draws", "Reseed", "SetState", "States", "snapshot"]

# The CPU generator's state as 64-bit words: seed, position, then the 624 entries of its table.
_COUNTER_WORD = 5
_COUNTER_BASE = 1 << 20

# The state of every generator in use, after some number of draws.
States = dict[torch.Generator, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Back:
    """The state `generator` had after the first `draws` draws was put back."""

    generator: torch.Generator
    draws: int

    def apply(self, states: dict[int, States]) -> None:
        self.generator.set_state(states[self.draws][self.generator])


@dataclass(frozen=True, slots=True, eq=False)
class Reseed:
    """`torch.manual_seed(seed)` or `generator.manual_seed(seed)` was called."""

    generator: torch.Generator
    seed: int

    def apply(self, states: dict[int, States]) -> None:
        self.generator.manual_seed(self.seed)


@dataclass(frozen=True, slots=True, eq=False)
class SetState:
    """A state from elsewhere was set."""

    generator: torch.Generator
    state: torch.Tensor

    def apply(self, states: dict[int, States]) -> None:
        self.generator.set_state(self.state)


Change = Back | Reseed | SetState


class Draws:
    """Counts recorded draws and tells what happened to their generators in between."""

    def __init__(self) -> None:
        self.count: int = 0
        self._marks: dict[torch.Generator, _Marks] = {}
        self.follow(torch.default_generator)

    def follow(self, generator: torch.Generator) -> None:
        """Take over a generator, until `end`."""
        if generator.device.type != "cpu":
            raise ModelError(
                f"a generator on {generator.device} cannot be recorded; construct the model plainly and shard the "
                "existing module instead"
            )
        if generator not in self._marks:
            self._marks[generator] = _Marks(generator)

    def change(self, generator: torch.Generator) -> Change | None:
        """What was done to a followed generator since its last draw, or None."""
        return self._marks[generator].change()

    def changes(self) -> list[Change]:
        """What was done to any followed generator since its last draw."""
        found = [marks.change() for marks in self._marks.values()]
        return [change for change in found if change is not None]

    def drawn(self, generator: torch.Generator) -> None:
        """One more draw was recorded."""
        self.count += 1
        self._marks[generator].mark(self.count)

    def outside(self) -> States:
        """The states of the followed generators when they were taken over."""
        return {generator: marks.outside for generator, marks in self._marks.items()}

    def end(self) -> None:
        """Give every generator the state it had outside."""
        for generator, marks in self._marks.items():
            generator.set_state(marks.outside)


class _Marks:
    """One generator: its state outside, and the marked state it should be in."""

    def __init__(self, generator: torch.Generator) -> None:
        self.outside: torch.Tensor = generator.get_state()
        self._generator: torch.Generator = generator
        self._words: torch.Tensor = self.outside.clone()
        self._count: int = 0
        self._expected: bytes = b""
        self.mark(0)

    def change(self) -> Change | None:
        state = self._generator.get_state()
        found = state.numpy().tobytes()
        if found == self._expected:
            return None
        draws = int(state.view(torch.int64)[_COUNTER_WORD]) - _COUNTER_BASE
        if 0 <= draws <= self._count and found == self._marked(draws).numpy().tobytes():
            return Back(self._generator, draws)
        seed = self._generator.initial_seed()
        if torch.equal(torch.Generator().manual_seed(seed).get_state(), state):
            return Reseed(self._generator, seed)
        return SetState(self._generator, state)

    def mark(self, draws: int) -> None:
        self._count = draws
        self._generator.set_state(self._marked(draws))
        self._expected = self._generator.get_state().numpy().tobytes()

    def _marked(self, draws: int) -> torch.Tensor:
        self._words.view(torch.int64)[_COUNTER_WORD] = _COUNTER_BASE + draws
        return self._words


def snapshot(generators: States | dict[torch.Generator, None]) -> States:
    """The present states of some generators."""
    return {generator: generator.get_state() for generator in generators}
