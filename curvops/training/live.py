"""The latest values, in a table in the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from curvops.errors import MissingDependencyError
from curvops.training.run import STEP, Record

_SHOWN: dict[str, tuple[str, ...]] = {
    STEP: ("loss", "learning_rate"),
    "alpha": ("alpha", "stderr", "status"),
    "exact_alpha": ("alpha", "status"),
    "gradient_noise": ("trace", "noise_scale", "norm_test", "signal_to_noise"),
    "sharpness": ("sharpness", "threshold", "ratio"),
    "hessian_trace": ("total", "total_stderr"),
    "tic": ("diagonal", "ratio_of_traces"),
    "subspace_overlap": ("overlap", "gradient_fraction"),
    "early_stopping": ("evidence", "stop"),
}
_PER_SECOND = 4.0


class LiveTable:
    """A table of the latest value of every quantity, redrawn a few times a second.

    Args:
        console: Where to draw; rich's own by default.

    Raises:
        MissingDependencyError: If rich is not installed.
    """

    def __init__(self, console: Any = None) -> None:
        try:
            from rich.live import Live
        except ImportError as error:
            raise MissingDependencyError(
                "live=True needs rich, which is not installed. "
                'Install the extra "cli": pip install "curvops[cli]".'
            ) from error
        self._latest: dict[str, Record] = {}
        self._title = ""
        self._notes: tuple[str, ...] = ()
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(
        self, records: Sequence[Record], header: Mapping[str, Any], notes: tuple[str, ...]
    ) -> None:
        """Take records in, and redraw if the last time is long enough ago."""
        for record in records:
            self._latest[record.quantity] = record
        self._title = f"{header.get('model', '')}, {header.get('optimizer', '')}"
        self._notes = notes
        now = time.monotonic()
        if now - self._drawn >= 1.0 / _PER_SECOND:
            self._drawn = now
            self._live.update(self.table(), refresh=True)

    def table(self) -> Any:
        """Return the table as a rich renderable."""
        from rich.table import Table
        from rich.text import Text

        caption = "; ".join(self._notes)
        table = Table(title=Text(self._title), caption=Text(caption) if caption else None)
        for name in ("quantity", "step", "values"):
            table.add_column(name, justify="right" if name == "step" else "left")
        for name, record in self._latest.items():
            chosen = _SHOWN.get(name, tuple(record.values)[:4])
            cells = [
                f"{key} {_told(record.values[key])}"
                for key in chosen
                if record.values.get(key) is not None
            ] or [str(record.values.get("status", ""))]
            table.add_row(Text(name), str(record.step), Text("  ".join(cells)))
        return table

    def close(self) -> None:
        """Draw a last time, and leave the table where it is."""
        self._live.update(self.table(), refresh=True)
        self._live.stop()


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
