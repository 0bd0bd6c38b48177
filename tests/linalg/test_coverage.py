"""Error bars hold the truth: 200 seeds of every estimator, on spectra with decay and without.

The 95 % interval in at least 90 % of the runs, widened by three standard errors in at least 99 %.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from curvops.linalg.diagonal import diagonal
from curvops.linalg.frobenius import frobenius_norm
from curvops.linalg.trace import trace

DIM = 60
SEEDS = 200
INDEX = torch.arange(DIM, dtype=torch.float64)

SPECTRA = {
    "geometric": 0.7**INDEX,
    "steep": 0.3**INDEX,
    "harmonic": 1 / (INDEX + 1),
    "flat": 0.5 + INDEX / DIM,
    "step": torch.where(INDEX < 6, 1.0, 1e-3).double(),
    "indefinite": torch.linspace(-1, 2, DIM, dtype=torch.float64),
}


@functools.cache
def matrix(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    A = (Q * SPECTRA[name]) @ Q.T
    return (A + A.T) / 2


def check(estimate: Callable[..., Any], truth: Tensor, **options: Any) -> None:
    results = [estimate(seed=seed, chunk_size=64, **options) for seed in range(SEEDS)]
    lower, upper, stderr = (
        torch.stack([torch.as_tensor(getattr(r, name)) for r in results])
        for name in ("lower", "upper", "stderr")
    )
    held = ((lower <= truth) & (truth <= upper)).double().mean()
    assert held >= 0.90, f"{held:.3f} of the intervals"
    wide = (lower - 3 * stderr <= truth) & (truth <= upper + 3 * stderr)
    assert wide.double().mean() >= 0.99, f"{wide.double().mean():.3f} of the widened brackets"


@pytest.mark.parametrize("num_matvecs", [8, 25])
@pytest.mark.parametrize("name", list(SPECTRA))
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "xnystrace"])
def test_trace(method: str, name: str, num_matvecs: int) -> None:
    if method == "xnystrace" and name == "indefinite":
        pytest.skip("for positive semidefinite matrices")
    A = matrix(name)
    check(functools.partial(trace, A, method), A.trace(), num_matvecs=num_matvecs)


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_trace_with_other_probes(method: str, distribution: str) -> None:
    A = matrix("harmonic")
    check(functools.partial(trace, A, method), A.trace(), num_matvecs=20, distribution=distribution)


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "xnystrace"])
def test_trace_beyond_the_largest_sketch(method: str) -> None:
    A = matrix("harmonic")
    check(functools.partial(trace, A, method), A.trace(), num_matvecs=40, max_rank=6)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace"])
@pytest.mark.parametrize("name", ["geometric", "flat"])
def test_trace_that_stops_by_itself(method: str, name: str) -> None:
    A = matrix(name)
    check(functools.partial(trace, A, method), A.trace(), atol=0.3 * float(A.trace()))


@pytest.mark.parametrize("num_matvecs", [8, 25])
@pytest.mark.parametrize("name", ["geometric", "harmonic", "indefinite"])
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_diagonal_entrywise_on_average(method: str, name: str, num_matvecs: int) -> None:
    A = matrix(name)
    check(functools.partial(diagonal, A, method), A.diagonal(), num_matvecs=num_matvecs)


def test_diagonal_beyond_the_largest_sketch() -> None:
    A = matrix("harmonic")
    check(functools.partial(diagonal, A), A.diagonal(), num_matvecs=40, max_rank=6)


@pytest.mark.parametrize("num_matvecs", [8, 25])
@pytest.mark.parametrize("name", ["geometric", "harmonic", "indefinite"])
@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_frobenius_norm(method: str, name: str, num_matvecs: int) -> None:
    A = matrix(name)
    truth = SPECTRA[name].norm()
    check(functools.partial(frobenius_norm, A, method), truth, num_matvecs=30, max_rank=6)
    check(functools.partial(frobenius_norm, A, method), truth, num_matvecs=num_matvecs)
