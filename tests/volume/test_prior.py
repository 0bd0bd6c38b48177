"""Measures: densities, radial masses and their ends, against closed forms."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.volume.prior import Box, Gaussian, Lebesgue, as_measure


def sphere(dim: int, num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(dim, num, generator=generator, dtype=torch.float64)
    return u / u.norm(dim=0)


def log_mean_exp(x: Tensor) -> float:
    return float(x.logsumexp(0)) - math.log(len(x))


def test_the_gaussian_density_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    prior = Gaussian(0.6)
    normal = torch.distributions.Normal(0.0, torch.tensor(0.6, dtype=torch.float64))
    assert torch.allclose(prior.log_density(X), normal.log_prob(X).sum(0))
    gradient = torch.func.grad(lambda x: normal.log_prob(x).sum())(X)
    assert torch.allclose(prior.gradient(X), gradient)
    assert not bool(Lebesgue().log_density(X).any())
    assert not bool(Lebesgue().gradient(X).any())


@pytest.mark.parametrize("dim", [1, 3, 4810])
def test_the_whole_space_has_probability_one(dim: int) -> None:
    # Around any point; every direction sees another share of it.
    theta = torch.full((dim,), 0.15 / math.sqrt(dim), dtype=torch.float64)
    D = sphere(dim, 4000)
    prior = Gaussian(0.3)
    mass = prior.log_mass(theta, D, torch.full((4000,), math.inf, dtype=torch.float64))
    assert log_mean_exp(mass) == pytest.approx(0.0, abs=0.05)
    at_reach = prior.log_mass(theta, D, prior.reach(theta, D))
    assert torch.allclose(mass, at_reach, atol=1e-10)


def test_a_gaussian_ray_against_mpmath() -> None:
    generator = torch.Generator().manual_seed(1)
    dim, std, radius = 50, 0.7, 3.0
    theta = torch.randn(dim, generator=generator, dtype=torch.float64)
    D = 1.3 * sphere(dim, 1)
    d, R = D[:, 0], torch.tensor([radius], dtype=torch.float64)
    mpmath.mp.dps = 40

    def integrand(r: mpmath.mpf) -> mpmath.mpf:
        square = sum((mpmath.mpf(float(t)) + r * mpmath.mpf(float(x))) ** 2 for t, x in pairs)
        density = mpmath.exp(-square / (2 * std**2)) / (2 * mpmath.pi * std**2) ** (dim / 2)
        return r ** (dim - 1) * density

    pairs = list(zip(theta, d, strict=True))
    ball = mpmath.pi ** (dim / 2) / mpmath.gamma(dim / 2 + 1)
    expected = mpmath.log(dim * ball * mpmath.quad(integrand, [0, 1, 2, radius]))
    assert float(Gaussian(std).log_mass(theta, D, R)) == pytest.approx(float(expected), abs=1e-8)


def test_lebesgue_rays_make_a_ball() -> None:
    mass = Lebesgue().log_mass(torch.zeros(3), sphere(3, 2), torch.tensor([2.0, 2.0]))
    assert mass.exp().tolist() == pytest.approx([32 / 3 * math.pi] * 2)


@pytest.mark.parametrize("measure", [Lebesgue(), Gaussian(0.4)])
def test_slopes_are_derivatives(measure: Lebesgue | Gaussian) -> None:
    theta = torch.full((30,), 0.2, dtype=torch.float64)
    D, R = sphere(30, 5), torch.linspace(0.5, 3.0, 5, dtype=torch.float64)
    step = 1e-5
    up, down = (measure.log_mass(theta, D, R * math.exp(h)) for h in (step, -step))
    slope = (up.exp() - down.exp()) / (2 * step)
    assert torch.allclose(measure.log_slope(theta, D, R).exp(), slope, rtol=1e-6)


def test_a_box_ends_the_rays() -> None:
    theta = torch.tensor([0.5, 0.0], dtype=torch.float64)
    D = torch.tensor([[1.0, -1.0, 0.0, 3.0], [0.0, 0.0, 2.0, 4.0]], dtype=torch.float64)
    box = Box(-1.0, 1.0)
    assert box.reach(theta, D).tolist() == pytest.approx([0.5, 1.5, 0.5, 1 / 6])
    assert box.log_density(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist() == [0.0, -math.inf]
    with pytest.raises(InputError, match="within the box"):
        as_measure(box, torch.tensor([3.0]))
    with pytest.raises(InputError, match="low < high"):
        Box(1.0, 1.0)


def test_measures_by_name() -> None:
    theta = torch.tensor([3.0, 4.0])
    gaussian = as_measure("gaussian", theta)
    assert isinstance(gaussian, Gaussian)
    assert gaussian.std == pytest.approx(math.sqrt(12.5))
    assert as_measure("gaussian", theta, 0.1) == Gaussian(0.1)
    assert as_measure("lebesgue", theta) == Lebesgue()
    with pytest.raises(InputError, match="prior_std"):
        as_measure("gaussian", torch.zeros(2))
    with pytest.raises(InputError, match="prior_std"):
        as_measure("gaussian", theta, -1.0)
    with pytest.raises(InputError, match="counting"):
        as_measure("counting", theta)
