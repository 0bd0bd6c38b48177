"""From spectral measures to one number with a bracket that holds the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

from curvops.linalg.logdet_control import Controlled
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
        stderr: The standard error over the probes, the larger of the two means'.
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

    def plus(self, known: float) -> Answer:
        """Return the answer with a known number added."""
        return replace(
            self,
            value=self.value + known,
            lower=self.lower + known,
            upper=self.upper + known,
            samples=self.samples + known,
        )


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
    controlled = Controlled(measures, f)
    over, stderr = controlled.samples(measures.over), controlled.stderr(measures.over)
    tau = three_sigma(len(over) - controlled.fitted)
    value, upper = float(over.mean()), float(over.mean()) + tau * stderr + rounding
    if on_negative != "raise" and measures.floor < 0:
        assert measures.coarse is not None
        change = abs(value - float(controlled.samples(measures.coarse).mean()))
        width = tau * stderr + change + rounding
        return Answer(value, stderr, value - width, value + width, over, tau * stderr, change)
    if measures.under is None or measures.floor + shift <= 0:
        return Answer(value, stderr, -math.inf, upper, over, tau * stderr, math.inf)
    under, stderr_under = controlled.samples(measures.under), controlled.stderr(measures.under)
    return Answer(
        value=0.5 * (value + float(under.mean())),
        stderr=max(stderr, stderr_under),
        lower=float(under.mean()) - tau * stderr_under - rounding,
        upper=upper,
        samples=0.5 * (over + under),
        sampling=tau * max(stderr, stderr_under),
        quadrature=0.5 * (value - float(under.mean())),
    )


def three_sigma(count: int) -> float:
    """Return how many standard errors of a mean of ``count`` samples leave 0.27 % outside.

    Three for many samples, more for few (Student's distribution).
    """
    return float(stdtrit(count - 1, _THREE_SIGMA)) if count > 1 else math.inf
