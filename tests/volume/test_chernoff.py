"""Chernoff's bound above, and Student's reach around a mean."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from curvops.errors import InputError
from curvops.volume.chernoff import chernoff_bound, student


def test_bound_of_a_gamma_cost() -> None:
    # cost ~ Gamma(k): log Z_β = -k log(1 + β), and the best β is k/ε - 1.
    k, threshold = 7.0, 1.5
    truth = float(stats.gamma.logcdf(threshold, k))
    bounds = [
        chernoff_bound(-k * math.log1p(b), b, threshold)
        for b in (0.0, 1.0, k / threshold - 1, 10.0, 100.0)
    ]
    assert all(bound >= truth for bound in bounds)
    assert min(bounds) == bounds[2]
    assert bounds[0] == 0.0


def test_negative_temperature() -> None:
    with pytest.raises(InputError, match="beta is -1"):
        chernoff_bound(0.0, -1.0, 0.1)


def test_student() -> None:
    assert student(0.95, 2) == pytest.approx(12.706, abs=1e-3)
    assert student(0.95, 10**6) == pytest.approx(1.95996, abs=1e-4)
    assert student(0.95, 1) == math.inf
