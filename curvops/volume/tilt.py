r"""How a density is tilted by the cost: softly, softly inside and steeply outside, or cut off.

.. math:: \pi(\theta) \propto \mu(\theta) \, f(\mathrm{cost}(\theta))

A tilt gives :math:`\log f` and its slope; ladders lead from one to the next.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

_STEEPNESS = 4.0
"""A wall's force over the outward pull of the volume. Were they alike, trajectories would wander
outside for ever; at four times as much a quarter of their time is spent there."""


class Tilt(ABC):
    """A factor of a density that depends on the cost alone."""

    @abstractmethod
    def log(self, cost: Tensor) -> Tensor:
        """Return ``log f``, float64 ``[N]``; minus infinity where the cost is infinite."""

    @abstractmethod
    def slope(self, cost: Tensor) -> Tensor:
        """Return the force ``d log f / d cost`` that moves follow, ``[N]``."""

    @property
    @abstractmethod
    def softened(self) -> Tempered:
        """A soft basin that is about as wide: what is flat inside has no curvature to learn."""


@dataclass(frozen=True)
class Tempered(Tilt):
    r"""The soft basin, :math:`f = e^{-\beta \, \mathrm{cost}}`.

    Attributes:
        beta: The inverse temperature ``β``, in nats per unit of the cost.

    Example:
        >>> import torch
        >>> Tempered(2.0).log(torch.tensor([0.0, 1.0, torch.inf])).tolist()
        [-0.0, -2.0, -inf]
    """

    beta: float

    def log(self, cost: Tensor) -> Tensor:
        """Return ``log f``, float64 ``[N]``."""
        # At β = 0 too what has no finite cost is outside, so that the ladder is continuous.
        return torch.where(cost.isfinite(), -self.beta * cost, -math.inf)

    def slope(self, cost: Tensor) -> Tensor:
        """Return the force ``d log f / d cost``, ``[N]``."""
        return torch.full_like(cost, -self.beta)

    @property
    def softened(self) -> Tempered:
        """The soft basin that is about as wide."""
        return self


@dataclass(frozen=True)
class Hardened(Tilt):
    r"""Between the soft basin and the level set, by hardness ``h`` from 0 to 1.

    .. math::
        \log f = -(1 - h) \beta \varepsilon - \begin{cases}
            (1 - h) \, u & u \le 0 \\ u / (1 - h) & u > 0
        \end{cases}, \qquad u = \beta (\mathrm{cost} - \varepsilon)

    At h = 0 it is :math:`e^{-\beta \, \mathrm{cost}}`, at h = 1 the indicator of
    :math:`\mathrm{cost} \le \varepsilon`. In between it draws points to the level set's shell,
    in which nearly all of its volume lies, from both sides.

    Attributes:
        beta: ``β``.
        threshold: ``ε``, in units of the cost.
        hardness: ``h``.

    Example:
        >>> import torch
        >>> cost = torch.tensor([0.0, 1.0, 3.0])
        >>> Hardened(2.0, threshold=1.0, hardness=0.0).log(cost).tolist()
        [0.0, -2.0, -6.0]
        >>> Hardened(2.0, threshold=1.0, hardness=1.0).log(cost).tolist()
        [0.0, 0.0, -inf]
    """

    beta: float
    threshold: float
    hardness: float

    def log(self, cost: Tensor) -> Tensor:
        """Return ``log f``, float64 ``[N]``."""
        if self.hardness >= 1.0:
            return _indicator(cost, self.threshold)
        soft = 1.0 - self.hardness
        u = self.beta * (cost - self.threshold)
        value = -soft * self.beta * self.threshold - torch.where(u > 0, u / soft, soft * u)
        return torch.where(cost.isfinite(), value, -math.inf)

    def slope(self, cost: Tensor) -> Tensor:
        """Return the force ``d log f / d cost``, ``[N]``."""
        if self.hardness >= 1.0:
            return _wall(cost, self.threshold, self.beta)
        soft = 1.0 - self.hardness
        inside = torch.full_like(cost, -soft * self.beta)
        return torch.where(cost > self.threshold, -self.beta / soft, inside)

    @property
    def softened(self) -> Tempered:
        """The soft basin that is about as wide."""
        return Tempered(self.beta)


@dataclass(frozen=True)
class Level(Tilt):
    r"""The level set, :math:`f = 1` where :math:`\mathrm{cost} \le \varepsilon`, else 0.

    Attributes:
        threshold: ``ε``, in units of the cost.
        beta: How fast the volume grows with the level there, d log μ / dε, roughly: it makes the
            wall that turns trajectories back, which changes what is proposed, not what is accepted.

    Example:
        >>> import torch
        >>> Level(1.0, beta=2.0).log(torch.tensor([0.5, 1.5])).exp().tolist()
        [1.0, 0.0]
    """

    threshold: float
    beta: float

    def log(self, cost: Tensor) -> Tensor:
        """Return ``log f``, float64 ``[N]``."""
        return _indicator(cost, self.threshold)

    def slope(self, cost: Tensor) -> Tensor:
        """Return the force ``d log f / d cost``, ``[N]``."""
        return _wall(cost, self.threshold, self.beta)

    @property
    def softened(self) -> Tempered:
        """The soft basin that is about as wide."""
        return Tempered(self.beta)


def _indicator(cost: Tensor, threshold: float) -> Tensor:
    return torch.where(cost <= threshold, 0.0, -math.inf).to(torch.float64)


def _wall(cost: Tensor, threshold: float, beta: float) -> Tensor:
    return torch.where(cost > threshold, -_STEEPNESS * beta, 0.0).to(cost.dtype)
