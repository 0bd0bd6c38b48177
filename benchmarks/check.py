"""Has anything become dearer? A run beside the committed one."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import MEASURED, Result, Row
from benchmarks.tables import Table, number

TOLERANCE = 0.25
"""Relative growth that counts as noise: twice what medians scatter on two shared cores."""

SLACK = {
    "products": 0.1,
    "eigs": 10.0,
    "logdet": 1.0,
    "volume": 10.0,
    "landscape": 0.1,
    "memory": 20.0,
    "training": 0.2,
    "scaling": 0.1,
}
"""Growth in the benchmark's own unit that never counts, for numbers near zero."""


@dataclass(frozen=True)
class Comparison:
    """What a check found.

    Attributes:
        regressions: Rows that are dearer, or no longer measured: the committed and the new one.
        compared: How many rows both runs have.
        missing: How many of ours only the committed run has.
    """

    regressions: list[tuple[Row, Row]]
    compared: int
    missing: int


def compare(baseline: Result, fresh: Result, tolerance: float = TOLERANCE) -> Comparison:
    """Compare our rows of two runs of one benchmark; peers are theirs to watch.

    Args:
        baseline: The committed run.
        fresh: The run to judge.
        tolerance: Relative growth to accept.

    Raises:
        ValueError: If the runs cannot be compared.
    """
    if baseline.benchmark != fresh.benchmark:
        raise ValueError(f"a run of {fresh.benchmark} beside one of {baseline.benchmark}.")
    if baseline.options.get("quick") != fresh.options.get("quick"):
        raise ValueError("one run is quick and the other is not: their problems differ in size.")
    slack = SLACK[fresh.benchmark]
    new = {row.key: row for row in fresh.rows}
    regressions, compared, missing = [], 0, 0
    for old in baseline.rows:
        if old.library != "curvops" or old.value is None:
            continue
        row = new.get(old.key)
        if row is None:
            missing += 1
            continue
        compared += 1
        limit = old.value * (1 + tolerance) + slack
        if row.status != MEASURED or row.value is None or row.value > limit:
            regressions.append((old, row))
    return Comparison(regressions, compared, missing)


def table(comparison: Comparison) -> Table:
    """Return the regressions as a table."""
    rows = [
        [
            " · ".join(str(part) for part in old.key if part not in ("", 0)),
            number(old.value),
            number(new.value) if new.status == MEASURED else new.status,
            f"{new.value / old.value:.2f} ×" if new.value and old.value else "",
        ]
        for old, new in comparison.regressions
    ]
    return Table(["what", "committed", "now", "factor"], rows)
