"""What stage 3 gathers in a step, found by driving the coordinator of a run over units without values.

Assumed of the model: a forward uses modules in the order they were registered, each once; a backward goes the other
way and reads the weights of a module where a gradient has to pass through it: not those of embeddings, not those of
modules that nothing trainable precedes, and not matrices under autocast, of which a cast copy was saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import nn

from ds_zero.estimate.setup import Setup
from ds_zero.part import limits_for
from ds_zero.sharded.control import Message
from ds_zero.sharded.coordinator import Coordinator, Phase
from ds_zero.sharded.unit import UnitState

if TYPE_CHECKING:
    from ds_core.units import Unit

__all__ = ["Gathers", "count_gathers"]

SETTLED_AFTER = 2
"""Steps after which the plan of gathers stays what it is."""

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Gathers(NamedTuple):
    """Gathers of one micro-batch once the plan has settled.

    Attributes:
        forward, backward: how often each unit is gathered, by its index.
        rounds: what ranks tell each other, in collectives.
        peak_bytes: the most that is gathered at once.
    """

    forward: dict[int, int]
    backward: dict[int, int]
    rounds: int
    peak_bytes: int


class _DryUnit:
    """A unit that is gathered without values; what the coordinator asks of a `GatherUnit`."""

    def __init__(self, plan: Unit, tally: _Tally, numel: int, size_bytes: int, trainable: int) -> None:
        self.plan = plan
        self.index: int = plan.index
        self.numel: int = numel
        self.size_bytes: int = size_bytes
        self.trainable: range = range(trainable)
        self.state: UnitState = UnitState.SHARDED
        self.depth: int = 0
        self.held: int = 0
        self._tally = tally

    def issue(self) -> None:
        self.state = UnitState.GATHERING
        self._tally.taken(self)

    def join(self) -> None:
        self._tally.counts[self.index] = self._tally.counts.get(self.index, 0) + 1

    def wait(self) -> None:
        self.state = UnitState.GATHERED

    def storages(self) -> list[int]:
        return []

    def release(self, *, check: bool = True) -> None:
        self.state = UnitState.SHARDED
        self._tally.live_bytes -= self.size_bytes


class _Tally:
    """Counts gathers and the bytes they hold."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.live_bytes: int = 0
        self.peak_bytes: int = 0

    def taken(self, unit: _DryUnit) -> None:
        unit.join()
        self.live_bytes += unit.size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


class _DryControl:
    """Rounds of one rank, which hears only itself; what the coordinator asks of a `Control`."""

    def __init__(self) -> None:
        self.rounds: int = 0

    def post(self, message: Message) -> Message:
        self.rounds += 1
        return message

    def finish(self, posted: Message) -> list[Message]:
        return [posted]

    def round(self, message: Message) -> list[Message]:
        return self.finish(self.post(message))


class _Use(NamedTuple):
    """A module that needs a unit, when it is called (or left), and whether a backward through it reads weights."""

    unit: int
    is_enter: bool
    is_read_back: bool


def count_gathers(setup: Setup) -> Gathers:
    """The gathers of a micro-batch and their peak; nothing below stage 3."""
    if not setup.is_partitioned:
        return Gathers({}, {}, 0, 0)
    tally = _Tally()
    units = {unit.index: unit for unit in _dry_units(setup, tally)}
    uses = _uses(setup, set(units))
    limits = limits_for(setup.zero)
    control = _DryControl()
    coordinator = Coordinator(cast("Any", list(units.values())), cast("Any", control), limits)
    forward: dict[int, int] = {}
    for _ in range(SETTLED_AFTER + 1):
        tally.peak_bytes, tally.counts, control.rounds = 0, {}, 0
        _forward(coordinator, units, uses)
        forward, tally.counts = tally.counts, {}
        _backward(coordinator, units, uses)
    return Gathers(forward, tally.counts, control.rounds, tally.peak_bytes)


def _dry_units(setup: Setup, tally: _Tally) -> list[_DryUnit]:
    sizes: dict[int, list[int]] = {}
    for group in setup.groups:
        for bucket in group.layout.buckets:
            row = sizes.setdefault(bucket.unit, [0, 0, 0])
            row[0] += bucket.numel
            row[1] += bucket.numel * group.dtype.itemsize
            row[2] += not group.is_frozen
    kept = [unit for unit in setup.units if unit.index in sizes and unit.index not in setup.whole_units]
    return [_DryUnit(unit, tally, *sizes[unit.index]) for unit in kept]


def _uses(setup: Setup, sharded: set[int]) -> list[_Use]:
    """Which modules need which units, in the order a forward goes through the tree."""
    unit_of_name = {name: unit.index for unit in setup.units for name in unit.names}
    unit_of = {id(p): unit_of_name[name] for name, p in setup.model.named_parameters()}
    path_of = {unit.index: unit.path for unit in setup.units}
    trained = {member.name for group in setup.trainable for member in group.members}
    trained_ids = {id(p) for name, p in setup.model.named_parameters() if name in trained}
    at_path: dict[str, list[int]] = {}
    for index in sorted(sharded):
        at_path.setdefault(path_of[index], []).append(index)
    saves_copy = setup.config["torch_autocast"].enabled
    uses: list[_Use] = []
    is_after_trainable = False
    seen: set[int] = set()

    def visit(module: nn.Module, path: str, around: frozenset[int]) -> frozenset[int]:
        """Adds the uses of a subtree; returns the units that a backward through it reads."""
        nonlocal is_after_trainable
        if id(module) in seen:
            return frozenset()
        seen.add(id(module))
        direct = {unit_of[id(p)] for p in module.parameters(recurse=False)} & sharded
        mine = [*at_path.get(path, ()), *sorted(direct - around - set(at_path.get(path, ())))]
        starts = []
        for unit in mine:
            starts.append(len(uses))
            uses.append(_Use(unit, True, False))
        read = {unit_of[id(p)] for p in module.parameters(recurse=False) if not (saves_copy and p.dim() > 1)} & sharded
        if isinstance(module, EMBEDDINGS) or not is_after_trainable:
            read = set()
        is_after_trainable |= any(id(p) in trained_ids for p in module.parameters(recurse=False))
        for name, child in module.named_children():
            read |= visit(child, f"{path}.{name}" if path else name, around | set(mine))
        for place, unit in zip(starts, mine, strict=True):
            uses[place] = _Use(unit, True, unit in read)
        uses.extend(_Use(unit, False, False) for unit in reversed(mine))
        return frozenset(read)

    visit(setup.model, "", frozenset())
    return uses


def _forward(coordinator: Coordinator, units: dict[int, _DryUnit], uses: list[_Use]) -> None:
    coordinator.begin(Phase.FORWARD)
    for use in uses:
        unit = units[use.unit]
        if use.is_enter:
            coordinator.need(cast("Any", unit))
            unit.depth += 1
        else:
            unit.depth -= 1
            coordinator.done(cast("Any", unit))
    coordinator.end()


def _backward(coordinator: Coordinator, units: dict[int, _DryUnit], uses: list[_Use]) -> None:
    entered = [use for use in uses if use.is_enter]
    first = {use.unit: place for place, use in reversed(list(enumerate(entered)))}
    coordinator.begin(Phase.BACKWARD)
    for place in range(len(entered) - 1, -1, -1):
        unit = units[entered[place].unit]
        if entered[place].is_read_back:
            coordinator.need(cast("Any", unit))
        if first[unit.index] == place:
            for _ in unit.trainable:
                coordinator.completed(cast("Any", unit))
    coordinator.end()
