"""What a monitored run has measured: one record for each quantity at each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from curvops.errors import InputError
from curvops.table import data_frame

STEP = "step"
"""The quantity that every step has: loss, step size, batch size."""


@dataclass(frozen=True)
class Record:
    """One quantity at one step.

    Attributes:
        step: The step, counted in updates of the optimizer from 0.
        quantity: Its name.
        values: Numbers, strings and lists of them, by name; what is not finite is ``None``.
        seconds: How long measuring took.
    """

    step: int
    quantity: str
    values: Mapping[str, Any]
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain Python."""
        return {
            "step": self.step,
            "quantity": self.quantity,
            "values": dict(self.values),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Run:
    """The records of a run, from a monitor or from its journal.

    Attributes:
        header: Model, optimizer, quantities, versions.
        records: In the order in which they were measured.

    Example:
        >>> run = Run({}, (Record(0, "alpha", {"alpha": 0.5, "status": "ok"}),))
        >>> run.series("alpha", "alpha")
        ([0], [0.5])
    """

    header: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Record, ...] = ()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def __str__(self) -> str:
        """Return what was measured how often, and for how long."""
        counts: dict[str, int] = {}
        for record in self.records:
            counts[record.quantity] = counts.get(record.quantity, 0) + 1
        last = max((r.step for r in self.records), default=-1)
        told = ", ".join(f"{name} × {count}" for name, count in counts.items()) or "nothing"
        return f"Run: {last + 1} steps; {told}; {sum(r.seconds for r in self.records):.3g} s"

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of what was measured, in order of appearance."""
        return tuple(dict.fromkeys(r.quantity for r in self.records))

    def series(self, quantity: str, name: str) -> tuple[list[int], list[Any]]:
        """Return the steps and the values of one number of a quantity, where it has one.

        Args:
            quantity: Such as ``"alpha"``.
            name: Such as ``"stderr"``.

        Raises:
            InputError: If the quantity was measured, but has no such number.
        """
        mine = [r for r in self.records if r.quantity == quantity]
        if mine and not any(name in r.values for r in mine):
            known = ", ".join(dict.fromkeys(k for r in mine for k in r.values))
            raise InputError(f"{quantity} has no {name!r}; it has {known}.")
        kept = sorted(
            ((r.step, r.values[name]) for r in mine if r.values.get(name) is not None),
            key=lambda pair: pair[0],
        )
        return [step for step, _ in kept], [value for _, value in kept]

    def to_dict(self) -> dict[str, Any]:
        """Return header and records as plain Python."""
        return {"header": dict(self.header), "records": [r.to_dict() for r in self.records]}

    def table(self) -> dict[str, list[Any]]:
        """Return columns, one row a step: ``step``, ``loss``, ``alpha``, ``alpha.status``, ..."""
        rows: dict[int, dict[str, Any]] = {}
        for record in self.records:
            row = rows.setdefault(record.step, {})
            for name, value in record.values.items():
                row[column(record.quantity, name)] = value
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        steps = sorted(rows)
        return {"step": steps} | {name: [rows[s].get(name) for s in steps] for name in names}

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each step (see :meth:`table`).

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        return data_frame(self.table()).set_index("step")


def plain_fields(result: Any) -> dict[str, Any]:
    """Return the fields of a dataclass of numbers, strings and tuples of them as plain Python."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(result).items()}


def column(quantity: str, name: str) -> str:
    """Return the name of a column.

    Example:
        >>> column("alpha", "alpha"), column("alpha", "stderr"), column("step", "loss")
        ('alpha', 'alpha.stderr', 'loss')
    """
    return name if quantity in (STEP, name) else f"{quantity}.{name}"


def plain(value: Any) -> Any:
    """Return numbers, strings and lists as JSON has them: what is not finite is ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # tensors and arrays, of no dimension too
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(v) for v in value]
    number = float(value)
    return number if math.isfinite(number) else None
