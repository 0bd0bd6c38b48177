"""Where values go as they come: memory, journal, table; and what becomes of a failure."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from curvops.errors import CurvopsError
from curvops.training.journal import Journal
from curvops.training.quantity import Measured, Quantity
from curvops.training.run import Record, Run, plain


class MonitorWarning(UserWarning):
    """A quantity could not be measured; training goes on."""


class Recorder:
    """Keeps records, appends them to a journal and shows them.

    Args:
        header: What the run is.
        log: The journal's file, if there is to be one.
        live: Whether to show a table in the terminal.
        keep: How many records to keep in memory; all for ``None``.

    Raises:
        DataError: If the journal cannot be written.
        MissingDependencyError: If ``live`` is asked for and rich is not installed.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        log: str | os.PathLike[str] | None,
        live: bool,
        keep: int | None,
    ) -> None:
        self._header = header
        self._records: deque[Record] = deque(maxlen=keep)
        self._table = None
        if live:
            from curvops.training.live import LiveTable

            self._table = LiveTable()
        self._journal = None if log is None else Journal(log, header)
        self._working: set[str] = set()
        self._failed: set[str] = set()
        self._abandoned = -1
        self.notes: tuple[str, ...] = ()

    @property
    def run(self) -> Run:
        """What was measured so far."""
        return Run(self._header, tuple(self._records))

    def latest(self, quantity: str) -> Record | None:
        """Return the latest record of a quantity, ``None`` if there is none yet."""
        return next((r for r in reversed(self._records) if r.quantity == quantity), None)

    def take(self, step: int, quantity: Quantity, ask: Callable[[], Iterable[Measured]]) -> None:
        """Ask a quantity, and keep what it says.

        What fails at the first time is an error. What fails later, in a run that has diverged, is
        a record and a warning.
        """
        begin = time.perf_counter()
        try:
            found = list(ask())
        except CurvopsError as error:
            if quantity.name not in self._working:
                raise
            self._tell_failure(step, quantity.name, error)
            return
        if not found:
            return
        self._working.add(quantity.name)
        seconds = (time.perf_counter() - begin) / len(found)
        self.keep(
            [Record(m.step, quantity.name, plain(m.result.to_dict()), seconds) for m in found]
        )

    def keep(self, records: Sequence[Record]) -> None:
        """Keep, write and show records."""
        self._records.extend(records)
        if self._journal is not None:
            self._journal.append(records)
        if self._table is not None:
            self._table.show(records, self._header, self.notes)

    def close(self) -> None:
        """Close journal and table."""
        if self._journal is not None:
            self._journal.close()
        if self._table is not None:
            self._table.close()

    def abandon(self, step: int, quantities: Iterable[Quantity], error: Exception) -> None:
        """Record, once a step, that what needs its data one by one has no value."""
        if step == self._abandoned:
            return
        self._abandoned = step
        for quantity in quantities:
            for lost in quantity.abandon(step):
                self._tell_failure(lost, quantity.name, error)

    def _tell_failure(self, step: int, name: str, error: Exception) -> None:
        self.keep([Record(step, name, {"status": "failed", "notes": [str(error)]})])
        if name in self._failed:
            return
        self._failed.add(name)
        warnings.warn(
            f"step {step}: {name} failed: {error} Training goes on; further failures are only "
            "recorded.",
            MonitorWarning,
            stacklevel=2,
        )
