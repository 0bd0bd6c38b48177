"""Directions: uniform, independent of chunks; and quadrature over the circle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvops.volume.sphere import circle, mean_over_circle, random_directions


def test_random_directions_are_uniform_unit_vectors(global_rng_untouched: None) -> None:
    like = torch.zeros(5, dtype=torch.float64)
    U = torch.cat(list(random_directions(like, 4000, 0, 1000)), dim=1)
    assert U.shape == (5, 4000)
    assert torch.allclose(U.norm(dim=0), torch.ones(4000).double())
    # E[u u'] = I / P.
    assert torch.allclose(U @ U.T / 4000, torch.eye(5).double() / 5, atol=0.02)
    assert float(U.mean(1).abs().max()) < 0.03


def test_directions_do_not_depend_on_chunks_nor_much_on_the_dtype() -> None:
    like = torch.zeros(17, dtype=torch.float64)
    whole = next(iter(random_directions(like, 10, 3, 10)))
    parts = torch.cat(list(random_directions(like, 10, 3, 4)), dim=1)
    assert torch.equal(whole, parts)
    single = next(iter(random_directions(like.float(), 10, 3, 10)))
    assert torch.allclose(single.double(), whole, atol=1e-7)
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(next(iter(random_directions(like, 10, generator, 10))), whole)


def mean(log_f: Tensor, log_weights: Tensor) -> float:
    return float((log_f + log_weights).logsumexp(0).exp())


def test_means_over_the_circle() -> None:
    calls = 0

    def look(angles: Tensor) -> Tensor:
        nonlocal calls
        calls += len(angles)
        x = circle(angles)[0]
        smooth = (2 * x).exp()  # its mean is the Bessel function I0(2)
        kink = x.abs()  # 2/π
        peak = 1e-4 / ((angles - 1.0).square() + 1e-8) + 1e-9  # narrow, and no axis
        return torch.stack([smooth, kink, peak]).log()

    seen, log_weights, error = mean_over_circle(look, 3, rtol=1e-8, max_nodes=100_000)
    assert error <= 1e-8
    assert float(log_weights.exp().sum()) == pytest.approx(1.0, rel=1e-12)
    assert mean(seen[0], log_weights) == pytest.approx(2.279585302336067, rel=1e-12)
    assert mean(seen[1], log_weights) == pytest.approx(2 / math.pi, rel=1e-8)
    tails = math.atan((2 * math.pi - 1) / 1e-4) + math.atan(1 / 1e-4)
    assert mean(seen[2], log_weights) == pytest.approx(tails / (2 * math.pi) + 1e-9, rel=1e-7)
    assert calls < 10_000


def test_a_budget_ends_it_with_an_honest_error() -> None:
    def look(angles: Tensor) -> Tensor:
        return -1e4 * (angles - 1.0).square().unsqueeze(0)

    seen, log_weights, error = mean_over_circle(look, 1, rtol=1e-12, max_nodes=300)
    truth = math.sqrt(math.pi / 1e4) / (2 * math.pi)
    assert abs(mean(seen[0], log_weights) / truth - 1) <= error
    assert error > 1e-12


def test_a_function_that_is_zero_everywhere() -> None:
    def look(angles: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(angles), torch.full_like(angles, -math.inf)])

    seen, log_weights, error = mean_over_circle(look, 2, rtol=1e-9, max_nodes=1000)
    assert error < 1e-12
    assert mean(seen[0], log_weights) == pytest.approx(1.0)
