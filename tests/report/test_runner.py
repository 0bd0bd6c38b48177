"""Whatever happens to one section, the others have their turn and the report is written."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from curvops.errors import InputError
from curvops.report import Context, Options, SectionResult, Skipped, run_report
from curvops.report.registry import Section
from curvops.report.runner import Listener, Outcome
from tests.report.conftest import make_problem

Registry = Callable[..., Callable[[Callable[[Context], SectionResult]], object]]


def statuses(outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    return {o.section.name: o.status for o in outcomes}


def test_a_failing_section_says_why_and_the_others_run(registry: Registry) -> None:
    @registry("broken", "Broken", order=15)
    def broken(context: Context) -> SectionResult:
        raise RuntimeError("the <reason>")

    report = run_report(make_problem())
    got = statuses(report.outcomes)
    assert got.pop("broken") == "failed"
    assert got.pop("training") == "skipped"
    assert set(got.values()) == {"ok"}
    outcome = report.outcomes[1]
    assert outcome.reason == "RuntimeError: the <reason>"
    assert "def broken" in outcome.details or "in broken" in outcome.details
    assert (report.status, report.exit_code) == ("failed", 1)


def test_skipping_is_no_failure(registry: Registry) -> None:
    @registry("absent", "Absent", order=15)
    def absent(context: Context) -> SectionResult:
        raise Skipped("nothing here")

    report = run_report(make_problem(), Options(only=("absent", "problem")))
    assert statuses(report.outcomes) == {"problem": "ok", "absent": "skipped"}
    assert (report.status, report.exit_code) == ("ok", 0)


def test_an_interrupt_keeps_what_is_done(registry: Registry) -> None:
    @registry("stopped", "Stopped", order=35)
    def stopped(context: Context) -> SectionResult:
        raise KeyboardInterrupt

    report = run_report(make_problem())
    got = statuses(report.outcomes)
    assert got["problem"] == got["eigenpairs"] == "ok"
    assert got["stopped"] == "interrupted"
    assert got["spectrum"] == got["timing"] == "not run"
    assert (report.status, report.exit_code) == ("interrupted", 130)


def test_an_interrupt_between_sections_keeps_what_is_done() -> None:
    class Impatient(Listener):
        def end(self, outcome: Outcome) -> None:
            if outcome.section.name == "problem":
                raise KeyboardInterrupt

    report = run_report(make_problem(), listener=Impatient())
    assert statuses(report.outcomes)["problem"] == "ok"
    assert statuses(report.outcomes)["lines"] == "not run"
    assert report.exit_code == 130


def test_sections_that_do_not_fit_the_budget_are_skipped(registry: Registry) -> None:
    @registry("endless", "Endless", order=15, estimate=lambda context: 1e6)
    def endless(context: Context) -> SectionResult:
        raise AssertionError("must not start")

    only = ("problem", "endless", "eigenpairs", "timing")
    report = run_report(make_problem(), Options(budget=300, only=only))
    assert statuses(report.outcomes) == {
        "problem": "ok",
        "timing": "ok",
        "endless": "skipped",
        "eigenpairs": "ok",
    }
    reason = next(o.reason for o in report.outcomes if o.section.name == "endless")
    assert reason.startswith("Not started: it needs about 277 h")
    assert "budget of 300 s" in reason
    assert report.exit_code == 0


def test_a_section_that_outlasts_the_budget_is_stopped(registry: Registry) -> None:
    @registry("slow", "Slow", order=5)
    def slow(context: Context) -> SectionResult:
        for i in range(1000):
            time.sleep(0.02)
            context.tick(i, 1000, "steps")
        raise AssertionError("must not finish")

    report = run_report(make_problem(), Options(budget=0.3))
    outcome = report.outcomes[0]
    assert outcome.status == "skipped"
    assert "the budget of 0.3 s is spent" in outcome.reason
    assert statuses(report.outcomes)["lines"] == "skipped"


@pytest.mark.parametrize(
    "name",
    [
        "problem",
        "timing",
        "eigenpairs",
        "spectrum",
        "density",
        "traces",
        "logdet",
        "volume",
        "lines",
    ],
)
def test_every_section_works_alone(name: str) -> None:
    report = run_report(make_problem(weight_decay=0.1), Options(only=(name,)))
    assert statuses(report.outcomes) == {name: "ok"}
    assert report.outcomes[0].result.blocks


def test_listeners_hear_of_every_section() -> None:
    heard: list[tuple[str, str]] = []

    class Recorder(Listener):
        def begin(self, section: Section, index: int, total: int, estimate: object) -> None:
            heard.append(("begin", section.name))

        def end(self, outcome: Outcome) -> None:
            heard.append(("end", outcome.section.name))

    run_report(make_problem(), Options(only=("timing", "problem")), listener=Recorder())
    ends = [name for kind, name in heard if kind == "end"]
    assert ends == ["problem", "timing"]  # timing reports on the others


def test_unknown_sections_are_refused_before_work() -> None:
    with pytest.raises(InputError, match="no section 'nope'"):
        run_report(make_problem(), Options(only=("nope",)))
