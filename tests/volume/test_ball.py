"""The ball and the threshold against closed forms."""

from __future__ import annotations

import math

import pytest

from curvops.errors import InputError
from curvops.volume import log_threshold, log_unit_ball


@pytest.mark.parametrize(
    ("dim", "volume"),
    [(0, 1.0), (1, 2.0), (2, math.pi), (3, 4 / 3 * math.pi), (4, math.pi**2 / 2)],
)
def test_small_balls(dim: int, volume: float) -> None:
    assert math.exp(log_unit_ball(dim)) == pytest.approx(volume, rel=1e-14)


def test_recursion_holds_in_high_dimension() -> None:
    # V_{P+2} = V_P 2 pi / (P + 2)
    for dim in (10, 1711, 10**6):
        step = log_unit_ball(dim + 2) - log_unit_ball(dim)
        assert step == pytest.approx(math.log(2 * math.pi / (dim + 2)), abs=1e-8)


def test_stirling_is_off_by_a_sixth_of_the_inverse_dimension() -> None:
    dim = 1710
    stirling = -math.log(dim * math.pi) / 2 + dim / 2 * math.log(2 * math.pi * math.e / dim)
    assert stirling == pytest.approx(-3942.7422, abs=1e-4)
    assert stirling - log_unit_ball(dim) == pytest.approx(1 / (6 * dim), rel=1e-3)


def test_threshold_of_the_published_check() -> None:
    assert log_threshold(1710, 2.0) == 1185.2816787575064


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_bad_threshold(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        log_threshold(3, threshold)


def test_negative_dimension() -> None:
    with pytest.raises(InputError, match="dim is -1"):
        log_unit_ball(-1)
    with pytest.raises(InputError, match="dim is -1"):
        log_threshold(-1, 1.0)
