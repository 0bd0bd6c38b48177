r"""Curves between two points: a segment, a chain of segments, a Bézier curve.

.. math:: w(t) = \sum_j c_j(t) \, p_j, \qquad \sum_j c_j(t) = 1, \qquad t \in [0, 1]

Every curve is an affine combination of its control points, the ends and the bends between them,
with coefficients that are exactly 0 and 1 at the ends: w(0) and w(1) are the given points to the
last bit.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.landscape.points import Point, read_points
from curvops.tensors import Format, Space

_FINE = 1024
"""Into how many chords a curve is cut to measure its length."""

P = TypeVar("P", bound="Path")
B = TypeVar("B", bound="BentPath")


class Path(ABC):
    """A curve in parameter space, an affine combination of control points.

    Args:
        points: The control points in order: the start, any bends, the end. Vectors in any
            format, or modules. They are copied.

    Attributes:
        control: The control points as rows ``[n, P]``.
        space: Names and shapes of the blocks.
        format: How the start was written; points on the curve are returned in it.

    Raises:
        InputError: If there are fewer than two points, or one is not a vector.
        ShapeError: If the points do not have the same shapes.
        NonFiniteError: If a point holds NaN or infinity.
    """

    name: ClassVar[str]

    def __init__(self, *points: Point) -> None:
        if len(points) < 2:
            raise InputError(f"a {self.name} joins two points or more, got {len(points)}.")
        names = ["the start", *(f"bend {i}" for i in range(1, len(points) - 1)), "the end"]
        self.control, self.space, self._layout, self.format = read_points(points, names)

    @abstractmethod
    def coefficients(self, t: Tensor) -> Tensor:
        """Return c(t) of every control point, ``[K, n]``, for float64 ``t`` ``[K]``."""

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The start and the end, flat ``[P]``."""
        return self.control[0], self.control[-1]

    @property
    def bends(self) -> Tensor:
        """The control points between the ends, as rows ``[n - 2, P]``."""
        return self.control[1:-1]

    def with_bends(self: P, bends: Tensor) -> P:
        """Return the path with other bends, rows ``[m, P]``, between the same ends."""
        if bends.ndim != 2 or bends.shape[1] != self.space.dim:
            raise ShapeError(
                f"bends have shape {list(bends.shape)}; expected rows [m, {self.space.dim}]."
            )
        other = copy.copy(self)
        middle = bends.detach().to(self.control)
        other.control = torch.cat([self.control[:1], middle, self.control[-1:]])
        return other

    def within(self: P, space: Space, dtype: torch.dtype, device: torch.device) -> P:
        """Return the path with its points as vectors of another space of the same shapes.

        Args:
            space: Where blocks are in another order, they are found by name.
            dtype: What to convert to.
            device: Where the points must live.

        Raises:
            ShapeError: If the shapes are others.
            InputError: If the names are.
        """
        points = self.space.write(self.control.T, Format(self._layout, False))
        other = copy.copy(self)
        other.control = space.read(points, dtype, device, "the path")[0].T
        other.space, other._layout = space, "dict"
        return other

    def points(self, t: float | Sequence[float] | Tensor) -> Tensor:
        """Return the points at ``t`` as columns of a matrix, ``[P, K]``.

        Args:
            t: Where on the path, one number or ``[K]``; outside of [0, 1] it is continued.
        """
        c = self.coefficients(as_times(t)).to(self.control)
        return self.control.T @ c.T

    def __call__(
        self, t: float | Sequence[float] | Tensor
    ) -> Tensor | list[Tensor] | dict[str, Tensor]:
        """Return w(t) in the format of the start; for ``[K]`` numbers, ``K`` columns."""
        is_one = torch.as_tensor(t).ndim == 0
        return self.space.write(self.points(t), Format(self.format.layout, is_one))

    def lengths(self, t: Sequence[float] | Tensor) -> Tensor:
        r"""Return how far along the path ``t`` is from its start, ``[K]``, float64.

        .. math:: \int_0^t \|w'(s)\| \, ds

        measured along at least 1024 chords.
        """
        times = as_times(t)
        fine = torch.linspace(0, 1, _FINE + 1, dtype=torch.float64)
        grid = torch.cat([times, fine]).unique()
        offsets = (self.control - self.control[0]).double()
        gram = (offsets @ offsets.T).cpu()
        steps = self.coefficients(grid).diff(dim=0)
        chords = ((steps @ gram) * steps).sum(1).clamp(min=0).sqrt()
        distance = torch.cat([chords.new_zeros(1), chords.cumsum(0)])
        distance = distance - distance[torch.searchsorted(grid, 0.0)]
        return distance[torch.searchsorted(grid, times)]

    @property
    def length(self) -> float:
        """The length of the whole path, in units of the parameters."""
        return float(self.lengths([1.0])[0])

    def __repr__(self) -> str:
        """Describe the path in one line."""
        return (
            f"{type(self).__name__}(P={self.space.dim}, bends={len(self.bends)}, "
            f"length={self.length:.4g})"
        )


class Segment(Path):
    r"""The straight line from ``a`` to ``b``.

    .. math:: w(t) = (1 - t) \, a + t \, b

    Example:
        >>> path = Segment(torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> path(0.25)
        tensor([0.2500, 0.5000])
    """

    name = "segment"

    def __init__(self, a: Point, b: Point) -> None:
        super().__init__(a, b)

    def coefficients(self, t: Tensor) -> Tensor:
        """Return 1 − t and t, ``[K, 2]``."""
        return torch.stack([1 - t, t], dim=1)


class BentPath(Path):
    """A path with bends, which :func:`curvops.landscape.fit_path` can move."""

    @classmethod
    def between(cls: type[B], a: Point, b: Point, num_bends: int = 1) -> B:
        """Return the path that is straight from ``a`` to ``b``, its bends at equal distances.

        Args:
            a: The start.
            b: The end.
            num_bends: How many bends.

        Raises:
            InputError: If ``num_bends`` is not a positive integer.

        Example:
            >>> PolyChain.between(torch.zeros(2), torch.ones(2), num_bends=3).bends[0]
            tensor([0.2500, 0.2500])
        """
        if isinstance(num_bends, bool) or not isinstance(num_bends, int) or num_bends < 1:
            raise InputError(f"num_bends must be an integer of 1 or more, got {num_bends!r}.")
        straight = cls(a, b)
        t = torch.linspace(0, 1, num_bends + 2, dtype=torch.float64)[1:-1]
        c = torch.stack([1 - t, t], dim=1).to(straight.control)
        return straight.with_bends(c @ straight.control)


class PolyChain(BentPath):
    r"""Straight segments from ``a`` over the bends to ``b``, each in an equal share of time.

    With one bend θ,

    .. math:: w(t) = \begin{cases}
        2 (t\theta + (\tfrac12 - t) a) & t \le \tfrac12 \\
        2 ((t - \tfrac12) b + (1 - t) \theta) & t \ge \tfrac12
        \end{cases}

    Source:
        Garipov et al., Loss surfaces, mode connectivity, and fast ensembling of DNNs, NeurIPS
        2018, Eq. (4).

    Example:
        >>> path = PolyChain(torch.tensor([0.0]), torch.tensor([4.0]), torch.tensor([1.0]))
        >>> path([0.0, 0.25, 0.5, 0.75, 1.0])
        tensor([[0.0000, 2.0000, 4.0000, 2.5000, 1.0000]])
    """

    name = "polychain"

    def coefficients(self, t: Tensor) -> Tensor:
        """Return hat functions, ``[K, n]``."""
        last = len(self.control) - 1
        left = (t * last).floor().clamp(0, last - 1).long()
        right_share = t * last - left
        c = t.new_zeros(len(t), last + 1)
        c.scatter_(1, left[:, None], (1 - right_share)[:, None])
        return c.scatter_(1, left[:, None] + 1, right_share[:, None])


class Bezier(BentPath):
    r"""The Bézier curve of the control points: the ends, and the bends that it is drawn to.

    .. math:: w(t) = \sum_{j=0}^{m} \binom{m}{j} (1 - t)^{m-j} t^j \, p_j

    With one bend θ this is (1 − t)² a + 2t(1 − t) θ + t² b. The curve does not pass through its
    bends.

    Source:
        Garipov et al., Loss surfaces, mode connectivity, and fast ensembling of DNNs, NeurIPS
        2018, Eq. (5).

    Example:
        >>> path = Bezier(torch.tensor([0.0]), torch.tensor([4.0]), torch.tensor([1.0]))
        >>> path([0.0, 0.5, 1.0])
        tensor([[0.0000, 2.2500, 1.0000]])
    """

    name = "bezier"

    def coefficients(self, t: Tensor) -> Tensor:
        """Return Bernstein polynomials, ``[K, n]``."""
        m = len(self.control) - 1
        terms = [math.comb(m, j) * (1 - t) ** (m - j) * t**j for j in range(m + 1)]
        return torch.stack(terms, dim=1)


def as_times(t: float | Sequence[float] | Tensor, name: str = "t") -> Tensor:
    """Return times as a float64 vector ``[K]`` on the CPU.

    Raises:
        ShapeError: If they are more than a list.
        NonFiniteError: If one is NaN or infinite.
    """
    times = torch.as_tensor(t, dtype=torch.float64, device="cpu").detach()
    if times.ndim > 1:
        raise ShapeError(f"{name} has shape {list(times.shape)}; expected one number or [K].")
    if not bool(torch.isfinite(times).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity.")
    return times.reshape(-1)
