"""Run the sections one after another; whatever happens to one, the others have their turn."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from curvops.report.blocks import Number, SectionResult, duration
from curvops.report.context import Context, Options, Task
from curvops.report.problem import Problem
from curvops.report.registry import BudgetSpent, Section, Skipped, select

OK, FAILED, SKIPPED, INTERRUPTED, NOT_RUN = "ok", "failed", "skipped", "interrupted", "not run"
_BY_USER = "Interrupted by the user."


@dataclass(frozen=True)
class Outcome:
    """What became of one section.

    Attributes:
        section: The section.
        status: ``ok``, ``failed``, ``skipped``, ``interrupted`` or ``not run``.
        reason: Why, unless it is ``ok``.
        details: The traceback of a failure.
        result: What it returned.
        seconds: How long it took, shared work included if it came first.
        products: Matrix-vector products likewise.
    """

    section: Section
    status: str
    reason: str = ""
    details: str = ""
    result: SectionResult = field(default_factory=lambda: SectionResult(()))
    seconds: float = 0.0
    products: int = 0


@dataclass(frozen=True)
class Report:
    """Everything a report says.

    Attributes:
        problem: What it is about.
        options: The choices of whoever asked for it.
        outcomes: One a section, in reading order.
        tasks: All work that was done, in the order it was done.
        seconds: From the start to the end, building the problem included.
    """

    problem: Problem
    options: Options
    outcomes: tuple[Outcome, ...]
    tasks: tuple[Task, ...]
    seconds: float

    @property
    def status(self) -> str:
        """``interrupted``, ``failed`` (some section was) or ``ok``."""
        statuses = {outcome.status for outcome in self.outcomes}
        if statuses & {INTERRUPTED, NOT_RUN}:
            return INTERRUPTED
        return FAILED if FAILED in statuses else OK

    @property
    def exit_code(self) -> int:
        """What the command returns: 0, 1 if a section failed, 130 if interrupted."""
        return {OK: 0, FAILED: 1, INTERRUPTED: 130}[self.status]

    def headlines(self) -> list[tuple[str, Number]]:
        """Return the numbers of the summary, each with its section's name."""
        return [
            (outcome.section.name, number)
            for outcome in self.outcomes
            for number in outcome.result.numbers.values()
            if number.headline
        ]


class Listener:
    """Told what is going on; the terminal's listener draws the progress line."""

    def begin(self, section: Section, index: int, total: int, estimate: float | None) -> None:
        """Learn that a section begins, and how long it may take."""

    def tick(self, done: int, total: int | None, unit: str) -> None:
        """Learn how much of the section's current work is done."""

    def end(self, outcome: Outcome) -> None:
        """Learn what became of the section."""


def run_report(
    problem: Problem,
    options: Options | None = None,
    *,
    listener: Listener | None = None,
    started: float | None = None,
) -> Report:
    """Compute the sections of a report.

    Args:
        problem: What it is about, from :func:`~curvops.report.problem.load_problem`.
        options: Which sections, the seed, the budget.
        listener: Told about the progress.
        started: When the clock of the budget began to run (``time.perf_counter``); by default
            as long before now as building the problem took.

    Returns:
        The report; also if sections failed or the user interrupted, which it says.

    Raises:
        InputError: If ``options.only`` names a section that does not exist.
    """
    options = options or Options()
    listener = listener or Listener()
    sections = select(options.only)
    begun = perf_counter() - problem.seconds if started is None else started
    build = Task("building and training the problem", "", 0, problem.seconds)
    context = Context(problem, options, tasks=[build], started=begun, on_tick=listener.tick)
    outcomes = _run_all(sections, context, listener)
    ordered = tuple(outcomes[section.name] for section in sections)
    return Report(problem, options, ordered, tuple(context.tasks), perf_counter() - begun)


def _run_all(
    sections: Sequence[Section], context: Context, listener: Listener
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    queue = sorted(sections, key=lambda s: s.after_all)  # stable: otherwise in reading order
    interrupted = False
    for index, section in enumerate(queue):
        try:
            if interrupted:
                outcome = Outcome(section, NOT_RUN, "The report was interrupted before.")
            else:
                outcome = _run_one(section, context, listener, index, len(queue))
                interrupted = outcome.status == INTERRUPTED
            outcomes[section.name] = outcome
            listener.end(outcome)
        except KeyboardInterrupt:  # noqa: PERF203 - between sections: what is done is kept
            interrupted = True
            outcomes.setdefault(section.name, Outcome(section, INTERRUPTED, _BY_USER))
    return outcomes


def _run_one(
    section: Section, context: Context, listener: Listener, index: int, total: int
) -> Outcome:
    context.section = section.name
    start, first_task = perf_counter(), len(context.tasks)
    try:
        listener.begin(section, index, total, None)
        # A report on the others is quick, and most wanted when the budget cut them short.
        estimate = None if section.after_all else _estimate(section, context)
        listener.begin(section, index, total, estimate)
        outcome = Outcome(section, OK, result=section.run(context))
    except KeyboardInterrupt:
        outcome = Outcome(section, INTERRUPTED, _BY_USER)
    except Skipped as skipped:
        outcome = Outcome(section, SKIPPED, str(skipped))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        outcome = Outcome(section, FAILED, reason, traceback.format_exc())
    products = sum(task.products for task in context.tasks[first_task:])
    return replace(outcome, seconds=perf_counter() - start, products=products)


def _estimate(section: Section, context: Context) -> float | None:
    """Guess the section's duration, and skip it if it does not fit the budget."""
    left = context.time_left
    if left is not None and left <= 0:
        raise BudgetSpent(f"Not started: the budget of {context.options.budget:g} s is spent.")
    estimate = section.estimate(context) if section.estimate is not None else None
    left = context.time_left
    if left is not None and estimate is not None and estimate > left:
        raise BudgetSpent(
            f"Not started: it needs about {duration(estimate)}, and {duration(max(left, 0))} of "
            f"the budget of {context.options.budget:g} s are left."
        )
    return estimate
