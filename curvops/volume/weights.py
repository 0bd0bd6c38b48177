r"""The mean of numbers that are known by their logarithms, and whether it can be trusted.

.. math::
    \log \frac1N \sum_i e^{\ell_i}, \qquad
    \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}, \qquad w_i = e^{\ell_i}

Where the logarithms spread by many nats, the largest number is all of the mean: the effective
sample size is near one, and the estimate a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ENOUGH = 10.0
"""Below this effective sample size an estimate is only a lower bound."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class LogMean:
    """The logarithm of a mean of positive numbers.

    Attributes:
        value: In nats.
        stderr: Of the value, to first order; where the effective sample size is small it is too
            small.
        ess: The effective sample size.
        largest_weight: The share of the largest number in the sum.
        num_samples: How many there are.
        sampled: Whether chance had a part in it.
    """

    value: float
    stderr: float
    ess: float
    largest_weight: float
    num_samples: int
    sampled: bool = True

    @property
    def converged(self) -> bool:
        """Whether the effective sample size is enough to believe the error."""
        return not self.sampled or self.ess >= ENOUGH

    @property
    def lower(self) -> float:
        """A bound that the truth exceeds with 95 % confidence.

        By Markov's inequality the mean of any N positive numbers exceeds 20 times its expectation
        at most once in 20 times: this holds however heavy the tail is.
        """
        surely = self.value + math.log1p(-CONFIDENCE)
        if not self.converged:
            return surely
        return max(surely, self.value - 1.96 * self.stderr)

    @property
    def upper(self) -> float:
        """The upper end of the 95 % interval; infinite where the error cannot be believed."""
        return self.value + 1.96 * self.stderr if self.converged else math.inf


def log_mean_exp(log_values: Tensor) -> LogMean:
    """Return the logarithm of the mean of ``exp(log_values)``, with its error.

    Args:
        log_values: ``[N]``, float64; minus infinity stands for zero.

    Example:
        >>> import torch
        >>> mean = log_mean_exp(torch.tensor([-900.0, -900.0, -1300.0], dtype=torch.float64))
        >>> round(mean.value, 4), round(mean.ess, 4)  # log(2/3) - 900
        (-900.4055, 2.0)
    """
    count = len(log_values)
    total = float(log_values.logsumexp(0))
    if math.isinf(total):
        return LogMean(total, 0.0, 0.0, 0.0, count)
    shares = normalized(log_values)
    squares = float(shares.square().sum())
    spread = max(squares - 1 / count, 0.0) * count / max(count - 1, 1)
    return LogMean(
        value=total - math.log(count),
        stderr=math.sqrt(spread),
        ess=1 / squares,
        largest_weight=float(shares.max()),
        num_samples=count,
    )


def normalized(log_values: Tensor) -> Tensor:
    """Return ``exp(log_values)`` over their sum, ``[N]``."""
    return torch.softmax(log_values, 0)
