"""The Frobenius norm: known answers, unbiased squares, rectangular matrices, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.frobenius import frobenius_norm
from curvops.linalg.probes import Probes
from tests.linalg.test_trace import _Largest, geometric, spectral
from tests.operators.dense import MatrixOperator, random, rectangular

METHODS = ["hutchinson", "xtrace"]


def test_the_squared_norm_of_a_small_matrix_is_506() -> None:
    A = torch.arange(12, dtype=torch.float64).view(6, 2)
    estimate = frobenius_norm(A)
    assert estimate.value**2 == pytest.approx(506, rel=1e-14)
    assert (estimate.num_matvecs, estimate.stderr, estimate.method) == (2, 0.0, "exact")
    wide = frobenius_norm(A.T, num_matvecs=5, seed=1)
    assert wide.num_matvecs == 5
    assert wide.lower <= 506**0.5 <= wide.upper
    operator = rectangular()
    assert frobenius_norm(operator).value == pytest.approx(float(operator.matrix.norm()))


@pytest.mark.parametrize("shape", [(40, 40), (30, 50)])
@pytest.mark.parametrize("method", METHODS)
def test_the_square_is_unbiased(method: str, shape: tuple[int, int]) -> None:
    if method == "xtrace" and shape[0] != shape[1]:
        pytest.skip("for square matrices")
    A = random(*shape)  # not symmetric
    for max_rank in (2, 64):
        options: dict[str, Any] = {"num_matvecs": 10, "max_rank": max_rank}
        results = [frobenius_norm(A, method, seed=seed, **options) for seed in range(300)]
        squares = torch.tensor([float(r.samples.mean()) for r in results])
        bias = float(squares.mean()) - float(A.norm() ** 2)
        assert abs(bias) < 4 * float(squares.std()) / 300**0.5


def test_xtrace_is_its_definition() -> None:
    dim, k = 30, 5
    A = spectral(geometric(dim, 0.8)) + 0.1 * random(dim, dim)
    estimate = frobenius_norm(A, num_matvecs=2 * k, seed=2)
    omega = Probes(dim, "sphere", 2).take(k)
    Y, samples = A @ omega, []
    for i in range(k):
        Q = torch.linalg.qr(torch.cat([Y[:, :i], Y[:, i + 1 :]], 1)).Q
        x = omega[:, i] - Q @ (Q.T @ omega[:, i])
        samples.append((A @ Q).square().sum() + (dim - k + 1) * (A @ x).square().sum() / (x @ x))
    torch.testing.assert_close(estimate.samples, torch.stack(samples))
    assert estimate.value == pytest.approx(float(torch.stack(samples).mean().sqrt()))


def test_the_error_of_the_norm_is_that_of_the_square_to_first_order() -> None:
    A = random(60, 60)
    estimate = frobenius_norm(A, "hutchinson", num_matvecs=50)
    of_square = float(estimate.samples.std()) / 50**0.5
    assert estimate.stderr == pytest.approx(of_square / (2 * estimate.value))
    below, above = estimate.value**2 - estimate.lower**2, estimate.upper**2 - estimate.value**2
    assert below == pytest.approx(above)
    assert below > 1.95 * of_square


def test_deflation_pays_where_the_spectrum_decays() -> None:
    A = spectral(geometric(300))
    errors = [
        torch.tensor(
            [frobenius_norm(A, m, num_matvecs=24, seed=s).value - float(A.norm()) for s in range(9)]
        )
        for m in METHODS
    ]
    assert errors[1].abs().median() < errors[0].abs().median() / 20


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("method", METHODS)
def test_bits_chunks_memory(method: str) -> None:
    op = MatrixOperator(spectral(geometric(300, 0.99)))
    options: dict[str, Any] = {"max_rank": 10, "seed": 3}
    first, again = (frobenius_norm(op, method, num_matvecs=60, **options) for _ in range(2))
    assert torch.equal(first.samples, again.samples)
    other = frobenius_norm(op, method, num_matvecs=60, chunk_size=7, **options)
    torch.testing.assert_close(other.samples, first.samples)
    largest = []
    for count in (60, 250):
        with _Largest() as seen:
            frobenius_norm(op, method, num_matvecs=count, chunk_size=8, **options)
        largest.append(seen.numel)
    assert largest[0] == largest[1] <= 300 * 10


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_is_on_the_norm(method: str) -> None:
    A = spectral(geometric(400, 0.95))
    truth = float(A.norm())
    for options in ({"rtol": 0.2}, {"atol": 0.2 * truth}):
        estimate = frobenius_norm(A, method, **options)
        assert estimate.converged
        assert (estimate.upper - estimate.lower) / 2 <= 0.25 * truth
        assert estimate.lower <= truth <= estimate.upper
        assert estimate.num_matvecs < 200
    with pytest.warns(UnconvergedWarning, match="max_matvecs=20"):
        frobenius_norm(A, method, rtol=1e-6, max_matvecs=20)


@pytest.mark.parametrize("A", [torch.zeros(50, 50), torch.zeros(0, 0), torch.zeros(3, 0)])
def test_zeros(A: Tensor) -> None:
    estimate = frobenius_norm(A, num_matvecs=10)
    assert (estimate.value, estimate.stderr, estimate.lower, estimate.upper) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch++"}, "method must be"),
        ({"num_matvecs": 1, "method": "hutchinson"}, "needs at least 2"),
        ({"chunk_size": "8"}, "chunk_size"),
        ({"max_rank": 1.5}, "max_rank"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        frobenius_norm(torch.eye(50), **options)


def test_xtrace_needs_a_square_matrix() -> None:
    with pytest.raises(ShapeError, match="square"):
        frobenius_norm(torch.ones(3, 4), "xtrace")
    with pytest.raises(ShapeError, match="a matrix"):
        frobenius_norm(torch.ones(3))
