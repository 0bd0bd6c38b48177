"""How many columns go through a batch at a time: measured on the work itself."""

from __future__ import annotations

from curvops.autodiff.keeping import Columns

BLOCK = 8
"""Columns that go through vmap together: enough to fill matrix units, flat in memory."""


class Widths:
    """Chooses between a block of columns and one column at a time.

    Args:
        columns: The user's choice.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._seconds: dict[int, float] = {}
        self.widest = BLOCK
        """Columns that memory allows together."""

    def choose(self, num_columns: int) -> int:
        """Return the width for the columns that are left."""
        if self._columns == "loop" or num_columns == 1:
            return 1
        if self._columns == "auto":
            for width in (self.widest, 1):
                if width not in self._seconds:
                    return width
            return min((self.widest, 1), key=self._seconds.__getitem__)
        width = self.widest if self._columns == "vmap" else self._columns
        return 1 if self._seconds.get(width) == float("inf") else width

    def took(self, width: int, seconds: float) -> None:
        """Note what a column of a datum took at a width."""
        self._seconds[width] = min(seconds, self._seconds.get(width, float("inf")))

    def failed(self, width: int) -> None:
        """Note that some kernel cannot be vectorised at a width."""
        self._seconds[width] = float("inf")

    def forget(self) -> None:
        """Forget what was measured: the form has changed."""
        self._seconds.clear()
