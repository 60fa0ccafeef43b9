"""What a simulated schedule costs, in numbers to print and to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds_pipeline.schedules.ir import messages
from ds_pipeline.schedules.make import SCHEDULES, make_schedule
from ds_pipeline.schedules.memory import peak_bytes, peaks
from ds_pipeline.schedules.simulate import Costs, Simulation, simulate

__all__ = ["RankSummary", "Summary", "compared", "summary_of"]


@dataclass(frozen=True, slots=True)
class RankSummary:
    """One rank: times in the unit of the costs, memory in stages times micro-batches (Note [What is held]).

    `peak_bytes` is None where nobody said how large activations are.
    """

    rank: int
    stages: tuple[int, ...]
    busy: float
    idle: float
    inner_idle: float
    activations: int
    weight_contexts: int
    held: int
    messages: int
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A schedule under given costs."""

    schedule: str
    micro_batches: int
    rank_of_stage: tuple[int, ...]
    makespan: float
    bubble_fraction: float
    inner_bubble: float
    ranks: tuple[RankSummary, ...]

    @property
    def stages_per_rank(self) -> int:
        """The most stages on a rank."""
        return max(len(row.stages) for row in self.ranks)

    @property
    def held_share(self) -> float:
        """The most a rank holds, in micro-batches of its whole share of the model."""
        return max(row.held / len(row.stages) for row in self.ranks)

    @property
    def weight_context_share(self) -> float:
        """The most weight contexts a rank holds, counted like `held_share`; not at the same time as that."""
        return max(row.weight_contexts / len(row.stages) for row in self.ranks)

    @property
    def messages(self) -> int:
        """Messages of all ranks in one optimizer step."""
        return sum(row.messages for row in self.ranks)


def summary_of(
    run: Simulation,
    activation_bytes: Sequence[int] | None = None,
    weight_context_bytes: Sequence[int] | None = None,
) -> Summary:
    """The numbers of a simulated schedule; with bytes for each stage as `peak_bytes` takes them, in bytes too."""
    made = run.schedule
    sent = [0] * made.ranks
    for (sender, _), found in messages(made).items():
        sent[sender] += len(found)
    most: Sequence[int | None] = [None] * made.ranks
    if activation_bytes is not None:
        most = peak_bytes(made, activation_bytes, weight_context_bytes)
    rows = tuple(
        RankSummary(
            rank,
            made.stages_of(rank),
            run.busy(rank),
            run.idle(rank),
            run.inner_idle(rank),
            held.activations,
            held.weight_contexts,
            held.both,
            sent[rank],
            most[rank],
        )
        for rank, held in enumerate(peaks(made))
    )
    return Summary(
        made.name,
        made.micro_batches,
        made.rank_of_stage,
        run.makespan,
        run.bubble_fraction,
        run.inner_bubble,
        rows,
    )


def compared(
    *,
    ranks: int,
    micro_batches: int,
    forward: float = 1.0,
    backward_input: float = 1.0,
    backward_weight: float = 1.0,
    transfer: float = 0.0,
) -> list[Summary]:
    """Every training schedule for the same model on the same ranks.

    Args:
        ranks: pipe ranks.
        micro_batches: of one optimizer step.
        forward: time of a micro-batch through all stages of a rank; with two stages, each takes half of it.
        backward_input: the same for the backward for inputs.
        backward_weight: the same for the backward for weights.
        transfer: time of a message between ranks, whatever the number of stages.
    """
    found = []
    for name, kind in SCHEDULES.items():
        if kind.is_training:
            each = kind.stages_per_rank
            costs = Costs(forward / each, backward_input / each, backward_weight / each, transfer)
            found.append(summary_of(simulate(make_schedule(name, ranks=ranks, micro_batches=micro_batches), costs)))
    return found
