"""The radial integral against high-precision quadrature."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from curvops.volume.radial import log_shell, peak, shell_end

CASES = [
    # dim, b, c
    (1, 0.0, 1.0),
    (1, 30.0, 0.1),
    (1, -4.0, 2.0),
    (2, 0.3, 0.5),
    (3, -20.0, 1e-4),
    (10, 5.0, 2.0),
    (1710, -3.0, 4.0),
    (1710, 200.0, 0.01),
    (4810, 12.0, 0.512),
    (100_000, -1e3, 7.0),
]


def truth(dim: int, b: float, c: float, radius: float) -> float:
    mpmath.mp.dps = 30
    top = float(peak(dim, torch.tensor([b]).double(), torch.tensor([c]).double()))
    top = min(top, radius)

    def height(r: mpmath.mpf) -> mpmath.mpf:
        power = (dim - 1) * mpmath.log(r) if dim > 1 else mpmath.mpf(0)
        return power - b * r - c * r * r / 2

    ceiling = height(mpmath.mpf(top)) if top > 0 else mpmath.mpf(0)
    width = 1 / math.sqrt(c + ((dim - 1) / top**2 if top else b * b))
    ends = sorted({max(0.0, top + k * width) for k in (-60, -24, -12, -6, -3, -1, 0, 1, 3, 6, 12)})
    ends = [e for e in ends if e < radius] + [min(radius, top + 40 * width)]
    lower = 0.0 if ends[0] > 0 and dim < 20 else ends[0]
    points = sorted({lower, *ends})
    integral = mpmath.quad(lambda r: mpmath.exp(height(r) - ceiling) if r else 0, points)
    return float(mpmath.log(integral) + ceiling)


@pytest.mark.parametrize(("dim", "b", "c"), CASES)
@pytest.mark.parametrize("share", [0.01, 0.7, 0.999, 1.0, 1.02, math.inf])
def test_against_mpmath(dim: int, b: float, c: float, share: float) -> None:
    tensors = torch.tensor([b], dtype=torch.float64), torch.tensor([c], dtype=torch.float64)
    top = float(peak(dim, *tensors)) or 1.0
    radius = share * top
    value = float(log_shell(dim, *tensors, torch.tensor([radius], dtype=torch.float64)))
    expected = truth(dim, b, c, min(radius, float(shell_end(dim, *tensors))))
    assert value == pytest.approx(expected, abs=1e-7)


def test_many_rays_at_once_and_none_at_all() -> None:
    one = torch.ones(3, dtype=torch.float64)
    radius = torch.tensor([0.0, 1.0, math.inf], dtype=torch.float64)
    values = log_shell(5, 0 * one, one, radius)
    assert values[0] == -math.inf
    # The chi distribution with 5 degrees of freedom.
    assert float(values[2]) == pytest.approx(1.5 * math.log(2) + math.lgamma(2.5), abs=1e-12)
    assert values[1] < values[2]


def test_a_cut_far_outside_changes_nothing() -> None:
    b, c = torch.tensor([2.0]).double(), torch.tensor([0.5]).double()
    end = shell_end(300, b, c)
    assert float(log_shell(300, b, c, end)) == pytest.approx(
        float(log_shell(300, b, c, 10 * end)), abs=1e-12
    )
