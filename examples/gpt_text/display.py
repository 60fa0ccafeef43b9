"""What a run shows while it trains: a live panel on a terminal, lines of text elsewhere, nothing on other ranks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
MIB = 1024**2


@dataclass(frozen=True)
class StepReport:
    """One finished step. Peak memory is in bytes, one figure per rank that knows it."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    peak_memory: Sequence[int]

    @property
    def memory(self) -> str:
        """Peak memory of all ranks, in MiB."""
        return ", ".join(f"{value / MIB:.0f}" for value in self.peak_memory) + " MiB"


class Display(Protocol):
    """A context manager that takes reports."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def note(self, text: str) -> None:
        """A line that stays."""

    def show(self, report: StepReport) -> None:
        """A step has ended."""


class Nothing:
    """For every rank but the first."""

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Nothing."""

    def show(self, report: StepReport) -> None:
        """Nothing."""


class Lines:
    """One line every so many steps, for files and pipes."""

    def __init__(self, first: int, total: int, every: int) -> None:
        self._first = first
        self._total = total
        self._every = every
        self._start_s = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Prints it."""
        print(text, flush=True)

    def show(self, report: StepReport) -> None:
        """Prints every so many steps, and the first and last."""
        if report.step % self._every and report.step not in (self._first + 1, self._total):
            return
        per_step_s = (time.monotonic() - self._start_s) / (report.step - self._first)
        left_s = round(per_step_s * (self._total - report.step))
        print(
            f"step {report.step}/{self._total}  loss {report.loss:.3f}  lr {report.lr:.2e}  "
            f"gradient norm {report.grad_norm:.2f}  {report.tokens_per_s:,.0f} tokens/s  "
            f"peak memory {report.memory}  {left_s // 60}:{left_s % 60:02d} left",
            flush=True,
        )


class Panel:
    """A bar with the time left, the figures of the last step, and the loss so far as a row of little bars."""

    def __init__(self, console: Console, first: int, total: int) -> None:
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total, completed=first)
        self._losses: list[float] = []
        self._live = Live(self._progress, console=console, refresh_per_second=4)
        self._console = console

    def __enter__(self) -> Panel:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Prints it above the panel."""
        self._console.print(text, highlight=False, markup=False)

    def show(self, report: StepReport) -> None:
        """Draws the step."""
        self._losses.append(report.loss)
        self._progress.update(self._task, completed=report.step)
        figures = Table.grid(padding=(0, 3))
        for title in ("loss", "learning rate", "gradient norm", "tokens/s", "peak memory by rank"):
            figures.add_column(title, no_wrap=True)
        figures.add_row(*(f"[dim]{column.header}[/dim]" for column in figures.columns))
        figures.add_row(
            f"[bold]{report.loss:.3f}[/bold]",
            f"{report.lr:.2e}",
            f"{report.grad_norm:.2f}",
            f"{report.tokens_per_s:,.0f}",
            report.memory,
        )
        curve = sparkline(self._losses, self._console.width - 10)
        self._live.update(Group(self._progress, figures, f"[dim]loss[/dim] [cyan]{curve}[/cyan]"))


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` bars, each the mean of an equal share of the values."""
    count = min(max(width, 1), len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in means)


def display(is_first: bool, first: int, total: int, every: int) -> Display:
    """The display that fits this rank and its output, for steps ``first < step <= total``."""
    if not is_first:
        return Nothing()
    console = Console()
    return Panel(console, first, total) if console.is_terminal else Lines(first, total, every)
