r"""How far one can go in a straight line: the radii of a star domain, many rays at a time.

.. math:: R(d) = \sup \{ r : \mathrm{cost}(\theta^* + s d) \le \varepsilon
    \text{ for all } 0 \le s \le r \}

Outward from the last radius known to be inside, in steps that the cost itself suggests, then
inward by false position on log cost against log radius, which for a quadratic cost is a straight
line; every fourth step is a bisection. Then the whole segment is looked at on a grid: where the
cost exceeds the threshold earlier, the first crossing on the grid is what counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError
from curvops.volume.cost import Cost

BEYOND = (1.25, 1.5, 1.75, 2.0)
"""Where, in units of the radius, a ray is looked at for coming back."""

_MAX_STEPS = 200
_FAR = 1e12
"""A ray that is inside at so many times the first guess is taken to have no end."""


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class Radii:
    """Radii of ``K`` rays.

    Attributes:
        radius: The largest ``r`` whose whole segment is inside on the grid, float64 ``[K]``.
        open: Whether the ray ends where the measure does, not where the cost exceeds the
            threshold, ``[K]``.
        reentered: Whether the ray, looked at on the grid up to twice the radius, leaves the basin
            and comes back, ``[K]``.
    """

    radius: Tensor
    open: Tensor
    reentered: Tensor


class Rays:
    """Straight lines from θ*, and the cost along them.

    Args:
        cost: The cost.
        D: Directions as columns, ``[P, K]``, of any length.
        reach: Radii beyond which nothing is looked for, ``[K]``; may be infinite.
    """

    def __init__(self, cost: Cost, D: Tensor, reach: Tensor) -> None:
        self._cost = cost
        self._theta = cost.theta.unsqueeze(1)
        self.D = D
        self.reach = reach

    def __len__(self) -> int:
        """Return the number of rays."""
        return self.D.shape[1]

    def points(self, rays: Tensor, r: Tensor) -> Tensor:
        """Return θ* + r d, ``[P, k]``, on the rays of the given indices."""
        return self._theta + self.D[:, rays] * r.to(self.D)

    def cost(self, rays: Tensor, r: Tensor) -> Tensor:
        """Return the cost at radii ``r`` ``[k]`` of the rays of the given indices.

        Raises:
            NonFiniteError: If it is NaN.
        """
        if not len(rays):
            return r.new_zeros(0)
        values = self._cost(self.points(rays, r))
        bad = values.isnan()
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise NonFiniteError(
                f"the cost is NaN at radius {float(r[first]):.4g} of direction "
                f"{int(rays[first])}, {int(bad.sum())} of {len(r)} points in all: the model or "
                "the loss has no value there. Look at risk.losses() at such a point; float64 or a "
                "guarded logarithm usually helps."
            )
        return values

    def log_slope(self, rays: Tensor, r: Tensor) -> Tensor:
        """Return the derivative of the cost by log r, ``[k]``."""
        _, gradients = self._cost.with_gradient(self.points(rays, r))
        return (gradients * self.D[:, rays]).sum(0).to(torch.float64) * r


def find_radii(
    rays: Rays, threshold: float, guess: Tensor, inside: Tensor, *, rtol: float, grid: int
) -> Radii:
    """Return how far the cost stays below a threshold along rays.

    Args:
        rays: The rays.
        threshold: ``ε > 0``, in units of the cost.
        guess: Where to look first, ``[K]``.
        inside: Radii up to which the rays are known to be inside, ``[K]``; zeros if none is.
        rtol: Relative accuracy of a radius.
        grid: In how many parts a segment is looked at.

    Raises:
        NonFiniteError: If the cost is NaN somewhere on the way.
        InputError: If a ray has no end, or leaves the basin at once.
    """
    everyone = torch.arange(len(rays), device=guess.device)
    search = _Search(rays, threshold, rtol)
    radius, is_open = search.run(
        everyone, inside.clone(), torch.full_like(guess, math.inf), torch.maximum(guess, inside)
    )
    # All rays at a fraction of their radius, then at the next one.
    first_bad = torch.full_like(everyone, grid)
    for part in range(1, grid):
        rows = everyone[first_bad == grid]
        outside = rays.cost(rows, radius[rows] * part / grid) > threshold
        first_bad[rows[outside]] = part
    left = first_bad < grid
    reentered = left.clone()
    if bool(left.any()):
        rows, parts = everyone[left], first_bad[left]
        low, high = radius[rows] * (parts - 1) / grid, radius[rows] * parts / grid
        low = torch.where(inside[rows] < high, torch.maximum(low, inside[rows]), low)
        radius[rows], is_open[rows] = search.run(rows, low, high, (low + high) / 2)
    for factor in BEYOND:
        rows = everyone[~is_open & ~reentered]
        r = radius[rows] * factor
        within = r < rays.reach[rows]
        rows, r = rows[within], r[within]
        reentered[rows[rays.cost(rows, r) <= threshold]] = True
    return Radii(radius, is_open, reentered)


class _Search:
    """Brackets crossings, and closes the brackets."""

    def __init__(self, rays: Rays, threshold: float, rtol: float) -> None:
        self._rays = rays
        self._threshold = threshold
        self._rtol = rtol

    def run(self, rows: Tensor, low: Tensor, high: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
        """Return the crossings of rays, and whether there is none before their end.

        Args:
            rows: Indices of the rays.
            low: Radii known to be inside, 0 if none is.
            high: Radii known to be outside, infinite if none is.
            guess: Where to look first, between the two.
        """
        reach = self._rays.reach[rows]
        y_low, y_high = torch.full_like(low, -math.inf), torch.full_like(low, math.inf)
        is_open = torch.zeros_like(low, dtype=torch.bool)
        r = torch.minimum(guess, reach)
        first = guess.clone()
        for _ in range(_MAX_STEPS):
            todo = (~is_open & ((low == 0) | high.isinf())).nonzero()[:, 0]
            if not len(todo):
                break
            y = self._excess(rows[todo], r[todo])
            out = y > 0
            gone, here = todo[out], todo[~out]
            high[gone], y_high[gone] = r[gone], y[out]
            low[here], y_low[here] = r[here], y[~out]
            is_open[here[r[here] >= reach[here]]] = True
            # The cost is about quadratic; a little further than that suggests closes the bracket.
            outward = (1.05 * (-y[~out] / 2).exp()).clamp(1.05, 4.0)
            r[here] = torch.minimum(low[here] * outward, reach[here])
            inward = (0.95 * (-y[out] / 2).exp()).clamp(0.05, 0.95)
            r[gone] = high[gone] * inward
            self._refuse_endless(rows, low, high, first)
        self._close(rows, low, high, y_low, y_high, ~is_open)
        return low, is_open

    def _close(
        self,
        rows: Tensor,
        low: Tensor,
        high: Tensor,
        y_low: Tensor,
        y_high: Tensor,
        todo: Tensor,
    ) -> None:
        """Move ``low`` to within the tolerance of the crossing, in place."""
        # y is about 2 log(r / R), so that it says how far low is from the crossing itself.
        near = y_low > -self._rtol
        for step in range(_MAX_STEPS):
            far = todo & ~near & (high.log() - low.log() > self._rtol)
            index = far.nonzero()[:, 0]
            if not len(index):
                return
            a, b, y_a, y_b = low[index].log(), high[index].log(), y_low[index], y_high[index]
            share = y_a / (y_a - y_b)
            share = torch.where(share.isfinite(), share, 0.5).clamp(0.0, 1.0)
            if step % 4 == 3:
                share = torch.full_like(share, 0.5)
            # Never closer to an end than the tolerance, so that the bracket does shrink.
            margin = (0.5 * self._rtol / (b - a)).clamp(max=0.5)
            r = (a + (b - a) * torch.minimum(torch.maximum(share, margin), 1 - margin)).exp()
            y = self._excess(rows[index], r)
            out = y > 0
            gone, here = index[out], index[~out]
            high[gone], y_high[gone] = r[out], y[out]
            low[here], y_low[here] = r[~out], y[~out]
            near[here] = y[~out] > -self._rtol
            # Illinois: an end that stays is believed only half, so that the other one moves.
            y_low[gone] = y_low[gone] / 2
            y_high[here] = y_high[here] / 2

    def _excess(self, rows: Tensor, r: Tensor) -> Tensor:
        """Return log(cost / ε); minus infinity where there is no cost."""
        cost = self._rays.cost(rows, r)
        return (cost.clamp(min=0.0) / self._threshold).log()

    def _refuse_endless(self, rows: Tensor, low: Tensor, high: Tensor, first: Tensor) -> None:
        far = high.isinf() & (low > _FAR * first)
        if bool(far.any()):
            index = int(far.nonzero()[0])
            raise InputError(
                f"the cost stays below {self._threshold:g} along direction {int(rows[index])} "
                f"up to a radius of {float(low[index]):.2g}: the basin has no end there, and no "
                'volume. Use measure="gaussian", or leave out with scope= the parameters that '
                "nothing depends on."
            )
        near = (low == 0) & (high < first / _FAR)
        if bool(near.any()):
            index = int(near.nonzero()[0])
            raise InputError(
                f"the cost exceeds {self._threshold:g} along direction {int(rows[index])} already "
                f"at a radius of {float(high[index]):.2g}: the threshold is below the rounding of "
                "the loss. Raise threshold=, or use float64."
            )
