r"""tr A as a control variate of tr f(A): both scatter together, and tr A is known better.

.. math:: \operatorname{tr} f(A) = \operatorname{tr} (f(A) - \kappa A) + \kappa \operatorname{tr} A

The first part is sampled and scatters less. The second comes from fresh probes, which take one
product each where a sample of f takes many. Quadrature of either kind is exact for A itself, so
that bounds on the samples remain bounds.
"""

from __future__ import annotations

import math

from torch import Tensor

from curvops.linalg.spectral_measures import (
    Function,
    Measures,
    Samples,
    integrate,
    standard_error,
)

_LEAST = 4
"""Samples that κ is fitted to, at least."""


class Controlled:
    r"""Samples of tr f(A), with tr A as a control variate where it pays.

    .. math:: \kappa = \frac{\operatorname{Cov}(\bar f, \bar x)}
        {\operatorname{Var} \bar x + \operatorname{Var} \bar y}

    leaves the smallest variance, with f̄ the mean of the samples, x̄ what the same samples say of
    tr A, and ȳ what the fresh probes do.

    Args:
        measures: The samples, and what fresh probes say of tr A.
        f: A function of the eigenvalues.

    Attributes:
        fitted: Numbers fitted to the samples: 1 for κ, 0 if there is none.
    """

    def __init__(self, measures: Measures, f: Function) -> None:
        self._f, self._slope, self._known, self._error = f, 0.0, 0.0, 0.0
        self.fitted = 0
        samples, fresh = integrate(measures.over, f), measures.traces
        count = len(samples)
        if count < _LEAST or len(fresh) < 2:
            return
        traces = integrate(measures.over, _identity)
        traces, samples = traces - traces.mean(), samples - samples.mean()
        noise = float(fresh.var()) / len(fresh)
        pairs = (count - 1) * count  # from sums of squares to variances of means
        total = float(traces @ traces) / pairs + noise
        if not total > 0.0:
            return
        self._slope = float(traces @ samples) / pairs / total
        self._known = self._slope * float(fresh.mean())
        self._error = abs(self._slope) * math.sqrt(noise)
        self.fitted = 1

    def samples(self, part: list[Samples]) -> Tensor:
        """Return what each sample says of tr f(A)."""
        return integrate(part, self._rest) + self._known

    def stderr(self, part: list[Samples]) -> float:
        """Return the standard error of their mean."""
        rest = standard_error(part, self._rest)
        if self.fitted:
            count = sum(len(samples.weights) for samples in part)
            rest *= math.sqrt((count - 1) / (count - 2))  # κ was fitted to the same samples
        return math.hypot(rest, self._error)

    def _rest(self, x: Tensor) -> Tensor:
        return self._f(x) - self._slope * x if self.fitted else self._f(x)


def _identity(x: Tensor) -> Tensor:
    return x
