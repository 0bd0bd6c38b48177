"""The diagonal: exact, by brute force, without symmetry, without symmetry's help, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.linalg.diagonal import _Diagonal, diagonal
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes
from curvops.linalg.sketch import Sketch
from tests.linalg.test_trace import _Largest, geometric, spectral
from tests.operators.dense import MatrixOperator, general, random

METHODS = ["hutchinson", "xdiag"]


def test_from_all_unit_vectors_it_is_exact() -> None:
    A = random(30, 30)
    for options in ({"method": "exact"}, {}, {"num_matvecs": 30}, {"rtol": 0.1}):
        estimate = diagonal(A, **options)
        torch.testing.assert_close(estimate.value, A.diagonal())
        assert estimate.method == "exact"
        assert estimate.num_matvecs == 30
        assert not estimate.stderr.any()
        assert bool((estimate.lower <= A.diagonal()).all())
        assert bool((A.diagonal() <= estimate.upper).all())


def _by_hand(A: Tensor, omega: Tensor) -> Tensor:
    """The samples ``[P, k]``: each from a basis without its probe, computed afresh."""
    Y, samples = A @ omega, []
    for i in range(omega.shape[1]):
        Q = torch.linalg.qr(torch.cat([Y[:, :i], Y[:, i + 1 :]], 1)).Q
        inside = Q @ (Q.T @ A)
        samples.append(inside.diagonal() + omega[:, i] * ((A - inside) @ omega[:, i]))
    return torch.stack(samples, 1)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_xdiag_is_its_definition(symmetric: bool, distribution: str) -> None:
    dim, k = 40, 5
    A = spectral(1 / torch.arange(1, dim + 1, dtype=torch.float64))
    if not symmetric:
        A = A + random(dim, dim, seed=1) / dim
    estimate = diagonal(A, num_matvecs=2 * k, seed=4, distribution=distribution)
    omega = Probes(dim, distribution, 4).take(k)
    samples = _by_hand(A, omega)
    torch.testing.assert_close(estimate.value, samples.mean(1))
    without = [torch.cat([omega[:, :i], omega[:, i + 1 :]], 1) for i in range(k)]
    replicates = torch.stack([_by_hand(A, some).mean(1) for some in without], 1)
    jackknife = (replicates - replicates.mean(1, keepdim=True)).square().sum(1)
    expected = torch.maximum(jackknife, samples.var(1) / k).sqrt()
    torch.testing.assert_close(estimate.stderr, expected)
    assert estimate.num_matvecs == 2 * k + (0 if symmetric else k)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
@pytest.mark.parametrize("max_rank", [2, 64])
@pytest.mark.parametrize("method", METHODS)
def test_the_mean_over_seeds_is_the_diagonal(method: Any, max_rank: int, distribution: Any) -> None:
    """Also where further probes go to what the largest sketch leaves."""
    A = random(20, 20)
    options = {"num_matvecs": 12, "max_rank": max_rank, "distribution": distribution}
    values = torch.stack([diagonal(A, method, seed=s, **options).value for s in range(300)])
    errors = (values.mean(0) - A.diagonal()) / (values.std(0) / 300**0.5)
    assert float(errors.abs().max()) < 4


def test_fresh_probes_see_the_whole_remainder() -> None:
    """Given a sketch, their mean is the diagonal: A is deflated from the left alone."""
    A = random(8, 8)
    sampler = _Diagonal("xdiag", Sketch(Products(A), "rademacher", 0, 1000))
    sampler.grow(2)
    samples = torch.cat(list(sampler.sample(20_000)))
    errors = (samples.mean(0) - A.diagonal()) / (samples.std(0) / 20_000**0.5)
    assert float(errors.abs().max()) < 4


def test_deflation_pays_where_the_spectrum_decays() -> None:
    A = spectral(geometric(300))
    plain, deflated = (diagonal(A, method, num_matvecs=40) for method in METHODS)
    truth = A.diagonal()
    assert (deflated.value - truth).norm() < (plain.value - truth).norm() / 30
    assert deflated.relative_error < plain.relative_error / 10


def test_low_rank_is_exact() -> None:
    values = torch.zeros(100, dtype=torch.float64)
    values[:4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    A = spectral(values)
    for distribution in ("rademacher", "sphere"):
        estimate = diagonal(A, num_matvecs=16, distribution=distribution)
        torch.testing.assert_close(estimate.value, A.diagonal(), rtol=1e-10, atol=1e-12)
    assert not diagonal(0 * A, num_matvecs=16).value.any()


def test_float32_products() -> None:
    A = spectral(geometric(200, 0.5))
    double, single = (diagonal(X, num_matvecs=30) for X in (A, A.float()))
    assert single.value.dtype == torch.float64
    torch.testing.assert_close(single.value, double.value, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("method", METHODS)
def test_one_seed_one_answer_whatever_the_chunk(method: str) -> None:
    A = spectral(geometric(80, 0.9))
    options = {"num_matvecs": 50, "max_rank": 10, "seed": 3}
    first, again = (diagonal(A, method, **options) for _ in range(2))
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.stderr, again.stderr)
    other = diagonal(A, method, chunk_size=7, **options)
    torch.testing.assert_close(other.value, first.value)
    torch.testing.assert_close(other.stderr, first.stderr)


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_number_of_products(method: str) -> None:
    op = MatrixOperator(spectral(geometric(600, 0.99)), self_adjoint=True)
    largest = []
    for count in (60, 500):
        with _Largest() as seen:
            diagonal(op, method, num_matvecs=count, max_rank=10, chunk_size=8)
        largest.append(seen.numel)
    assert largest[0] == largest[1] <= 600 * 10
    assert max(op.columns) <= 8


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_is_in_norm(method: str) -> None:
    A = spectral(geometric(200, 0.9))
    estimate = diagonal(A, method, rtol=0.4)
    assert estimate.converged
    half_widths = (estimate.upper - estimate.lower) / 2
    assert float(half_widths.norm()) <= 0.4 * float(estimate.value.norm())
    assert float((estimate.value - A.diagonal()).norm()) < 0.4 * float(A.diagonal().norm())
    assert estimate.num_matvecs <= 200 + 16  # a first look, and then the exact diagonal
    with pytest.warns(UnconvergedWarning, match="max_matvecs=20"):
        short = diagonal(A, method, rtol=1e-6, max_matvecs=20)
    assert not short.converged


def test_operators_with_and_without_a_transpose() -> None:
    op = general()
    assert diagonal(op, num_matvecs=8).num_matvecs == 8 + 4  # with the transpose

    class NoTranspose:
        shape, dtype, device = (60, 60), torch.float64, torch.device("cpu")

        def __matmul__(self, x: Tensor) -> Tensor:
            return random(60, 60) @ x

    with pytest.raises(InputError, match="no transpose"):
        diagonal(NoTranspose(), num_matvecs=8)
    assert diagonal(NoTranspose(), "hutchinson", num_matvecs=8).num_matvecs == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch++"}, "method must be"),
        ({"num_matvecs": 3}, "needs at least 4"),
        ({"num_matvecs": 4, "atol": 1.0}, "exclude each other"),
        ({"chunk_size": -1}, "chunk_size"),
        ({"max_rank": 0}, "max_rank"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        diagonal(torch.eye(50), **options)


def test_matrices_that_will_not_do() -> None:
    with pytest.raises(ShapeError, match="square"):
        diagonal(torch.ones(3, 4))
    with pytest.raises(NonFiniteError):
        diagonal(torch.full((3, 3), float("inf")))
    empty = diagonal(torch.zeros(0, 0))
    assert empty.value.shape == (0,)
    assert str(empty) == "no entries (0 matvecs)"
