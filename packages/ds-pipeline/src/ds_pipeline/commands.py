"""``ds pipeline``: what a schedule costs in time and memory, before any rank is started."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ds_pipeline.schedules import Costs, Schedule, Simulation
    from ds_pipeline.schedules.summary import Summary

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Plan pipeline schedules: bubble, memory, pictures, text."
)

Ranks = Annotated[int | None, typer.Option("--ranks", help="Pipe ranks; none is started.")]
MicroBatches = Annotated[int | None, typer.Option("--micro-batches", help="Micro-batches of an optimizer step.")]
COST = "one number, or one for each stage with commas between."
Forward = Annotated[str, typer.Option("--forward", metavar="COST", help=f"Time of a forward at a stage: {COST}")]
Inputs = Annotated[
    str, typer.Option("--backward-input", metavar="COST", help="Time of the backward for the inputs, like --forward.")
]
Weights = Annotated[
    str, typer.Option("--backward-weight", metavar="COST", help="Time of the backward for the weights, like --forward.")
]
Transfer = Annotated[
    str, typer.Option("--transfer", metavar="COST", help="Time until another rank has what was sent to a stage.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command()
def plan(
    schedule: Annotated[str | None, typer.Option("--schedule", metavar="NAME", help="A name; see 'compare'.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A schedule as text, in place of a name.")] = None,
    ranks: Ranks = None,
    micro_batches: MicroBatches = None,
    stages_per_rank: Annotated[int | None, typer.Option("--stages-per-rank", help="Stages on each rank.")] = None,
    forward: Forward = "1",
    backward_input: Inputs = "1",
    backward_weight: Weights = "1",
    transfer: Transfer = "0",
    activation_bytes: Annotated[
        str | None,
        typer.Option(
            "--activation-bytes",
            metavar="BYTES",
            help="What a micro-batch leaves at a stage between forward and backward, like 12e6: one number, or one for "
            "each stage with commas between. Adds the peak of each rank.",
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", metavar="OUT", help="Write the schedule as text.")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="OUT", help="Draw it.")] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="OUT", help="Draw it; needs matplotlib.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what each rank does, waits for and holds, for one schedule."""
    from ds_pipeline.schedules import simulate, to_text
    from ds_pipeline.schedules.summary import summary_of

    made = _schedule(schedule, file, ranks, micro_batches, stages_per_rank)
    run = simulate(made, _costs(forward, backward_input, backward_weight, transfer))
    for path in (text, svg, png):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        text.write_text(to_text(made), encoding="utf-8")
    _draw(run, svg, png)
    found = summary_of(run, _bytes(activation_bytes, made.stages))
    if as_json:
        _write(json.dumps(_json(found), indent=2))
        return
    _show(found)
    for path in (text, svg, png):
        if path is not None:
            _write(f"wrote {path}")


@app.command()
def compare(
    ranks: Annotated[int, typer.Option("--ranks", help="Pipe ranks; none is started.")],
    micro_batches: Annotated[int, typer.Option("--micro-batches", help="Micro-batches of an optimizer step.")],
    forward: Annotated[float, typer.Option("--forward", help="Time of a rank's forward, all its stages.")] = 1.0,
    backward_input: Annotated[float, typer.Option("--backward-input", help="Time of its backward for inputs.")] = 1.0,
    backward_weight: Annotated[float, typer.Option("--backward-weight", help="Time of that for weights.")] = 1.0,
    transfer: Annotated[float, typer.Option("--transfer", help="Time of a message between ranks.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Set all training schedules side by side, for the same model on the same ranks.

    A rank's work is the same under all of them: with two stages on a rank each takes half the time and holds half the
    memory. What is held counts in micro-batches of a rank's whole share of the model.
    """
    from ds_pipeline.schedules.summary import compared

    found = compared(
        ranks=ranks,
        micro_batches=micro_batches,
        forward=forward,
        backward_input=backward_input,
        backward_weight=backward_weight,
        transfer=transfer,
    )
    if as_json:
        _write(json.dumps([_json(one) for one in found], indent=2))
        return
    columns = ("schedule", "stages", "time", "bubble", "inner", "held", "contexts", "messages")
    rows = [
        (
            one.schedule,
            str(one.stages_per_rank),
            f"{one.makespan:g}",
            f"{one.bubble_fraction:.1%}",
            f"{one.inner_bubble:g}",
            f"{one.held_share:g}",
            f"{one.weight_context_share:g}",
            str(one.messages),
        )
        for one in found
    ]
    _table(columns, rows, title=f"{ranks} ranks, {micro_batches} micro-batches")
    _write(
        "inner: the most a rank is idle between its first and last action\n"
        "held, contexts: the most a rank holds in all, and between its two backwards, in micro-batches of its share"
    )


def _schedule(
    name: str | None, file: Path | None, ranks: int | None, micro_batches: int | None, each: int | None
) -> Schedule:
    from ds_pipeline.errors import ScheduleError
    from ds_pipeline.schedules import from_text, make_schedule, validate

    if file is None:
        if ranks is None or micro_batches is None:
            raise ScheduleError("a schedule by name needs --ranks and --micro-batches; one as text needs --file")
        return make_schedule(name or "1f1b", ranks=ranks, micro_batches=micro_batches, stages_per_rank=each)
    given = {"--schedule": name, "--ranks": ranks, "--micro-batches": micro_batches, "--stages-per-rank": each}
    extra = [option for option, value in given.items() if value is not None]
    if extra:
        raise ScheduleError(f"--file already says what {', '.join(extra)} would; leave out one or the other")
    try:
        made = from_text(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScheduleError(f"--file {file} cannot be read: {error.strerror}") from error
    validate(made)
    return made


def _costs(forward: str, inputs: str, weights: str, transfer: str) -> Costs:
    from ds_pipeline.schedules import Costs

    return Costs(
        _numbers("--forward", forward),
        _numbers("--backward-input", inputs),
        _numbers("--backward-weight", weights),
        _numbers("--transfer", transfer),
    )


def _bytes(value: str | None, stages: int) -> list[int] | None:
    if value is None:
        return None
    found = _numbers("--activation-bytes", value)
    return [int(one) for one in (found if isinstance(found, list) else [found] * stages)]


def _numbers(option: str, value: str) -> float | list[float]:
    from ds_pipeline.errors import ScheduleError

    try:
        found = [float(part) for part in value.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= one < math.inf for one in found):
        raise ScheduleError(f"{option} must be a number of at least 0, or one for each stage like 1,1,2, got {value!r}")
    return found if len(found) > 1 else found[0]


def _draw(run: Simulation, svg: Path | None, png: Path | None) -> None:
    if svg is None and png is None:
        return
    from ds_pipeline.drawing import picture_of, svg_text, write_png

    picture = picture_of(run)
    if svg is not None:
        svg.write_text(svg_text(picture), encoding="utf-8")
    if png is not None:
        write_png(picture, png)


def _json(found: Summary) -> dict[str, Any]:
    return {
        **asdict(found),
        "stages_per_rank": found.stages_per_rank,
        "held_share": found.held_share,
        "weight_context_share": found.weight_context_share,
        "messages": found.messages,
    }


def _show(found: Summary) -> None:
    columns: tuple[str, ...] = (
        *("rank", "stages", "busy", "idle", "bubble", "activations", "contexts", "held", "messages"),
        *(("peak bytes",) if found.ranks[0].peak_bytes is not None else ()),
    )
    rows = [
        (
            str(row.rank),
            " ".join(map(str, row.stages)),
            f"{row.busy:g}",
            f"{row.idle:g}",
            f"{row.idle / found.makespan:.1%}" if found.makespan else "0.0%",
            *map(str, (row.activations, row.weight_contexts, row.held, row.messages)),
            *((f"{row.peak_bytes:,}",) if row.peak_bytes is not None else ()),
        )
        for row in found.ranks
    ]
    title = f"{found.schedule}: {len(found.rank_of_stage)} stages, {found.micro_batches} micro-batches"
    _table(columns, rows, title=title)
    _write(
        f"time {found.makespan:g}, bubble {found.bubble_fraction:.1%}; between its first and last action a rank is "
        f"idle for at most {found.inner_bubble:g}"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """Drawn for a terminal, plain columns for everything else; all but the first flush right."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title=title, title_justify="left")
        for place, column in enumerate(columns):
            drawn.add_column(column, justify="right" if place else "left", no_wrap=not place)
        for row in rows:
            drawn.add_row(*map(Text, row))
        Console().print(drawn)
        return
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    _write(f"# {title}")
    for row in (columns, *rows):
        cells = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        _write("  ".join(cells).rstrip())


def _write(line: str) -> None:
    typer.echo(line)
