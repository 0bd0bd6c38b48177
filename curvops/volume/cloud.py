r"""Points of a ladder in coordinates of a Gaussian, with all that its rungs need to know of them.

.. math::
    \theta = m + S z, \qquad
    \log \pi = (1 - t) \log \varphi(z)
        + t \, \bigl[ \log \mu(\theta) + \log |\det S| \bigr]
        + \log f(\mathrm{cost}(\theta))

:math:`\varphi` is the standard normal density, so at t = 0 and f = 1 the integral over z is one;
at t = 1 it is that of the measure :math:`\mu` times f over θ. Going from one rung to another
evaluates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from curvops.volume.prior import Measure
from curvops.volume.spectral_form import Root
from curvops.volume.tilt import Tilt


class SmoothCost(Protocol):
    """What a ladder needs of a cost; :class:`~curvops.volume.cost.Cost` has it."""

    @property
    def theta(self) -> Tensor:
        """θ*, ``[P]``."""

    @property
    def with_gradient(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Points ``[P, K]`` to costs ``[K]`` and gradients ``[P, K]``."""


@dataclass(frozen=True)
class Rung:
    """One density of a ladder.

    Attributes:
        mix: ``t``, how much of the Gaussian has been replaced by the measure.
        tilt: How the cost enters.
    """

    mix: float
    tilt: Tilt


@dataclass(frozen=True)
class Cloud:
    """Points and what is known of them.

    Attributes:
        z: One point a row, ``[N, P]``.
        log_reference: ``log φ(z)``, float64 ``[N]``.
        log_measure: ``log μ(θ) + log |det S|``, float64 ``[N]``.
        measure_gradient: Its gradient by z, ``[N, P]``.
        cost: Float64 ``[N]``; infinite where it is not a number.
        cost_gradient: Its gradient by z, ``[N, P]``.
    """

    z: Tensor
    log_reference: Tensor
    log_measure: Tensor
    measure_gradient: Tensor
    cost: Tensor
    cost_gradient: Tensor

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.z)

    def log_density(self, rung: Rung) -> Tensor:
        """Return ``log π`` of a rung, float64 ``[N]``."""
        value = rung.tilt.log(self.cost)
        # A factor of zero takes a term out, also one that is infinite.
        if rung.mix < 1.0:
            value = value + (1.0 - rung.mix) * self.log_reference
        if rung.mix > 0.0:
            value = value + rung.mix * self.log_measure
        return value

    def gradient(self, rung: Rung) -> Tensor:
        """Return its gradient by z, ``[N, P]``."""
        slope = rung.tilt.slope(self.cost).to(self.z).unsqueeze(1)
        quadratic = rung.mix * self.measure_gradient - (1.0 - rung.mix) * self.z
        return quadratic + slope * self.cost_gradient

    def take(self, index: Tensor) -> Cloud:
        """Return some of the points, by number."""
        return Cloud(*(getattr(self, f.name)[index] for f in fields(self)))

    def where(self, chosen: Tensor, other: Cloud) -> Cloud:
        """Return these points where ``chosen`` ``[N]``, else those of another cloud."""

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(chosen.unsqueeze(1) if a.ndim == 2 else chosen, a, b)

        names = [f.name for f in fields(self)]
        return Cloud(*(pick(getattr(self, name), getattr(other, name)) for name in names))

    @staticmethod
    def join(clouds: Sequence[Cloud]) -> Cloud:
        """Return all points of several clouds."""
        names = [f.name for f in fields(Cloud)]
        return Cloud(*(torch.cat([getattr(c, name) for c in clouds]) for name in names))


@dataclass(frozen=True)
class Chart:
    """Coordinates z of parameter space, ``θ = m + S z``.

    Attributes:
        cost: The cost.
        measure: The measure ``μ``.
        center: ``m`` ``[P]``.
        root: ``S``.
        shapes: The shapes of the parameters where z has a coordinate for each of them, so that
            their rows and columns mean something; else None.
    """

    cost: SmoothCost
    measure: Measure
    center: Tensor
    root: Root
    shapes: tuple[torch.Size, ...] | None = None

    @property
    def dim(self) -> int:
        """The number of parameters ``P``."""
        return self.center.numel()

    def draw(self, number: int, generator: torch.Generator) -> Tensor:
        """Return draws of the Gaussian as rows, ``[N, P]``."""
        z = torch.randn(number, self.dim, generator=generator, dtype=self.center.dtype)
        return z.to(self.center.device)

    def theta(self, z: Tensor) -> Tensor:
        """Return points of parameter space as columns, ``[P, N]``."""
        return self.center.unsqueeze(1) + self.root.forward(z.T)

    def evaluate(self, z: Tensor) -> Cloud:
        """Return points with everything that rungs need, at one evaluation of each."""
        theta = self.theta(z)
        cost, gradient = self.cost.with_gradient(theta)
        cost = cost.to(torch.float64)
        finite = cost.isfinite() & gradient.isfinite().all(0)
        cost = torch.where(finite, cost, math.inf)
        gradient = torch.where(finite, gradient, 0.0)
        columns = torch.cat([self.measure.gradient(theta), gradient], dim=1)
        pulled = self.root.adjoint(columns).T
        squares = z.to(torch.float64).square().sum(1)
        return Cloud(
            z=z,
            log_reference=-0.5 * (squares + self.dim * math.log(2 * math.pi)),
            log_measure=self.measure.log_density(theta) + self.root.logabsdet(),
            measure_gradient=pulled[: len(z)],
            cost=cost,
            cost_gradient=pulled[len(z) :],
        )
