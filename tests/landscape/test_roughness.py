"""Roughness and differences against their definitions in mpmath, over all magnitudes."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from curvops.landscape.roughness import roughness, second_difference
from tests.cases import rng

DIGITS = 400
"""Enough to subtract numbers of 1e100 that differ by 1e-100."""


def tensor(*values: float) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def definition(start: float, middle: float, end: float, h: float) -> mpmath.mpf:
    """(AB + BC)/AC - 1, as it is written."""
    with mpmath.workdps(DIGITS):
        l0, l1, l2, x = (mpmath.mpf(v) for v in (start, middle, end, h))
        AB = mpmath.sqrt((l1 - l0) ** 2 + x**2)
        BC = mpmath.sqrt((l2 - l1) ** 2 + x**2)
        AC = mpmath.sqrt((l2 - l0) ** 2 + 4 * x**2)
        return (AB + BC) / AC - 1


def relative(value: float, truth: mpmath.mpf) -> float:
    with mpmath.workdps(50):
        return abs(float(value / truth - 1)) if truth else abs(value)


def powers(count: int, low: float, high: float, seed: int) -> Tensor:
    """Numbers of either sign whose magnitudes are spread evenly over decades."""
    g = rng(seed)
    size = 10 ** (low + (high - low) * torch.rand(count, generator=g, dtype=torch.float64))
    return size * (torch.randint(0, 2, (count,), generator=g) * 2 - 1)


@pytest.mark.parametrize("spread", [(-3, 3), (-12, 1), (-40, 40), (-70, 70)])
def test_equal_to_the_definition_over_many_magnitudes(spread: tuple[float, float]) -> None:
    """Slopes, differences and distances that have nothing to do with one another."""
    low, high = spread
    first, second, h = (powers(300, low, high, seed) for seed in (1, 2, 3))
    start = torch.zeros(300, dtype=torch.float64)
    middle, end, h = first, first + second, h.abs()
    got = roughness(start, middle, end, h)
    for k in range(300):
        truth = definition(0.0, float(middle[k]), float(end[k]), float(h[k]))
        if truth > 1e-300:
            assert relative(float(got[k]), truth) < 2e-14, k
        else:
            assert 0 <= float(got[k]) < 1e-290


@pytest.mark.parametrize("level", [1e-12, 1e-3, 1.0, 1e5])
@pytest.mark.parametrize("slope", [0.0, 1e-6, 1.0, -30.0])
def test_small_differences_on_a_large_loss(level: float, slope: float) -> None:
    """A bend of a few units in the last place of the loss: the definition itself would see 0."""
    for exponent in range(-30, 4, 3):
        h = 2.0**exponent
        for bend in (level * 2**-50, level * 1e-10, h**2):
            start, middle, end = level, level + slope * h, level + 2 * slope * h + bend
            truth = definition(start, middle, end, h)
            got = float(roughness(*tensor(start, middle, end, h)))
            assert relative(got, truth) < 2e-14
            with mpmath.workdps(DIGITS):
                delta = mpmath.mpf(start) - 2 * mpmath.mpf(middle) + mpmath.mpf(end)
            assert relative(float(second_difference(*tensor(start, middle, end))), delta) < 3e-16


def test_small_roughness_is_an_eighth_of_the_squared_grit() -> None:
    for slope in (0.0, 0.3, -2.0):
        h, bend = 1e-5, 1e-9
        values = tensor(1.0, 1.0 + slope * h, 1.0 + 2 * slope * h + bend, h)
        grit = float(second_difference(*values[:3])) / h
        mean_slope = float(values[2] - values[0]) / (2 * h)
        expected = grit**2 / (8 * (1 + mean_slope**2) ** 2)
        assert float(roughness(*values)) == pytest.approx(expected, rel=1e-3)


def test_known_triangles() -> None:
    assert float(roughness(*tensor(0, 1, 0, 1))) == pytest.approx(math.sqrt(2) - 1)
    assert float(roughness(*tensor(5, 5, 5, 1))) == 0
    assert float(roughness(*tensor(1, 2, 3, 0.1))) == 0
    # 3-4-5 up, then level: (5 + 3) over the chord
    assert float(roughness(*tensor(0, 4, 4, 3))) == pytest.approx(8 / math.sqrt(52) - 1)


def test_symmetric_under_reflection_and_shift() -> None:
    a, b, c, h = tensor(0.25, 0.75, 0.5, 0.125)
    value = roughness(a, b, c, h)
    for other in ((-a, -b, -c), (c, b, a), (a + 8, b + 8, c + 8)):
        torch.testing.assert_close(roughness(*other, h), value, rtol=1e-15, atol=0)
    torch.testing.assert_close(roughness(4 * a, 4 * b, 4 * c, 4 * h), value, rtol=1e-15, atol=0)


def test_with_another_difference_the_chord_stays() -> None:
    start, middle, end, h = tensor(1.0, 3.0, 2.0, 0.5)
    delta = second_difference(start, middle, end)
    same = roughness(start, middle, end, h, delta)
    torch.testing.assert_close(same, roughness(start, middle, end, h), rtol=1e-14, atol=0)
    # a middle point moved up by 1 lowers the difference by 2
    moved = roughness(start, middle + 1, end, h)
    torch.testing.assert_close(roughness(start, middle, end, h, delta - 2), moved)
    assert float(roughness(start, middle, end, h, torch.zeros(()).double())) == 0


def test_non_finite_values_stay_non_finite() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for place in range(3):
            values = [1.0, 2.0, 4.0, 0.5]
            values[place] = bad
            assert math.isnan(float(roughness(*tensor(*values))))
            assert not math.isfinite(float(second_difference(*tensor(*values[:3]))))


def test_shapes_broadcast() -> None:
    losses = torch.rand(5, 3, generator=rng(0), dtype=torch.float64)
    h = torch.full((4, 3), 0.1, dtype=torch.float64)
    start = torch.full((4, 3), 0.5, dtype=torch.float64)
    got = roughness(start, losses[:-1], losses[1:], h)
    assert got.shape == (4, 3)
    one = roughness(*tensor(0.5, float(losses[2, 1]), float(losses[3, 1]), 0.1))
    assert float(got[2, 1]) == float(one)
