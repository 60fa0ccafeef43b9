"""Where every box, line and word of a schedule's picture goes, in pixels from the upper left."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ds_pipeline.drawing.colours import GRID, IDLE, INK, PAPER, SOFT_INK, colour, ink_on
from ds_pipeline.schedules.ir import Op
from ds_pipeline.schedules.memory import peaks
from ds_pipeline.schedules.simulate import Simulation, Timed

__all__ = ["Box", "Line", "Picture", "Word", "picture_of"]

ROW = 26  # height of a rank's row
STEP = 34  # from one row to the next
LEFT = 64  # for the names of ranks
RIGHT = 150  # for busy and held
TOP = 78  # for title and legend
BOTTOM = 46  # for the time axis
WIDEST, NARROWEST, WANTED = 1500, 560, 22  # pixels of the time axis, and of the shortest action if there is room
DIGIT = 6.4  # pixels of a digit at the size of labels
NAMES = {Op.F: "forward", Op.B: "backward", Op.I: "backward, inputs", Op.W: "backward, weights"}


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle, with a word in its middle and a note for a pointer that rests on it."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    label: str = ""
    ink: str = INK
    note: str = ""
    edge: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A thin straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    stroke: str = GRID


@dataclass(frozen=True, slots=True)
class Word:
    """A text; `x` is its start, middle or end as `anchor` says, `y` its base line."""

    x: float
    y: float
    text: str
    size: float = 12
    anchor: str = "start"
    ink: str = INK
    is_bold: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, lowest layer first: boxes, lines, words."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    words: tuple[Word, ...]


def picture_of(run: Simulation) -> Picture:
    """The Gantt chart of a simulated schedule: a row per rank, a box per action with its micro-batch.

    Stages of one rank differ in shade; what a rank waits stays grey. The title has the bubble fraction.
    """
    schedule = run.schedule
    times = [timed.end - timed.start for row in run.rows for timed in row if timed.end > timed.start]
    span = run.makespan or 1.0
    wide = min(WIDEST, max(NARROWEST, WANTED * span / min(times, default=span)))
    scale = wide / span
    below = TOP + STEP * schedule.ranks
    boxes = [Box(0, 0, LEFT + wide + RIGHT, below + BOTTOM, PAPER)]
    lines, words = _axis(span, scale, below)
    for rank, row in enumerate(run.rows):
        top = TOP + STEP * rank
        boxes.append(Box(LEFT, top, wide, ROW, IDLE))
        boxes += [_action(timed, run, scale, top) for timed in row]
    words += _rows(run, wide)
    words.append(Word(LEFT, 26, _title(run), size=16, is_bold=True))
    legend_boxes, legend_words = _legend(run)
    return Picture(
        LEFT + wide + RIGHT,
        below + BOTTOM,
        (*boxes, *legend_boxes),
        tuple(lines),
        (*words, *legend_words),
    )


def _title(run: Simulation) -> str:
    schedule = run.schedule
    parts = [f"{schedule.ranks} rank{'s' * (schedule.ranks > 1)}"]
    if schedule.stages != schedule.ranks:
        parts.append(f"{schedule.stages} stages")
    parts.append(f"{schedule.micro_batches} micro-batch{'es' * (schedule.micro_batches > 1)}")
    return f"{schedule.name}: {', '.join(parts)}; bubble {run.bubble_fraction:.1%}"


def _shade(run: Simulation, stage: int) -> tuple[int, int]:
    """Which of its rank's stages this is, and of how many."""
    held = run.schedule.stages_of(run.schedule.rank_of_stage[stage])
    return held.index(stage), len(held)


def _action(timed: Timed, run: Simulation, scale: float, top: float) -> Box:
    action = timed.action
    fill = colour(action.op, *_shade(run, action.stage))
    width = (timed.end - timed.start) * scale
    digits = len(str(run.schedule.micro_batches - 1))  # boxes of one width have all a label or none
    return Box(
        LEFT + timed.start * scale,
        top,
        width,
        ROW,
        fill,
        label=str(action.micro_batch) if width > DIGIT * digits + 2 else "",
        ink=ink_on(fill),
        note=f"{action}: {timed.start:g} to {timed.end:g}",
        edge=PAPER if width > 3 else "",
    )


def _rows(run: Simulation, wide: float) -> list[Word]:
    held = peaks(run.schedule)
    right = LEFT + wide + 12
    words = [
        Word(right, TOP - 8, "busy", size=11, ink=SOFT_INK),
        Word(right + 52, TOP - 8, "holds at most", size=11, ink=SOFT_INK),
    ]
    for rank in range(run.schedule.ranks):
        base = TOP + STEP * rank + ROW / 2 + 4
        share = run.busy(rank) / run.makespan if run.makespan else 0.0
        words += [
            Word(LEFT - 10, base, f"rank {rank}", anchor="end"),
            Word(right, base, f"{share:.0%}"),
            Word(right + 52, base, str(held[rank].both)),
        ]
    return words


def _axis(span: float, scale: float, below: float) -> tuple[list[Line], list[Word]]:
    lines, words = [], []
    step = _tick(span * 70 / (span * scale))
    for place in range(int(span / step + 1e-9) + 1):
        x = LEFT + place * step * scale
        lines.append(Line(x, below - STEP + ROW, x, below + 2))
        words.append(Word(x, below + 16, f"{place * step:g}", size=11, anchor="middle", ink=SOFT_INK))
    lines.append(Line(LEFT, below - 2, LEFT + span * scale, below - 2))
    words.append(Word(LEFT + span * scale / 2, below + 34, "time", size=11, anchor="middle", ink=SOFT_INK))
    return lines, words


def _tick(at_least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `at_least`."""
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * (1 - 1e-9))


def _legend(run: Simulation) -> tuple[list[Box], list[Word]]:
    boxes, words, x = [], [], float(LEFT)
    present = {action.op for row in run.schedule.rows for action in row}
    shades = max(len(run.schedule.stages_of(rank)) for rank in range(run.schedule.ranks))
    entries = [(NAMES[op], [colour(op, shade, shades) for shade in range(shades)]) for op in Op if op in present]
    for text, fills in [*entries, ("idle", [IDLE])]:
        for fill in fills:
            boxes.append(Box(x, 42, 14, 14, fill))
            x += 14
        words.append(Word(x + 6, 53, text))
        x += 6 + DIGIT * len(text) + 20
    if shades > 1:
        words.append(Word(x, 53, "(a shade for each stage of a rank)", ink=SOFT_INK))
    return boxes, words
