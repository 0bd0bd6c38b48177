"""Weighted sums of squares against chi-square distributions and high-precision integrals."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from scipy import stats

from curvops.errors import InputError
from curvops.volume.gaussian_ellipsoid import log_gaussian_ellipsoid


def value(lam: list[float], offsets: list[float], std: float, threshold: float) -> float:
    lams, offset = (torch.tensor(x, dtype=torch.float64) for x in (lam, offsets))
    return log_gaussian_ellipsoid(lams, offset, std, threshold)


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 300])
@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("threshold", [1e-5, 0.1, 3.0, 400.0])
def test_equal_eigenvalues_are_chi_square(dim: int, offset: float, threshold: float) -> None:
    # ½ 2 |x|² <= T.
    std = 0.7
    law = stats.ncx2(dim, dim * offset**2 / std**2) if offset else stats.chi2(dim)
    truth = float(law.logcdf(threshold / std**2))
    if not math.isfinite(truth) or truth < -600:  # where SciPy gives up
        return
    found = value([2.0] * dim, [offset] * dim, std, threshold)
    assert found == pytest.approx(truth, abs=1e-8, rel=1e-9)


def test_where_scipy_gives_up_it_is_still_an_incomplete_gamma_function() -> None:
    dim, threshold = 4810, 0.5
    mpmath.mp.dps = 40
    truth = mpmath.log(mpmath.gammainc(dim / 2, 0, threshold / 2, regularized=True))
    found = value([2.0] * dim, [0.0] * dim, 1.0, threshold)
    assert found == pytest.approx(float(truth), abs=1e-7)


@pytest.mark.parametrize(
    ("lam", "offsets", "std", "threshold"),
    [
        ((100.0, 0.01), (0.3, -0.5), 1.0, 0.05),
        ((1e4, 1e-6), (0.0, 0.2), 0.5, 1e-3),
        ((3.0, 2.0), (1.0, 1.0), 0.2, 0.1),
        ((1.0, 0.5), (0.1, -0.1), 0.3, 5.0),
    ],
)
def test_two_eigenvalues_against_a_double_integral(
    lam: tuple[float, float], offsets: tuple[float, float], std: float, threshold: float
) -> None:
    mpmath.mp.dps = 30
    edge = mpmath.sqrt(2 * threshold / lam[0])

    def strip(x: mpmath.mpf) -> mpmath.mpf:
        left = max(2 * threshold - lam[0] * x * x, 0)
        half, mean = mpmath.sqrt(left / lam[1]), offsets[1]
        chance = mpmath.ncdf((half + mean) / std) - mpmath.ncdf((mean - half) / std)
        return mpmath.npdf(x, -offsets[0], std) * chance

    truth = mpmath.log(mpmath.quad(strip, mpmath.linspace(-edge, edge, 41)))
    found = value(list(lam), list(offsets), std, threshold)
    assert found == pytest.approx(float(truth), abs=1e-8)


def test_flat_directions_do_not_count() -> None:
    some = value([3.0, 1.0], [0.1, 0.2], 0.5, 0.2)
    assert value([3.0, 0.0, 1.0, 0.0], [0.1, 9.0, 0.2, -9.0], 0.5, 0.2) == pytest.approx(some)


def test_errors() -> None:
    for lam in ([1.0, -1e-9], [0.0, 0.0]):
        with pytest.raises(InputError, match="eigenvalues"):
            value(lam, [0.0, 0.0], 1.0, 1.0)
