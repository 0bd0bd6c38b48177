"""Moves of many chains: they keep the target, do not see one another, and refuse NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from curvops.errors import DivergenceError, InputError, ShapeError
from curvops.volume.moves import Points, StepSize, evaluate, hmc, initial_step_size

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(x: Tensor) -> tuple[Tensor, Tensor]:
    return -0.5 * x.square().sum(1), -x


def quartic(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two wells at ±1, in each coordinate."""
    return -(x.square() - 1).square().sum(1), -4 * x * (x.square() - 1)


def box(x: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform on [-1, 1]^P; outside NaN, as a cost that overflows would be."""
    outside = (x.abs() > 1).any(1)
    value = torch.where(outside, torch.nan, 0.0).to(x.dtype)
    return value, torch.where(outside.unsqueeze(1), torch.nan, torch.zeros_like(x))


def moved(target, x: Tensor, step, num_leapfrog: int, moves: int, seed: int = 0):  # type: ignore[no-untyped-def]
    points, rng, rates = evaluate(target, x), generator(seed), []
    for _ in range(moves):
        points, acceptance = hmc(target, points, step, num_leapfrog, rng)
        rates.append(float(acceptance.mean()))
    return points, sum(rates) / len(rates)


# --------------------------------------------------------------------- the target is kept


@pytest.mark.parametrize(("step", "num_leapfrog"), [(0.7, 1), (0.55, 3)])
def test_samples_of_a_double_well_are_still_samples_of_it(step: float, num_leapfrog: int) -> None:
    """At a step where without the rejections the distribution is far off."""
    grid = np.linspace(-3, 3, 6001)
    density = np.exp(-((grid**2 - 1) ** 2))
    cdf = integrate.cumulative_trapezoid(density, grid, initial=0)
    cdf /= cdf[-1]
    draws = np.interp(np.random.default_rng(0).random(20000), cdf, grid)
    points, rate = moved(quartic, torch.tensor(draws).unsqueeze(1), step, num_leapfrog, 5)
    assert 0.4 < rate < 0.9
    after = stats.kstest(points.x[:, 0].numpy(), lambda x: np.interp(x, grid, cdf))
    assert after.pvalue > 1e-3


def test_chains_find_the_covariance_from_far_away() -> None:
    precision = torch.tensor([1.0, 4.0, 25.0], dtype=DOUBLE)

    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * (precision * x.square()).sum(1), -precision * x

    points, rate = moved(target, torch.full((8000, 3), 3.0, dtype=DOUBLE), 0.2, 5, 40)
    assert rate > 0.7
    variance = points.x.square().mean(0) * precision
    assert (variance - 1).abs().max() < 4 * math.sqrt(2 / 8000)
    assert (points.x * precision.sqrt()).mean(0).abs().max() < 4 / math.sqrt(8000)


def test_a_box_stays_uniform_and_never_nan() -> None:
    x = torch.rand(20000, 1, generator=generator(3), dtype=DOUBLE) * 2 - 1
    points, rate = moved(box, x, 0.8, 2, 6)
    assert 0.2 < rate < 0.9
    assert torch.isfinite(points.x).all()
    assert torch.isfinite(points.value).all()
    assert torch.isfinite(points.gradient).all()
    assert stats.kstest(points.x[:, 0].numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_one_leapfrog_step_is_the_adjusted_langevin_algorithm() -> None:
    """Proposal N(x + h²/2 ∇f, h²) and the Hastings ratio with its density both ways."""
    h, x = 0.9, torch.randn(500, 4, generator=generator(1), dtype=DOUBLE)
    points = evaluate(quartic, x)
    after, acceptance = hmc(quartic, points, h, 1, generator(2))
    noise = torch.randn(x.shape, generator=generator(2), dtype=DOUBLE)
    proposal = x + h**2 / 2 * points.gradient + h * noise
    value, gradient = quartic(proposal)

    def log_q(to: Tensor, at: Tensor, slope: Tensor) -> Tensor:
        return -(to - at - h**2 / 2 * slope).square().sum(1) / (2 * h**2)

    ratio = value - points.value
    ratio += log_q(x, proposal, gradient) - log_q(proposal, x, points.gradient)
    torch.testing.assert_close(acceptance, ratio.clamp(max=0).exp(), rtol=1e-9, atol=1e-12)
    stayed = (after.x == x).all(1)
    assert stayed.any()
    torch.testing.assert_close(after.x[~stayed], proposal[~stayed], rtol=1e-12, atol=1e-12)


def test_a_trajectory_that_keeps_its_energy_is_accepted() -> None:
    """Leapfrog on a unit quadratic keeps ½|p|² + ½|x|²(1 - h²/4) exactly."""
    h, x = 0.5, torch.randn(1000, 3, generator=generator(1), dtype=DOUBLE)
    points = evaluate(normal, x)
    after, acceptance = hmc(normal, points, h, 7, generator(4))
    kept = h**2 / 8 * (after.x.square().sum(1) - x.square().sum(1))
    accepted = (after.x != x).any(1)
    expected = (-kept).clamp(max=0).exp()
    torch.testing.assert_close(acceptance[accepted], expected[accepted], rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------- chains


def test_each_chain_is_accepted_by_itself() -> None:
    """A chain in trouble changes nothing for the others; each may have its own step size."""
    x = torch.randn(6, 5, generator=generator(1), dtype=DOUBLE)
    poisoned = x.clone()
    poisoned[2] = 1e200

    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        assert torch.isfinite(x).all()
        return quartic(x)

    clean, _ = moved(target, x, 0.3, 4, 3)
    other, _ = moved(target, poisoned, 0.3, 4, 3)
    rest = [0, 1, 3, 4, 5]
    assert torch.equal(clean.x[rest], other.x[rest])
    assert torch.equal(other.x[2], poisoned[2])
    steps = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.3, 1e30], dtype=DOUBLE)
    mixed, _ = moved(target, x, steps, 4, 3)
    assert torch.equal(mixed.x[2:5], clean.x[2:5])
    assert not torch.equal(mixed.x[:2], clean.x[:2])
    assert torch.equal(mixed.x[5], x[5])


def test_what_is_returned_belongs_together() -> None:
    points, rate = moved(quartic, torch.zeros(50, 2), 0.5, 2, 4)
    assert rate < 1
    value, gradient = quartic(points.x)
    assert torch.equal(points.value, value.double())
    assert torch.equal(points.gradient, gradient)
    assert points.x.dtype == torch.float32
    assert points.value.dtype == torch.float64
    assert len(points) == 50


def test_a_chain_outside_the_support_enters_it() -> None:
    def half(x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = normal(x)
        return torch.where(x[:, 0] < 0, -math.inf, value), gradient

    points, _ = moved(half, torch.full((200, 1), -0.5), 0.5, 4, 20)
    assert (points.x > 0).all()


def test_only_the_generator_is_used(global_rng_untouched: None) -> None:
    first, _ = moved(normal, torch.zeros(3, 2), 0.3, 2, 2, seed=1)
    again, _ = moved(normal, torch.zeros(3, 2), 0.3, 2, 2, seed=1)
    other, _ = moved(normal, torch.zeros(3, 2), 0.3, 2, 2, seed=2)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


# --------------------------------------------------------------------- step sizes


@pytest.mark.parametrize("goal", [0.6, 0.8])
def test_step_size_reaches_the_acceptance_asked_for(goal: float) -> None:
    rng, points = generator(), evaluate(normal, torch.randn(64, 30, generator=generator(1)))
    step = StepSize(initial_step_size(normal, points, 1, rng, first=1e-4), goal)
    for _ in range(150):
        points, acceptance = hmc(normal, points, step.current, 1, rng)
        step.update(float(acceptance.mean()))
    _, rate = moved(normal, points.x, step.averaged, 1, 40)
    assert rate == pytest.approx(goal, abs=0.05)


@pytest.mark.parametrize("first", [1e-6, 1.0, 1e6])
def test_the_first_step_size_is_the_largest_power_accepted_half_of_the_time(first: float) -> None:
    points = evaluate(normal, torch.randn(400, 30, generator=generator(1), dtype=DOUBLE))
    step = initial_step_size(normal, points, 1, generator(), first)
    assert moved(normal, points.x, step, 1, 1)[1] > 0.45
    assert moved(normal, points.x, 2 * step, 1, 1)[1] < 0.55


def test_no_step_size_suits_a_target_that_is_never_finite() -> None:
    def lost(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full(x.shape[:1], torch.nan), torch.zeros_like(x)

    points = Points(torch.zeros(2, 3), torch.zeros(2, dtype=DOUBLE), torch.zeros(2, 3))
    with pytest.raises(DivergenceError, match="not finite around the points"):
        initial_step_size(lost, points, 1, generator())

    def flat(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(x.shape[:1]), torch.zeros_like(x)

    with pytest.raises(DivergenceError, match="flat"):
        initial_step_size(flat, evaluate(flat, torch.zeros(2, 3)), 1, generator())


# --------------------------------------------------------------------- bad input


def test_bad_input_is_named() -> None:
    points = evaluate(normal, torch.zeros(3, 2))
    with pytest.raises(InputError, match="num_leapfrog is 0"):
        hmc(normal, points, 0.1, 0, generator())
    for step in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="step_size is"):
            hmc(normal, points, step, 1, generator())
    with pytest.raises(ShapeError, match=r"step_size has shape \[2\]"):
        hmc(normal, points, torch.ones(2), 1, generator())
    with pytest.raises(ShapeError, match="one point a row"):
        evaluate(normal, torch.zeros(3))
    with pytest.raises(ShapeError, match="the target returned"):
        evaluate(lambda x: (x.sum(), x), torch.zeros(3, 2))
    with pytest.raises(InputError, match="initial is 0"):
        StepSize(0.0)
    with pytest.raises(InputError, match="target is 1"):
        StepSize(1.0, 1.0)
