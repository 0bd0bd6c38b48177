"""Estimators whose probes see only what a sketch of the matrix has left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from curvops.linalg.sampling import Moments
from curvops.linalg.sketch import Sketch

ROUNDINGS = 8.0
"""Roundings of a sum of magnitudes that brackets allow for."""

# Of how many products the sketch gets one column. A column costs two: one to find the basis,
# one with the basis itself.
_SHARE = {"hutch++": 3, "xtrace": 2, "xdiag": 2}
_LEAVES_OUT = ("xtrace", "xdiag")


class Deflated(ABC):
    """Samples of a quantity that is known on the basis of a sketch, and sampled outside.

    A subclass states the part on the basis (:meth:`_base`), the sample of a fresh probe,
    orthogonal to it unless asked for whole (:meth:`_rest`), and both together for the sketch's
    own probes, each from the basis without it (:meth:`_left_out`).

    Args:
        method: ``"hutchinson"`` (no sketch), ``"hutch++"`` (a sketch whose own probes say
            nothing more), ``"xtrace"`` or ``"xdiag"`` (they do).
        sketch: The sketch, still empty.
    """

    takes_whole_probes = False
    """Whether :meth:`_rest` is given probes with their part inside the basis."""

    def __init__(self, method: str, sketch: Sketch) -> None:
        self.method, self.sketch = method, sketch
        self._known: Tensor | None = None

    def columns(self, limit: int) -> int:
        """Return how many columns the sketch gets out of ``limit`` products."""
        return limit // _SHARE[self.method] if self.method in _SHARE else 0

    def grow(self, columns: int) -> None:
        """Enlarge the sketch to that many columns."""
        self.sketch.grow(columns)
        self._known = None

    def left_out(self) -> Moments:
        """Return the samples of the sketch's own probes, each from the basis without it."""
        if self.method in _LEAVES_OUT and self.sketch.omega.shape[1]:
            return self._left_out()
        return Moments()

    def sample(self, count: int) -> Iterator[Tensor]:
        """Yield samples of fresh probes, in blocks ``[n, M]``."""
        if count <= 0:
            return
        if self._known is None:
            self._known = self._base()
        for X in self.sketch.fresh(count, whole=self.takes_whole_probes):
            yield self._known + self._rest(X)

    @abstractmethod
    def _base(self) -> Tensor:
        """Return the part on the basis, ``[M]`` or a scalar."""

    @abstractmethod
    def _left_out(self) -> Moments:
        """Return the samples of the sketch's own probes."""

    @abstractmethod
    def _rest(self, X: Tensor) -> Tensor:
        """Return what the basis leaves, ``[n, M]``, as seen by fresh probes ``[P, n]``."""
