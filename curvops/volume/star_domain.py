r"""What directions say about a star domain: radii, the volume each speaks for, and its growth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.errors import InputError
from curvops.volume.radii import Rays, find_radii
from curvops.volume.sphere import circle, mean_over_circle, random_directions
from curvops.volume.weights import LogMean, log_mean_exp

if TYPE_CHECKING:
    from curvops.volume.cost import Cost
    from curvops.volume.preconditioner import Preconditioner
    from curvops.volume.prior import Measure

_CHUNK_BYTES = 2**28
"""Memory for the directions that are looked along at a time."""

_NATS = 1e-6
"""How precise P log R shall be."""

_CIRCLE_RTOL = 1e-6
_CIRCLE_NODES = 200_000


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class Look:
    """What ``K`` directions see at ``E`` thresholds.

    Attributes:
        log_mass: The volume each speaks for, in logs, ``[E, K]``.
        radius: ``[E, K]``, in units of the directions, float64.
        growth: d log mass / d log ε, ``[E, K]``; zeros where it was not asked for.
        open: Where a ray ends with the measure, ``[E, K]``.
        reentered: Where it leaves and comes back, ``[E, K]``.
        log_weight: The logarithm of each direction's share in the mean, ``[K]``.
        error: The relative error of the mean over directions, where it is not of chance.
        sampled: Whether the directions were left to chance.
    """

    log_mass: Tensor
    radius: Tensor
    growth: Tensor
    open: Tensor
    reentered: Tensor
    log_weight: Tensor
    error: float = 0.0
    sampled: bool = True

    def mean(self, row: int) -> LogMean:
        """Return the mean over directions for one of the thresholds, in logs."""
        if self.sampled:
            return log_mean_exp(self.log_mass[row])
        log_shares = self.log_mass[row] + self.log_weight
        count, largest = len(log_shares), float(log_shares.softmax(0).max())
        value = float(log_shares.logsumexp(0))
        return LogMean(value, self.error, float(count), largest, count, sampled=False)


class StarDomain:
    """The star domain of a cost around θ*, looked at along preconditioned directions.

    Args:
        cost: The cost.
        preconditioner: Maps isotropic directions to those that are looked along.
        measure: What volumes are measured with.
        thresholds: ``ε``, ascending.
        grid: In how many parts a segment is looked at.
        growth: Whether to compute how the volume grows with the threshold.
    """

    def __init__(
        self,
        cost: Cost,
        preconditioner: Preconditioner,
        measure: Measure,
        thresholds: list[float],
        *,
        grid: int = 8,
        growth: bool = False,
    ) -> None:
        self._cost = cost
        self._preconditioner = preconditioner
        self._measure = measure
        self._thresholds = thresholds
        self._grid = grid
        self._with_growth = growth
        eps = torch.finfo(cost.theta.dtype).eps
        self._rtol = max(_NATS / cost.dim, 8 * eps)
        if cost.dim <= 2:
            self._rtol = 8 * eps

    def look_randomly(self, count: int, seed: int | torch.Generator, progress: bool) -> Look:
        """Look along so many random directions."""
        theta = self._cost.theta
        chunk = max(1, min(count, _CHUNK_BYTES // (4 * theta.element_size() * len(theta))))
        looks = []
        with tqdm(total=count, unit="direction", desc="star", disable=not progress) as bar:
            for U in random_directions(theta, count, seed, chunk):
                looks.append(self.look(U))
                bar.update(U.shape[1])
        return _joined(looks, lambda parts: torch.cat(parts, dim=-1), count)

    def look_everywhere(self) -> Look:
        """Look along all directions of a line or a plane.

        Raises:
            InputError: If there are more than two dimensions.
        """
        theta, dim = self._cost.theta, self._cost.dim
        if dim > 2:
            raise InputError(
                f'directions="all" is for one or two parameters, here are {dim}. Use "random".'
            )
        if dim == 1:
            return replace(self.look(torch.tensor([[1.0, -1.0]]).to(theta)), sampled=False)

        def look(angles: Tensor) -> Tensor:
            found = self.look(circle(angles).to(theta))
            growing = found.log_mass + found.growth.log()
            seen = [found.log_mass, growing, found.radius, found.growth]
            flags = [found.open.to(growing), found.reentered.to(growing)]
            return torch.cat([*seen, *flags]).cpu()

        num = len(self._thresholds)
        seen, log_weight, error = mean_over_circle(
            look, 2 * num, rtol=_CIRCLE_RTOL, max_nodes=_CIRCLE_NODES
        )
        log_mass, _, radius, growth, is_open, reentered = seen.to(theta.device).split(num)
        weight = log_weight.to(theta.device)
        return Look(log_mass, radius, growth, is_open > 0.5, reentered > 0.5, weight, error, False)

    def look(self, U: Tensor) -> Look:
        """Look along directions.

        Args:
            U: Unit vectors as columns, ``[P, K]``.
        """
        D = self._preconditioner.directions(U)
        theta = self._cost.theta
        rays = Rays(self._cost, D, self._measure.reach(theta, D))
        count = D.shape[1]
        scale = math.sqrt(self._cost.dim) * math.exp(self._preconditioner.log_scale)
        guess = torch.full((count,), scale, dtype=torch.float64, device=D.device)
        inside = torch.zeros_like(guess)
        looks, weight = [], guess.new_full((count,), -math.log(count))
        for threshold in self._thresholds:
            found = find_radii(rays, threshold, guess, inside, rtol=self._rtol, grid=self._grid)
            log_mass = self._measure.log_mass(theta, D, found.radius)
            growth = torch.zeros_like(log_mass)
            if self._with_growth:
                growth = self._growth(rays, threshold, found.radius, found.open, log_mass)
            looks.append(Look(log_mass, found.radius, growth, found.open, found.reentered, weight))
            inside = found.radius
            guess = 1.1 * found.radius
        return _joined(looks, torch.stack, count)

    def _growth(
        self, rays: Rays, threshold: float, radius: Tensor, is_open: Tensor, log_mass: Tensor
    ) -> Tensor:
        """Return d log mass / d log ε; the boundary moves as the cost's slope there says."""
        theta, growth = self._cost.theta, torch.zeros_like(radius)
        moving = (~is_open).nonzero()[:, 0]
        if len(moving):
            slope = rays.log_slope(moving, radius[moving]).clamp(min=0.0)
            log_slope = self._measure.log_slope(theta, rays.D[:, moving], radius[moving])
            share = (log_slope - log_mass[moving]).exp()
            growth[moving] = share * threshold / slope
        return growth


def _joined(looks: list[Look], join: Callable[[list[Tensor]], Tensor], count: int) -> Look:
    """Return what several looks saw as one, of so many directions alike."""
    names = ("log_mass", "radius", "growth", "open", "reentered")
    log_mass, radius, growth, is_open, reentered = (
        join([getattr(look, name) for look in looks]) for name in names
    )
    weight = log_mass.new_full((count,), -math.log(count))
    return Look(log_mass, radius, growth, is_open, reentered, weight)
