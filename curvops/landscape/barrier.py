r"""The barrier on a path: how high its loss rises above the line between its ends.

.. math:: B = \max_{t \in [0, 1]} L(w(t)) - \bigl[(1 - t) \, L(w(0)) + t \, L(w(1))\bigr]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from curvops.errors import InputError
from curvops.landscape.path import Path
from curvops.landscape.path_scan import PathScan, path_times, scan_at
from curvops.landscape.storage import Stored

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class Barrier(Stored):
    """How high the highest point of a path is above the line between its ends.

    Attributes:
        height: The largest excess found.
        time: The t of it.
        spacing: The largest distance in t to the next points that were evaluated.
        scan: All points.
        num_losses: How many losses were evaluated.
        seconds: How long it took.
    """

    height: float
    time: float
    spacing: float
    scan: PathScan
    num_losses: int
    seconds: float

    def __float__(self) -> float:
        """Return the height."""
        return self.height

    def __str__(self) -> str:
        """Return the height and where it is."""
        return (
            f"barrier {self.height:.4g} at t = {self.time:.4g} ± {self.spacing:.1g} of a "
            f"{self.scan.name} ({self.num_losses} losses)"
        )


def barrier(
    risk: EmpiricalRisk,
    path: Path,
    num: int = 25,
    *,
    refinements: int = 2,
    dtype: torch.dtype | None = None,
    batch_norm: bool = True,
    progress: bool = False,
) -> Barrier:
    r"""Return the height of the barrier on a path.

    .. math:: \max_{t \in [0, 1]} L(w(t)) - [(1 - t) \, L(w(0)) + t \, L(w(1))]

    A grid of t comes first, together with every bend; then finer grids around the highest point.

    Args:
        risk: The risk.
        path: The path.
        num: Points of the first grid.
        refinements: How many finer grids; each is four times as fine as the one before.
        dtype: What to evaluate the whole net in.
        batch_norm: See :func:`~curvops.landscape.path_scan.scan_path`.
        progress: Show a bar over the points.

    Returns:
        The barrier, never below 0. NaN if a loss on the way is: then nothing can be said.

    Raises:
        ShapeError: If the path is not in the parameter space of the risk.
        InputError: If ``num`` is below 2 or ``refinements`` below 0.

    Source:
        Frankle et al., Linear mode connectivity and the lottery ticket hypothesis, ICML 2020;
        Draxler et al., Essentially no barriers in neural network energy landscape, ICML 2018.

    Example:
        >>> import torch
        >>> from curvops.landscape.path import Segment
        >>> from curvops.risk import EmpiricalRisk
        >>> params = {"w": torch.tensor([0.0])}
        >>> risk = EmpiricalRisk(
        ...     lambda p, x: x * p["w"] * (1 - p["w"]),
        ...     torch.nn.L1Loss(),
        ...     params,
        ...     [(torch.ones(1), torch.zeros(1))],
        ... )
        >>> print(barrier(risk, Segment(torch.tensor([0.0]), torch.tensor([1.0]))))
        barrier 0.25 at t = 0.5 ± 0.003 of a segment (... losses)
    """
    start = perf_counter()
    if isinstance(refinements, bool) or not isinstance(refinements, int) or refinements < 0:
        raise InputError(f"refinements must be an integer of 0 or more, got {refinements!r}.")
    bends = torch.linspace(0, 1, len(path.control), dtype=torch.float64)
    times = torch.cat([path_times(num), bends]).unique()
    options: dict[str, Any] = {"dtype": dtype, "batch_norm": batch_norm, "progress": progress}
    scan = scan_at(risk, path, times, **options)
    for _ in range(refinements):
        top, left, right = _top(scan)
        if not math.isfinite(float(scan.excess[top])):
            break
        around = scan.times[[left, top, right]]
        steps = torch.arange(1, 4, dtype=torch.float64) / 4
        finer = torch.cat([a + (b - a) * steps for a, b in pairwise(around)])
        scan = _merged(scan, scan_at(risk, path, finer.unique(), **options))
    top, left, right = _top(scan)
    return Barrier(
        height=float(scan.excess[top]),
        time=float(scan.times[top]),
        spacing=float(scan.times[[left, top, right]].diff().max()),
        scan=scan,
        num_losses=scan.num_losses,
        seconds=perf_counter() - start,
    )


def _top(scan: PathScan) -> tuple[int, int, int]:
    """Return where the highest point is, and its neighbours."""
    top = int(scan.excess.argmax())  # NaN counts as the largest
    return top, max(top - 1, 0), min(top + 1, len(scan.times) - 1)


def _merged(one: PathScan, other: PathScan) -> PathScan:
    """Return the points of two scans of a path; those of the first where both have them."""
    times = torch.cat([one.times, other.times])
    _, first = torch.unique(times, return_inverse=True)
    order = torch.full((int(first.max()) + 1,), len(times))
    order.scatter_reduce_(0, first, torch.arange(len(times)), "amin")
    return PathScan(
        name=one.name,
        times=times[order],
        distances=torch.cat([one.distances, other.distances])[order],
        losses=torch.cat([one.losses, other.losses])[order],
        metrics={k: torch.cat([v, other.metrics[k]])[order] for k, v in one.metrics.items()},
        renormalized=one.renormalized,
        dtype=one.dtype,
        num_losses=one.num_losses + other.num_losses,
        seconds=one.seconds + other.seconds,
    )
