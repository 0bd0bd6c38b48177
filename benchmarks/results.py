"""What a run leaves behind: rows of numbers, and the machine and versions they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.timing import Summary

FOLDER = Path(__file__).parent / "results"
"""Where the committed results are."""

MEASURED = "measured"


@dataclass(frozen=True)
class Row:
    """One cell of a table.

    Attributes:
        problem: The problem's short name.
        quantity: ``"Hessian"``, ``"GGN"``, ``"EF"``, ``"gradient"`` or ``"eigenpairs"``.
        library: ``"curvops"``, ``"torch"`` for the plain gradient, or a peer.
        variant: Which of the library's ways.
        columns: K, the number of vectors multiplied at once.
        axis: What a scaling line runs over: ``"N"``, ``"P"`` or ``"K"``.
        size: The position on that axis.
        value: The number, in the benchmark's unit; per vector for products.
        low: Lower quartile.
        high: Upper quartile.
        rounds: How many measurements the median is of.
        status: ``"measured"``, or why there is no number.
        note: A remark for the reader.
        extra: Further numbers by name.
    """

    problem: str
    quantity: str
    library: str
    variant: str = ""
    columns: int = 1
    axis: str = ""
    size: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    status: str = MEASURED
    note: str = ""
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str, int, str, int]:
        """What identifies the row within its benchmark."""
        return (
            self.problem,
            self.quantity,
            self.library,
            self.variant,
            self.columns,
            self.axis,
            self.size,
        )

    def timed(self, summary: Summary) -> Row:
        """Return the row with a measurement."""
        return replace(
            self,
            value=_rounded(summary.median),
            low=_rounded(summary.low),
            high=_rounded(summary.high),
            rounds=summary.rounds,
            status=MEASURED,
            extra={**self.extra, "seconds": _rounded(summary.seconds)},
        )


@dataclass(frozen=True)
class Result:
    """A run of one benchmark.

    Attributes:
        benchmark: Its name.
        environment: Machine and versions.
        options: What it was asked.
        rows: What it found.
    """

    benchmark: str
    environment: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row]

    def save(self, path: Path) -> None:
        """Write it as JSON, one row a line, so that a change is easy to read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {key: value for key, value in asdict(self).items() if key != "rows"}
        lines = [json.dumps(_without_defaults(row), ensure_ascii=False) for row in self.rows]
        text = json.dumps(head, indent=2, ensure_ascii=False)[:-2] + ',\n  "rows": [\n    '
        path.write_text(text + ",\n    ".join(lines) + "\n  ]\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what :meth:`save` wrote."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in raw.pop("rows")]
        return cls(**raw, rows=rows)

    def replaced_by(self, newer: Result) -> Result:
        """Return the newer run, with this one's rows of problems that were not run again.

        Raises:
            ValueError: If the two come from different machines, versions or options.
        """
        for part in ("cpu", "threads", "versions", "device"):
            if self.environment.get(part) != newer.environment.get(part):
                raise ValueError(f"the runs differ in {part}; measure all problems again.")
        if self.options.get("quick") != newer.options.get("quick"):
            raise ValueError("one of the runs is quick and the other is not.")
        again = {row.problem for row in newer.rows}
        kept = [row for row in self.rows if row.problem not in again]
        return replace(newer, rows=kept + newer.rows)


def committed(benchmark: str, folder: Path = FOLDER) -> Result | None:
    """Return the committed run of a benchmark, if there is one."""
    path = folder / f"{benchmark}.json"
    return Result.load(path) if path.exists() else None


def select(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """Return the rows whose fields have these values."""
    return [row for row in rows if all(getattr(row, k) == v for k, v in fields.items())]


def find(rows: Iterable[Row], **fields: Any) -> Row | None:
    """Return the first row whose fields have these values."""
    return next(iter(select(rows, **fields)), None)


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def _without_defaults(row: Row) -> dict[str, Any]:
    default = Row("", "", "")
    return {k: v for k, v in asdict(row).items() if v != getattr(default, k)}
