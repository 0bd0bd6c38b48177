r"""What a volume is measured with: Lebesgue's measure, a Gaussian prior, or a box.

Along a ray :math:`\theta^* + r d` the share of a direction is a radial integral, which in high
dimensions sits in a thin shell; all of it is in logs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.volume.ball import log_unit_ball
from curvops.volume.radial import log_shell, shell_end


class Measure(ABC):
    """A measure on parameter space.

    Attributes:
        name: What it is called.
        symbol: What a log-volume under it is called: ``"log V"`` or ``"log p"``.
    """

    name: str
    symbol: str = "log V"

    @abstractmethod
    def log_density(self, X: Tensor) -> Tensor:
        """Return the log-density at the columns of ``X``, float64 ``[K]``."""

    @abstractmethod
    def gradient(self, X: Tensor) -> Tensor:
        """Return the gradient of the log-density, ``[P, K]``."""

    @abstractmethod
    def reach(self, theta: Tensor, D: Tensor) -> Tensor:
        """Return the radius beyond which a ray adds nothing, float64 ``[K]``."""

    @abstractmethod
    def log_mass(self, theta: Tensor, D: Tensor, radius: Tensor) -> Tensor:
        r"""Return the volume that a ray speaks for, in logs.

        .. math:: \log\Bigl[ P \, V_P \int_0^R r^{P-1} \mu(\theta + r d)\, dr \Bigr]

        Its mean (not in logs) over directions ``d = M u``, ``u`` uniform on the sphere and
        ``det M = 1``, is the measure of the star domain.

        Args:
            theta: Where the rays begin, ``[P]``.
            D: Their directions as columns, ``[P, K]``; of any length.
            radius: ``R``, in units of the directions' lengths, ``[K]``.

        Returns:
            Nats, float64 ``[K]``.
        """

    @abstractmethod
    def log_slope(self, theta: Tensor, D: Tensor, radius: Tensor) -> Tensor:
        r"""Return the logarithm of the derivative of :meth:`log_mass`, not in logs, by log R.

        .. math:: \log\bigl[ P \, V_P \, R^P \mu(\theta + R d) \bigr]
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the measure as plain Python."""
        return {"name": self.name}


@dataclass(frozen=True)
class Lebesgue(Measure):
    """Lebesgue's measure: plain volume.

    Example:
        >>> import torch
        >>> theta, D = torch.zeros(3), torch.eye(3)[:, :1]
        >>> mass = Lebesgue().log_mass(theta, D, torch.tensor([1.0]))
        >>> round(float(mass.exp() / torch.pi), 6)  # the unit ball, 4/3 pi
        1.333333
    """

    name = "lebesgue"

    def log_density(self, X: Tensor) -> Tensor:
        """Return the log-density at the columns of ``X``, float64 ``[K]``."""
        return X.new_zeros(X.shape[1], dtype=torch.float64)

    def gradient(self, X: Tensor) -> Tensor:
        """Return the gradient of the log-density, ``[P, K]``."""
        return torch.zeros_like(X)

    def reach(self, theta: Tensor, D: Tensor) -> Tensor:
        """Return the radius beyond which a ray adds nothing, float64 ``[K]``."""
        return torch.full((D.shape[1],), math.inf, dtype=torch.float64, device=D.device)

    def log_mass(self, theta: Tensor, D: Tensor, radius: Tensor) -> Tensor:
        """Return the volume that a ray speaks for, in logs, float64 ``[K]``."""
        return log_unit_ball(len(D)) + len(D) * radius.to(torch.float64).log()

    def log_slope(self, theta: Tensor, D: Tensor, radius: Tensor) -> Tensor:
        """Return its derivative by log R, in logs, float64 ``[K]``."""
        return self.log_mass(theta, D, radius) + math.log(len(D))


@dataclass(frozen=True)
class Box(Lebesgue):
    """Lebesgue's measure within ``[low, high]`` for every parameter, and nothing outside.

    Attributes:
        low: The lower bound.
        high: The upper bound.
    """

    low: float = -1.0
    high: float = 1.0
    name = "box"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"a box needs low < high, got [{self.low}, {self.high}].")

    def log_density(self, X: Tensor) -> Tensor:
        """Return the log-density at the columns of ``X``, float64 ``[K]``."""
        inside = (X.ge(self.low) & X.le(self.high)).all(0)
        zero = X.new_zeros(X.shape[1], dtype=torch.float64)
        return zero.masked_fill(~inside, -math.inf)

    def reach(self, theta: Tensor, D: Tensor) -> Tensor:
        """Return the radius beyond which a ray adds nothing, float64 ``[K]``."""
        start, steps = theta.to(torch.float64).unsqueeze(1), D.to(torch.float64)
        bound = torch.where(steps > 0, self.high - start, self.low - start)
        exits = torch.where(steps == 0, math.inf, bound / steps)
        return exits.amin(0)

    def check(self, theta: Tensor) -> None:
        """Raise an error unless the point lies within the box."""
        if not bool((theta.ge(self.low) & theta.le(self.high)).all()):
            raise InputError(
                f"θ* does not lie within the box [{self.low}, {self.high}] "
                f"(its values go from {float(theta.min()):g} to {float(theta.max()):g})."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the measure as plain Python."""
        return {"name": self.name, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Gaussian(Measure):
    r"""The prior :math:`\mathcal{N}(0, \sigma^2 I)`: how likely the prior is to fall into a basin.

    Attributes:
        std: ``σ``, in units of the parameters.

    Example:
        All of parameter space has the probability one.

        >>> import torch
        >>> theta, D = torch.zeros(1000), torch.eye(1000)[:, :1]
        >>> far = torch.tensor([1e3], dtype=torch.float64)
        >>> bool(Gaussian(0.5).log_mass(theta, D, far).abs() < 1e-9)
        True
    """

    std: float
    name = "gaussian"
    symbol = "log p"

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise InputError(f"prior_std is {self.std}; it must be positive and finite.")

    def log_density(self, X: Tensor) -> Tensor:
        """Return the log-density at the columns of ``X``, float64 ``[K]``."""
        squares = X.to(torch.float64).square().sum(0) / self.std**2
        return -squares / 2 - len(X) * (math.log(self.std) + math.log(2 * math.pi) / 2)

    def gradient(self, X: Tensor) -> Tensor:
        """Return the gradient of the log-density, ``[P, K]``."""
        return -X / self.std**2

    def reach(self, theta: Tensor, D: Tensor) -> Tensor:
        """Return the radius beyond which a ray adds nothing, float64 ``[K]``."""
        return shell_end(len(D), *self._moments(theta, D))

    def log_mass(self, theta: Tensor, D: Tensor, radius: Tensor) -> Tensor:
        """Return the volume that a ray speaks for, in logs, float64 ``[K]``."""
        shell = log_shell(len(D), *self._moments(theta, D), radius.to(torch.float64))
        return shell + self._constant(theta) + log_unit_ball(len(D)) + math.log(len(D))

    def log_slope(self, theta: Tensor, D: Tensor, radius: Tensor) -> Tensor:
        """Return its derivative by log R, in logs, float64 ``[K]``."""
        b, c = self._moments(theta, D)
        r = radius.to(torch.float64)
        density = self._constant(theta) - b * r - c * r**2 / 2
        return log_unit_ball(len(D)) + math.log(len(D)) + len(D) * r.log() + density

    def _moments(self, theta: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
        """Return b and c of log φ(θ + r d) = log φ(θ) − b r − c r²/2."""
        steps = D.to(torch.float64)
        b = theta.to(torch.float64) @ steps / self.std**2
        return b, steps.square().sum(0) / self.std**2

    def _constant(self, theta: Tensor) -> float:
        return float(self.log_density(theta.unsqueeze(1)))

    def to_dict(self) -> dict[str, Any]:
        """Return the measure as plain Python."""
        return {"name": self.name, "std": self.std}


def as_measure(measure: str | Measure, theta: Tensor, prior_std: float | None = None) -> Measure:
    """Return the measure that a name stands for.

    Args:
        measure: ``"lebesgue"``, ``"gaussian"``, or a measure itself.
        theta: θ*, ``[P]``.
        prior_std: ``σ`` of the Gaussian, by default the root mean square of θ*.

    Raises:
        InputError: If there is no such measure, σ is not positive, or θ* is outside of a box.
    """
    if isinstance(measure, Measure):
        if isinstance(measure, Box):
            measure.check(theta)
        return measure
    if measure == "lebesgue":
        return Lebesgue()
    if measure != "gaussian":
        raise InputError(
            'measure must be "lebesgue", "gaussian", or one of curvops.volume.prior such as '
            f"Box(-1, 1), got {measure!r}."
        )
    return Gaussian(default_std(theta) if prior_std is None else float(prior_std))


def default_std(theta: Tensor) -> float:
    """Return the root mean square of θ*, the scale that a prior has by default.

    Raises:
        InputError: If θ* is zero, and so has none.
    """
    std = float(theta.to(torch.float64).square().mean().sqrt())
    if std == 0.0:
        raise InputError("θ* is zero and does not say how wide the prior is. Pass prior_std=.")
    return std
