"""Log-means: values, errors, effective sample sizes, and the bound that no tail can break."""

from __future__ import annotations

import math

import pytest
import torch

from curvops.volume.weights import log_mean_exp, normalized


def test_against_plain_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    logs = torch.randn(400, generator=generator, dtype=torch.float64)
    w = logs.exp()
    mean = log_mean_exp(logs)
    assert mean.value == pytest.approx(float(w.mean().log()))
    assert mean.ess == pytest.approx(float(w.sum() ** 2 / w.square().sum()))
    assert mean.largest_weight == pytest.approx(float(w.max() / w.sum()))
    assert mean.stderr == pytest.approx(float(w.std() / math.sqrt(400) / w.mean()))
    assert mean.converged
    shifted = log_mean_exp(logs - 1e5)
    assert shifted.value == pytest.approx(mean.value - 1e5)
    assert shifted.ess == pytest.approx(mean.ess)
    assert float(normalized(logs - 1e5).sum()) == pytest.approx(1.0)


def test_one_weight_that_is_all_of_it() -> None:
    logs = torch.linspace(-5000, 0, 50, dtype=torch.float64)
    mean = log_mean_exp(logs)
    assert mean.value == pytest.approx(-math.log(50))
    assert mean.ess == pytest.approx(1.0)
    assert mean.largest_weight == pytest.approx(1.0)
    assert not mean.converged
    assert mean.upper == math.inf
    assert mean.lower == pytest.approx(mean.value - math.log(20))


def test_nothing_at_all() -> None:
    mean = log_mean_exp(torch.full((3,), -math.inf, dtype=torch.float64))
    assert mean.value == -math.inf
    assert not mean.converged


def test_errors_of_the_mean_cover_the_truth() -> None:
    """Where the sample is good enough the interval holds in 95 of 100 runs."""
    held = below = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        logs = 0.5 * torch.randn(300, generator=generator, dtype=torch.float64)
        mean = log_mean_exp(logs)
        held += mean.lower <= 0.125 <= mean.upper
        # Of log-normal weights so heavy that no sample of this size sees their mean.
        heavy = log_mean_exp(30 * logs)
        below += heavy.lower <= 0.5 * 15**2
    assert held >= 180
    assert below >= 190
