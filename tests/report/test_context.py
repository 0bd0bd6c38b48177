"""Shared work is done once, booked, and stopped by the budget."""

from __future__ import annotations

import pytest

from curvops.report import Context, Options
from curvops.report.registry import BudgetSpent
from tests.report.conftest import make_problem


def test_shared_work_is_done_once_also_if_it_fails() -> None:
    context = Context(make_problem())
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        return 7

    def fail() -> int:
        calls.append(2)
        raise ValueError("no")

    assert not context.has("work")
    assert [context.shared("work", work), context.shared("work", work)] == [7, 7]
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            context.shared("fail", fail)
    assert calls == [1, 2]
    assert context.has("work")
    assert context.has("fail")


def test_an_interrupt_is_not_remembered() -> None:
    context = Context(make_problem())

    def interrupt() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        context.shared("work", interrupt)
    assert context.shared("work", lambda: 1) == 1


def test_measure_books_the_time_of_failures_too() -> None:
    context = Context(make_problem(), section="mine")

    def work() -> None:
        with context.measure("work") as task:
            task.products += 3
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    (booked,) = context.tasks
    assert (booked.name, booked.section, booked.products) == ("work", "mine", 3)
    assert booked.seconds > 0


def test_tick_stops_at_the_end_of_the_budget() -> None:
    seen: list[object] = []
    context = Context(make_problem(), on_tick=lambda *args: seen.append(args))
    context.tick(1, 2, "columns")
    assert seen == [(1, 2, "columns")]
    assert context.time_left is None
    late = Context(make_problem(), Options(budget=1e-9))
    with pytest.raises(BudgetSpent, match="after 1 columns: the budget of 1e-09 s is spent"):
        late.tick(1, 2, "columns")
