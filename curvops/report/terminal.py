"""The report in the terminal: one progress line while it is made, a short summary at the end."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from curvops.report.blocks import digits, duration
from curvops.report.html import shown
from curvops.report.registry import Section
from curvops.report.runner import FAILED, INTERRUPTED, OK, Listener, Outcome, Report

_STYLES = {OK: "green", FAILED: "bold red", INTERRUPTED: "bold yellow"}


class ProgressLine(Listener):
    """One line: the section at work, how far it is, and the time it will still take.

    Without a terminal (a log file, a pipe) one plain line is written for each section instead.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[what]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._begun = 0.0
        self._work: tuple[str, int | None] = ("", None)
        self._work_begun = 0.0
        self._estimate: float | None = None

    def __enter__(self) -> ProgressLine:
        """Draw the line until the block is left."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the line away."""
        self._progress.stop()

    def announce(self, what: str) -> None:
        """Show work that belongs to no section, such as building the problem."""
        self._begun, self._estimate = perf_counter(), None
        self._show(what, "")
        if not self._live:
            self._console.print(Text(f"{what} ..."), soft_wrap=True)

    def begin(self, section: Section, index: int, total: int, estimate: float | None) -> None:
        """Show the section and how long it may take."""
        self._begun, self._estimate = perf_counter(), estimate
        self._work = ("", None)
        left = f"about {duration(estimate)} left" if estimate and estimate > 0.5 else ""
        self._show(f"[{index + 1}/{total}] {section.title}", left)

    def tick(self, done: int, total: int | None, unit: str) -> None:
        """Show how much is done and the time left."""
        if self._task is None:
            return
        now = perf_counter()
        if self._work != (unit, total):
            self._work, self._work_begun = (unit, total), now
        if total:
            left: float | None = (now - self._work_begun) / done * (total - done) if done else None
        elif self._estimate is not None:
            left = max(0.0, self._estimate - (now - self._begun))
        else:
            left = None
        count = f"{digits(done)}/{digits(total)} {unit}" if total else f"{digits(done)} {unit}"
        detail = count if left is None else f"{count}, about {duration(left)} left"
        self._progress.update(self._task, total=total, completed=done, detail=detail)

    def end(self, outcome: Outcome) -> None:
        """Write a line about the section where there is no line to redraw."""
        if not self._live:
            told = outcome.status if not outcome.reason else f"{outcome.status}: {outcome.reason}"
            line = f"{outcome.section.title}: {told} ({duration(outcome.seconds)})"
            self._console.print(Text(printable(line)), soft_wrap=True)

    def _show(self, what: str, detail: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=None, what=what, detail=detail)


def summary(report: Report) -> Any:
    """Return the summary, for rich to print: the headline numbers, and what became of sections."""
    numbers = Table.grid(padding=(0, 2))
    numbers.add_column(justify="left", style="dim")
    numbers.add_column(justify="right", style="bold")
    for _, number in report.headlines():
        unit = f" {number.unit}" if number.unit else ""
        numbers.add_row(Text(printable(number.label)), Text(printable(shown(number) + unit)))
    parts: list[Any] = [
        Text(f"Curvature of {printable(report.problem.name)}", style="bold"),
        numbers,
    ]
    for outcome in report.outcomes:
        if outcome.status == OK:
            continue
        line = Text(f"{outcome.section.name}: ")
        line.append(outcome.status, style=_STYLES.get(outcome.status, "yellow"))
        line.append(f". {printable(outcome.reason)}")
        parts.append(line)
    good = sum(outcome.status == OK for outcome in report.outcomes)
    total, seconds = len(report.outcomes), duration(report.seconds)
    parts.append(Text(f"{good} of {total} sections in {seconds}", style="dim"))
    return Group(*parts)


def printable(text: str) -> str:
    """Return a string without control characters, which a terminal would obey.

    Example:
        >>> printable("a" + chr(27) + "[31mb")
        'a�[31mb'
    """
    return "".join(c if c.isprintable() else ("\n" if c == "\n" else "�") for c in text)
