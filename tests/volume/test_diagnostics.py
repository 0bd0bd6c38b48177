"""Diagnostics of chains: ArviZ's numbers, closed forms of AR(1), and error bars that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from curvops.errors import NonFiniteError, ShapeError
from curvops.volume.diagnostics import effective_sample_size, interval, rhat, standard_error


def white(chains: int, draws: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(chains, draws, generator=generator, dtype=torch.float64)


def autoregressive(rho: float, chains: int, draws: int, seed: int = 0) -> Tensor:
    """x_t = ρ x_(t-1) + √(1-ρ²) e_t, stationary, of variance one."""
    x = white(chains, draws, seed)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
    return x


def reproducible(kind: str, chains: int, draws: int) -> Tensor:
    """Draws that every machine makes alike, and that ArviZ was given."""
    c, t = np.arange(chains)[:, None], np.arange(draws)[None, :]
    e = np.abs(np.modf(np.sin(12.9898 * c + 78.233 * t + 1.0) * 43758.5453)[0]) - 0.5
    if kind == "slow":
        y = np.zeros((chains, draws))
        for k in range(draws):
            y[:, k] = (0.8 * y[:, k - 1] if k else 0) + e[:, k]
        return torch.tensor(y)
    made = {"white": e, "apart": e + 0.1 * c, "wide": e * (1 + c), "drift": e + t / draws}
    return torch.tensor(made[kind])


@pytest.mark.parametrize(
    ("kind", "chains", "draws", "agreement", "ess"),
    [
        # ArviZ 0.23.4: rhat(x), ess(x, method="mean")
        ("white", 4, 200, 1.0002950361, 782.123141),
        ("white", 3, 101, 0.9980929544, 276.396049),
        ("apart", 4, 200, 1.0886827745, 42.094732),
        ("apart", 3, 101, 1.0653466439, 62.736974),
        ("wide", 4, 200, 1.1758997690, 790.485177),
        ("wide", 3, 101, 1.1712552989, 225.626019),
        ("drift", 4, 200, 1.2752533888, 10.786189),
        ("drift", 3, 101, 1.3647710767, 6.783848),
        ("slow", 4, 200, 1.0315916340, 104.121792),
        ("slow", 3, 101, 1.0664241469, 33.693117),
    ],
)
def test_numbers_of_arviz(kind: str, chains: int, draws: int, agreement: float, ess: float) -> None:
    x = reproducible(kind, chains, draws)
    assert rhat(x) == pytest.approx(agreement, abs=1e-7)
    assert effective_sample_size(x) == pytest.approx(ess, rel=1e-6)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_effective_sample_size_of_an_autoregression(rho: float) -> None:
    """The variance of the mean of AR(1) is that of N (1-ρ)/(1+ρ) independent draws."""
    chains, draws = 8, 20000
    ess = effective_sample_size(autoregressive(rho, chains, draws))
    assert ess == pytest.approx(chains * draws * (1 - rho) / (1 + rho), rel=0.1)


def test_chains_that_disagree_have_few_draws() -> None:
    x = white(4, 1000)
    apart = x + 3.0 * torch.arange(4).unsqueeze(1)
    assert effective_sample_size(x) > 3000
    assert effective_sample_size(apart) < 10
    assert standard_error(apart) == pytest.approx(3 * math.sqrt(5 / 3) / 2, rel=0.1)


def test_rhat_sees_place_spread_and_drift() -> None:
    x = white(4, 400)
    assert rhat(x) < 1.01
    assert rhat(x + torch.tensor([[0.0], [0.0], [0.0], [1.0]])) > 1.1
    assert rhat(x * torch.tensor([[1.0], [1.0], [1.0], [4.0]])) > 1.1
    assert rhat(x + torch.linspace(0, 2, 400)) > 1.1
    assert rhat(x[:1] + torch.linspace(0, 4, 400)) > 1.1


def test_rhat_does_not_change_under_monotone_maps() -> None:
    x = white(4, 100)
    scores = rhat(x + 0.2 * torch.arange(4).unsqueeze(1))
    assert rhat((x + 0.2 * torch.arange(4).unsqueeze(1)).exp()) >= scores - 1e-12
    cauchy = torch.tan(math.pi * (torch.rand(4, 2000, generator=torch.Generator()) - 0.5))
    assert rhat(cauchy) < 1.02


@pytest.mark.parametrize(("rho", "chains", "draws"), [(0.0, 4, 100), (0.8, 4, 400), (0.8, 64, 40)])
def test_intervals_hold_the_mean(rho: float, chains: int, draws: int) -> None:
    held = 0
    for seed in range(200):
        x = autoregressive(rho, chains, draws, seed)
        low, high = interval(float(x.mean()), standard_error(x), effective_sample_size(x))
        held += low <= 0 <= high
    assert held >= 180


def test_the_error_is_at_least_what_the_means_of_the_chains_say() -> None:
    for seed in range(20):
        x = autoregressive(0.99, 6, 60, seed)
        assert standard_error(x) >= float(x.mean(1).std()) / math.sqrt(6) * (1 - 1e-12)


def test_shared_noise_is_seen() -> None:
    """Half of every chain's variance is common to all: more chains do not help with it."""
    common = white(1, 4000, seed=1)
    x = (white(64, 4000) + common) / math.sqrt(2)
    truth = math.sqrt(0.5 / 4000)
    assert standard_error(x) < truth / 4
    assert standard_error(x, shared_noise=True) == pytest.approx(truth, rel=0.25)


def test_errors_of_white_noise_are_those_of_a_mean() -> None:
    errors = [standard_error(white(16, 500, seed)) for seed in range(50)]
    assert np.mean(errors) == pytest.approx(1 / math.sqrt(8000), rel=0.2)


def test_intervals_are_students() -> None:
    low, high = interval(2.0, 0.5, 11.0)
    assert (high - 2) / 0.5 == pytest.approx(stats.t(10).ppf(0.975))
    assert (2 - low) / 0.5 == pytest.approx(stats.t(10).ppf(0.975))


def test_draws_that_are_all_equal() -> None:
    x = torch.full((3, 50), 2.5)
    assert (rhat(x), effective_sample_size(x), standard_error(x)) == (1.0, 150.0, 0.0)
    assert rhat(x + torch.arange(3).unsqueeze(1)) == math.inf


@pytest.mark.parametrize("function", [rhat, effective_sample_size, standard_error])
def test_bad_draws_are_refused(function) -> None:  # type: ignore[no-untyped-def]
    for shape in [(10,), (2, 3), (0, 10), (2, 3, 4)]:
        with pytest.raises(ShapeError, match=r"expected \[C, N\]"):
            function(torch.zeros(shape))
    with pytest.raises(NonFiniteError, match="draws holds 1 non-finite"):
        function(torch.tensor([[1.0, 2.0, math.nan, 3.0]]))
