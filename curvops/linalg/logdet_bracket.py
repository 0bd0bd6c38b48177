"""From spectral measures to one number with a bracket that holds the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from curvops.linalg.logdet_dense import Spectrum
from curvops.linalg.logdet_function import OnNegative, indefinite, sensitivity, shifted_log
from curvops.linalg.spectral_measures import Measures, integrate

_THREE_SIGMA = 0.9986501019683699
"""The normal distribution's mass below three standard deviations."""


@dataclass(frozen=True)
class Answer:
    """A log-determinant, and what its bracket is made of.

    Attributes:
        value: The middle of the two means.
        stderr: The standard error of it over the probes.
        lower: Lower end of the bracket.
        upper: Upper end.
        samples: What each probe says ``[N]``; empty where nothing was sampled.
        sampling: Half the width that comes from the probes.
        quadrature: Half the width that comes from too few steps; infinite without a floor.
    """

    value: float
    stderr: float
    lower: float
    upper: float
    samples: Tensor
    sampling: float = 0.0
    quadrature: float = 0.0

    @property
    def half_width(self) -> float:
        """The larger distance of an end of the bracket from the value."""
        return max(self.upper - self.value, self.value - self.lower)


def from_spectrum(spectrum: Spectrum, shift: float, on_negative: OnNegative) -> Answer:
    """Return the answer from all eigenvalues; the bracket is rounding."""
    value, error = spectrum.logdet(shift, on_negative)
    return Answer(value, 0.0, value - error, value + error, torch.empty(0, dtype=torch.float64))


def from_measures(measures: Measures, shift: float, on_negative: OnNegative, eps: float) -> Answer:
    """Return the answer from samples of the spectrum.

    Args:
        measures: The samples.
        shift: δ.
        on_negative: What to make of a negative spectrum.
        eps: Relative rounding of the products.

    Raises:
        IndefiniteError: If a Ritz value shows that there is no answer.
    """
    noise = eps * measures.largest
    if on_negative == "raise" and measures.smallest + shift <= noise:
        below = measures.floor if math.isfinite(measures.floor) else measures.smallest
        bad = int((measures.over[0].nodes[0] + shift <= noise).sum())
        raise indefinite(measures.smallest, shift, noise, 2.0 * noise - below, max(bad, 1))
    f = shifted_log(shift, on_negative)
    over = integrate(measures.over, f)
    squared = integrate(measures.over, sensitivity(shift, on_negative)).mean()
    # Rounding perturbs eigenvalues independently of one another and of their size.
    rounding = 2.0 * noise * float(squared.clamp(min=0.0).sqrt())
    rounding += torch.finfo(torch.float64).eps * float(over.abs().mean())
    if measures.is_exact:
        value = float(over.mean())
        return Answer(value, 0.0, value - rounding, value + rounding, over[:0])
    tau = three_sigma(len(over))
    if on_negative != "raise" and measures.floor < 0:
        assert measures.coarse is not None
        change = float((over.mean() - integrate(measures.coarse, f).mean()).abs())
        value, stderr = float(over.mean()), _stderr(over)
        width = tau * stderr + change + rounding
        return Answer(value, stderr, value - width, value + width, over, tau * stderr, change)
    upper = float(over.mean()) + tau * _stderr(over) + rounding
    if measures.under is None or measures.floor + shift <= 0:
        stderr = _stderr(over)
        return Answer(float(over.mean()), stderr, -math.inf, upper, over, tau * stderr, math.inf)
    under = integrate(measures.under, f)
    middle = 0.5 * (over + under)
    return Answer(
        value=float(middle.mean()),
        stderr=_stderr(middle),
        lower=float(under.mean()) - tau * _stderr(under) - rounding,
        upper=upper,
        samples=middle,
        sampling=tau * _stderr(middle),
        quadrature=0.5 * float(over.mean() - under.mean()),
    )


def three_sigma(count: int) -> float:
    """Return how many standard errors of a mean of ``count`` samples leave 0.27 % outside.

    Three for many samples, more for few (Student's distribution).
    """
    return float(stdtrit(count - 1, _THREE_SIGMA)) if count > 1 else math.inf


def _stderr(samples: Tensor) -> float:
    """Return the standard error of the mean; infinite for a single sample."""
    if len(samples) < 2:
        return math.inf
    return float(samples.std()) / math.sqrt(len(samples))
