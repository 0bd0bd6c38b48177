"""What a section is given: the risk, the options, and the work that sections share.

A dense Hessian serves four sections and is computed once, at the first need
(:meth:`Context.shared`). All work is booked under a name (:meth:`Context.measure`), so that the
report can say where the time went, and reports its progress (:meth:`Context.tick`), where a spent
budget stops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from curvops.operators.hessian import HessianLinearOperator
from curvops.report.registry import BudgetSpent

if TYPE_CHECKING:
    from curvops.report.problem import Problem
    from curvops.risk import EmpiricalRisk

T = TypeVar("T")
Tick = Callable[[int, "int | None", str], None]
"""Told how much of how much is done, in which unit."""


@dataclass(frozen=True)
class Options:
    """The choices of whoever asked for the report.

    Attributes:
        only: Names of the sections to compute, all by default.
        seed: Seeds everything random.
        budget: Seconds after which no more work is started.
        max_dense: Largest number of parameters for which the dense Hessian is formed.
        run: The journal of a monitored training run, if there is one to report on.
    """

    only: tuple[str, ...] | None = None
    seed: int = 0
    budget: float | None = None
    max_dense: int = 3000
    run: str | None = None


@dataclass
class Task:
    """One piece of work: what it was for, how many products and how long it took."""

    name: str
    section: str
    products: int = 0
    seconds: float = 0.0


@dataclass
class Context:
    """Everything a section may use.

    Attributes:
        problem: The risk and where it came from.
        options: The caller's choices.
        tasks: What has been done so far.
        section: The name of the section at work.
        started: When the report was begun, on the clock of ``time.perf_counter``.
    """

    problem: Problem
    options: Options = field(default_factory=Options)
    tasks: list[Task] = field(default_factory=list)
    section: str = ""
    started: float = field(default_factory=perf_counter)
    on_tick: Tick | None = None
    _shared: dict[str, Any] = field(default_factory=dict)

    @property
    def risk(self) -> EmpiricalRisk:
        """The empirical risk the report is about."""
        return self.problem.risk

    @property
    def num_params(self) -> int:
        """Number of parameters ``P``."""
        return self.risk.space.dim

    @property
    def hessian(self) -> HessianLinearOperator:
        """The Hessian of the risk."""
        return self.shared("hessian", lambda: HessianLinearOperator.from_risk(self.risk))

    @property
    def time_left(self) -> float | None:
        """Seconds of the budget that are left; None without a budget."""
        if self.options.budget is None:
            return None
        return self.options.budget - (perf_counter() - self.started)

    def shared(self, name: str, compute: Callable[[], T]) -> T:
        """Return what ``compute`` gives, computed at the first call of that name only.

        What went wrong the first time goes wrong the same way again, without the wait.
        """
        if name not in self._shared:
            try:
                self._shared[name] = (compute(), None)
            except Exception as error:
                self._shared[name] = (None, error)
        value, failure = self._shared[name]
        if failure is not None:
            raise failure
        result: T = value
        return result

    def has(self, name: str) -> bool:
        """Return whether shared work of that name is done (or has failed) already."""
        return name in self._shared

    @contextmanager
    def measure(self, name: str) -> Iterator[Task]:
        """Book the time inside the ``with`` block; the caller counts the products."""
        task = Task(name, self.section)
        self.tasks.append(task)
        start = perf_counter()
        try:
            yield task
        finally:
            task.seconds = perf_counter() - start

    def tick(self, done: int, total: int | None = None, unit: str = "products") -> None:
        """Show progress, and stop if the budget is spent.

        Raises:
            BudgetSpent: If there is a budget and it is over.
        """
        if self.on_tick is not None:
            self.on_tick(done, total, unit)
        left = self.time_left
        if left is not None and left <= 0:
            budget = self.options.budget
            raise BudgetSpent(f"Stopped after {done} {unit}: the budget of {budget:g} s is spent.")
