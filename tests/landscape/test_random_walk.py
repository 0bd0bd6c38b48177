"""The random-walk null: the formula, its limits, and walks that were simulated."""

from __future__ import annotations

import math

import pytest
import torch

from curvops.errors import InputError
from curvops.landscape import Trajectory, random_walk_coordinates, random_walk_variance
from tests import cases


@pytest.mark.parametrize("num", [2, 3, 10, 57, 1000])
def test_shares_sum_to_one_and_descend(num: int) -> None:
    shares = random_walk_variance(num)
    assert shares.shape == (num - 1,)
    assert float(shares.sum()) == pytest.approx(1, rel=1e-12)
    assert bool((shares.diff() < 0).all())


def test_ten_points() -> None:
    expected = torch.tensor([0.6191, 0.1587, 0.0735], dtype=torch.float64)
    torch.testing.assert_close(random_walk_variance(10)[:3], expected, atol=5e-5, rtol=0)


def test_limit_of_many_points() -> None:
    k = torch.arange(1, 6, dtype=torch.float64)
    limit = 6 / (math.pi * k) ** 2
    torch.testing.assert_close(random_walk_variance(10**5)[:5], limit, atol=0, rtol=1e-8)


@pytest.mark.parametrize("num", [2, 5, 23])
def test_eigenvalues_of_the_walks_covariance(num: int) -> None:
    """min(i, j), centred from both sides: what the Gram matrix of a walk is on average."""
    i = torch.arange(num, dtype=torch.float64)
    centre = torch.eye(num, dtype=torch.float64) - 1 / num
    covariance = centre @ torch.minimum(i[:, None], i) @ centre
    values, vectors = torch.linalg.eigh(covariance)
    values = values.flip(0)[:-1]
    torch.testing.assert_close(random_walk_variance(num), values / values.sum())
    k = min(3, num - 1)
    waves = random_walk_coordinates(num, k)
    own = vectors.flip(1)[:, :k] * (values[:k] / values.sum() * num).sqrt()
    torch.testing.assert_close(waves.abs(), own.abs(), atol=1e-9, rtol=0)


def test_simulated_walks_are_within_their_sampling_error() -> None:
    """20 walks of 30 points in 4000 dimensions; each share is a ratio of sums over dimensions."""
    num, dim, walks = 30, 4000, 20
    found = []
    for seed in range(walks):
        steps = cases.randn(num, dim, seed=seed)
        points = steps.cumsum(0)
        trajectory = Trajectory()
        for point in points:
            trajectory.record(point)
        found.append(trajectory.pca().explained[:8])
    shares = torch.stack(found)
    mean, error = shares.mean(0), shares.std(0) / walks**0.5
    deviation = (mean - random_walk_variance(num)[:8]) / error
    # Finite dimensions push the first shares apart by about T/P, far below this.
    assert float(deviation.abs().max()) < 3.5
    assert float(error[0] / mean[0]) < 0.005
    assert bool((deviation.abs() < 2).sum() >= 5)


def test_a_straight_line_is_no_walk() -> None:
    trajectory = Trajectory()
    direction, noise = cases.randn(500, seed=0), cases.randn(20, 500, seed=1)
    for i in range(20):
        trajectory.record(i * direction + 0.01 * noise[i])
    found = trajectory.pca()
    assert float(found.explained[0]) > 0.999 > float(found.null[0])


@pytest.mark.parametrize("num", [1, 0, -3, 2.5, True, "4"])
def test_bad_numbers(num: object) -> None:
    with pytest.raises(InputError, match="num_points"):
        random_walk_variance(num)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_points"):
        random_walk_coordinates(num)  # type: ignore[arg-type]


@pytest.mark.parametrize("num", [5, 0, -3, 2.5, True, "4"])
def test_bad_numbers_of_components(num: object) -> None:
    with pytest.raises(InputError, match="num_components must be from 1 to 4"):
        random_walk_coordinates(5, num)  # type: ignore[arg-type]
