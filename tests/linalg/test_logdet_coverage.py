"""Brackets of log-determinants hold the truth: 200 seeds on spectra with decay and without.

The bracket includes three standard errors, and holds the truth in at least 99 % of the runs. With
Student's 97.5 % quantile in their place it is the 95 % interval, which does in at least 90 %.
"""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from scipy.special import stdtrit
from torch import Tensor

from curvops.linalg.estimate import Estimate
from curvops.linalg.logdet import logdet
from curvops.linalg.logdet_bracket import three_sigma

DIM = 120
SEEDS = 200
INDEX = torch.arange(DIM, dtype=torch.float64)

SPECTRA = {
    "geometric": (0.9**INDEX, 1e-3),
    "power": ((INDEX + 1) ** -2, 1e-3),
    "flat": (0.5 + INDEX / DIM, 0.0),
    "low rank": (torch.where(INDEX < 12, 1.0, 0.0).double() * (1 + INDEX), 1e-2),
    "indefinite": (torch.linspace(-0.1, 1, DIM, dtype=torch.float64), 0.2),
}


@functools.cache
def matrix(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    A = (Q * SPECTRA[name][0]) @ Q.T
    return (A + A.T) / 2


def interval(estimate: Estimate, fitted: int) -> tuple[float, float]:
    """The bracket, with the quantile of the 95 % interval in place of what stands for three."""
    count = len(estimate.samples) - fitted
    surplus = (three_sigma(count) - float(stdtrit(count - 1, 0.975))) * estimate.stderr
    return estimate.lower + surplus, estimate.upper - surplus


@pytest.mark.parametrize("name", list(SPECTRA))
@pytest.mark.parametrize(
    ("method", "num_probes", "num_steps", "fresh"),
    [("slq", 10, 10, 0), ("krylov", 8, 6, 0), ("krylov", 8, 6, 16)],
)
def test_coverage(method: str, name: str, num_probes: int, num_steps: int, fresh: int) -> None:
    eigenvalues, shift = SPECTRA[name]
    truth = float((eigenvalues + shift).log().sum())
    lower_bound = None if name in ("indefinite", "flat") else -1e-12
    held = bracketed = 0
    for seed in range(SEEDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimate = logdet(
                matrix(name),
                shift,
                method=method,
                num_probes=num_probes,
                num_steps=num_steps,
                num_matvecs=num_probes * num_steps + fresh,
                lower_bound=lower_bound,
                seed=seed,
            )
        low, high = interval(estimate, fitted=1 if fresh else 0)
        held += low <= truth <= high
        bracketed += estimate.lower <= truth <= estimate.upper
    assert held >= 0.90 * SEEDS, f"{held / SEEDS:.3f} of the 95 % intervals"
    assert bracketed >= 0.99 * SEEDS, f"{bracketed / SEEDS:.3f} of the brackets"
