r"""Random samples of tr f(A) for every f at once: discrete measures on the spectrum.

Each sample is a set of nodes and weights, of total mass P, whose expectation is the spectral
measure: :math:`E \sum_k w_k f(x_k) \approx \sum_i f(\lambda_i)`. Those from Gauss rules
over-estimate log, those from Gauss–Radau rules under-estimate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvops.errors import InputError

Function = Callable[[Tensor], Tensor]
"""A function of the eigenvalues, elementwise."""


@dataclass(frozen=True)
class Samples:
    """Discrete measures, one a sample.

    Attributes:
        nodes: ``[N, m]``, or ``[1, m]`` where all share them.
        weights: ``[N, m]``.
        crossed: Weights ``[2 h, m]`` on the same nodes, for probes that were used to find what
            the others see: rows 2k and 2k + 1 are samples 2k and 2k + 1 as they would be
            without each other. ``None`` for independent samples.
    """

    nodes: Tensor
    weights: Tensor
    crossed: Tensor | None = None

    def integrate(self, f: Function) -> Tensor:
        """Return what each sample says of tr f(A), ``[N]``; weightless nodes count nothing."""
        return _sum(self.weights, f(self.nodes))

    def variance(self, f: Function) -> float:
        r"""Return the variance of the mean of the samples; infinite for one.

        .. math:: \operatorname{Var} \bar t = \frac{s^2}{N} + \operatorname{Cov}(t_i, t_j), \qquad
            \operatorname{Cov}(t_i, t_j) = \mathbb{E}\, (t_i - t_i^{(j)}) (t_j - t_j^{(i)})

        with :math:`t_i^{(j)}` sample i without the help of probe j. Both differences, and both
        samples, have expectation zero given all other probes; the other three products of
        :math:`t_i = t_i^{(j)} + (t_i - t_i^{(j)})` and its like vanish in expectation.
        """
        t = self.integrate(f)
        if len(t) < 2:
            return math.inf
        variance = float(t.var()) / len(t)
        if self.crossed is not None and len(self.crossed):
            change = t[: len(self.crossed)] - _sum(self.crossed, f(self.nodes))
            variance += max(float((change[0::2] * change[1::2]).mean()), 0.0)
        return variance


@dataclass(frozen=True)
class Measures:
    """What one run of Lanczos knows about the spectrum.

    Attributes:
        over: Samples that over-estimate log, for matrices that are positive definite.
        under: Samples that under-estimate it; they have a node at ``floor``. ``None`` where
            there is no floor.
        coarse: The over-estimates from half as many steps, where they were asked for.
        smallest: The smallest Ritz value.
        largest: The largest Ritz value in magnitude.
        floor: The number below the spectrum that ``under`` was made with.
        is_exact: Whether this is the spectral measure itself.
        traces: Independent samples of tr A, each from one product.
    """

    over: list[Samples]
    under: list[Samples] | None
    coarse: list[Samples] | None
    smallest: float
    largest: float
    floor: float
    is_exact: bool = False
    traces: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))


def integrate(samples: list[Samples], f: Function) -> Tensor:
    """Return what all samples say of tr f(A), ``[N]``."""
    return torch.cat([part.integrate(f) for part in samples])


def standard_error(samples: list[Samples], f: Function) -> float:
    """Return the standard error of the mean of all samples, of runs of equal size."""
    return math.sqrt(sum(part.variance(f) for part in samples)) / len(samples)


def node_below(floor: float, smallest: float, rounding: float) -> float:
    """Return a node for Gauss–Radau rules from a lower bound of the spectrum.

    Args:
        floor: The bound.
        smallest: The smallest Ritz value, which shows if the bound is none.
        rounding: What products make up.

    Raises:
        InputError: If the bound is above a Ritz value.
    """
    if floor > smallest + max(10.0 * rounding, 1e-9 * abs(floor)):
        raise InputError(
            f"lower_bound={floor:g} is above the smallest Ritz value {smallest:g} (0 is the bound "
            "of what calls itself positive semidefinite). Pass a number below the spectrum of A."
        )
    return min(floor, smallest) - rounding


def not_symmetric(asymmetry: float, size: float) -> InputError:
    """Return the error of a matrix whose products show that it is not symmetric."""
    return InputError(
        f"A is not symmetric: entries of A - Aᵀ are as large as {asymmetry:.3g}, where A is of "
        f"size {size:.3g}. Only a symmetric matrix has a real spectrum to sum over."
    )


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    return torch.where(weights != 0, weights * values, 0.0).sum(1)
