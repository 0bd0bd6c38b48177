"""SciPy's solvers, one by one, on exported operators, each against the dense answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg as spla
import torch
from scipy.linalg import expm
from torch import Tensor

from curvops import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
)
from tests import cases

SHIFT = 0.5
NUMPY = {torch.float64: np.float64, torch.float32: np.float32}
# relative to the norm of the answer; the solvers in float32 stop near sqrt(eps) of it
ERROR = {torch.float64: 1e-8, torch.float32: 2e-4}


class Problem:
    """H, a positive definite G + SHIFT I and J of one case, exported and dense."""

    def __init__(self, dtype: torch.dtype) -> None:
        case = cases.make("ce-weight-mask", "mean", dtype)
        self.dtype, self.error = dtype, ERROR[dtype]
        self.hessian = HessianLinearOperator(*case.args).to_scipy()
        self.hessian_dense = _numpy(case.truth.hessian())
        self.definite = GGNLinearOperator(*case.args).shift(SHIFT).to_scipy()
        ggn = case.truth.ggn()
        self.definite_dense = _numpy(ggn + SHIFT * torch.eye(len(ggn), dtype=ggn.dtype))
        self.jacobian = JacobianLinearOperator(case.model, case.params, case.batches).to_scipy()
        self.jacobian_dense = _numpy(case.truth.jacobian())

    def vector(self, dim: int, seed: int = 3) -> np.ndarray:
        return cases.randn(dim, seed=seed).to(self.dtype).numpy()

    def check(self, actual: Any, expected: Any) -> None:
        error = np.linalg.norm(np.asarray(actual, dtype=np.float64) - expected)
        assert error <= self.error * np.linalg.norm(expected)


def _numpy(x: Tensor) -> np.ndarray:
    return x.numpy()


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"], scope="module")
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(request.param)


def test_dtype_shape_and_products(problem: Problem) -> None:
    for operator, dense in (
        (problem.hessian, problem.hessian_dense),
        (problem.definite, problem.definite_dense),
        (problem.jacobian, problem.jacobian_dense),
    ):
        assert isinstance(operator, spla.LinearOperator)
        assert operator.shape == dense.shape
        assert operator.dtype == NUMPY[problem.dtype]
        rows, columns = dense.shape
        x, X = problem.vector(columns), np.stack([problem.vector(columns, s) for s in (4, 5)], 1)
        z, Z = problem.vector(rows), np.stack([problem.vector(rows, s) for s in (4, 5)], 1)
        answers = [
            (operator.matvec(x), dense @ x),
            (operator @ x, dense @ x),
            (operator.matmat(X), dense @ X),
            (operator.rmatvec(z), dense.T @ z),
            (operator.rmatmat(Z), dense.T @ Z),
            (operator.H @ z, dense.T @ z),
            (operator.matvec(x[:, None])[:, 0], dense @ x),
        ]
        for actual, expected in answers:
            assert isinstance(actual, np.ndarray)
            assert actual.dtype == NUMPY[problem.dtype]
            assert actual.shape == expected.shape
            problem.check(actual, expected)


def test_eigsh(problem: Problem) -> None:
    w, V = np.linalg.eigh(problem.hessian_dense)
    for which, wanted in (("LA", w[-3:]), ("SA", w[:3])):
        v0 = problem.vector(len(w))
        values, vectors = spla.eigsh(problem.hessian, k=3, which=which, v0=v0)
        assert values.dtype == NUMPY[problem.dtype]
        problem.check(np.sort(values), wanted)
        residual = problem.hessian_dense @ vectors - vectors * values
        assert np.linalg.norm(residual) < 100 * problem.error * abs(w).max()
    top = spla.eigsh(problem.hessian, k=1, which="LA", v0=problem.vector(len(w)))[1][:, 0]
    assert abs(top @ V[:, -1]) > 1 - 1e-4


def test_svds(problem: Problem) -> None:
    dense = problem.jacobian_dense
    u, s, vt = spla.svds(problem.jacobian, k=3, v0=problem.vector(min(dense.shape)))
    wanted = np.linalg.svd(dense, compute_uv=False)
    problem.check(np.sort(s)[::-1], wanted[:3])
    U, S, Vt = np.linalg.svd(dense)
    best = (U[:, :3] * S[:3]) @ Vt[:3]
    assert np.linalg.norm((u * s) @ vt - best) < 100 * problem.error * S[0]


def test_cg(problem: Problem) -> None:
    b = problem.vector(len(problem.definite_dense))
    x, info = spla.cg(problem.definite, b, rtol=problem.error / 10)
    assert info == 0
    problem.check(x, np.linalg.solve(problem.definite_dense, b.astype(np.float64)))


def test_minres(problem: Problem) -> None:
    """The shifted Hessian is indefinite; MINRES does not mind."""
    dense = problem.hessian_dense - 0.05 * np.eye(len(problem.hessian_dense))
    w = np.linalg.eigvalsh(dense)
    assert w[0] < 0 < w[-1]
    assert abs(w).min() > 0.005
    identity = spla.LinearOperator(
        dense.shape, matvec=lambda x: 0.05 * x, dtype=problem.hessian.dtype
    )
    b = problem.vector(len(dense))
    x, info = spla.minres(problem.hessian - identity, b, rtol=problem.error / 1000, maxiter=500)
    wanted = np.linalg.solve(dense, b.astype(np.float64))
    assert np.linalg.norm(x - wanted) < 20 * problem.error * np.linalg.norm(wanted)
    if problem.dtype == torch.float64:
        assert info == 0


def test_lobpcg(problem: Problem) -> None:
    n = len(problem.definite_dense)
    start = np.stack([problem.vector(n, s) for s in range(3)], axis=1)
    values, _ = spla.lobpcg(
        problem.definite, start, largest=True, tol=problem.error * 1e-2, maxiter=300
    )
    problem.check(np.sort(values), np.linalg.eigvalsh(problem.definite_dense)[-3:])


def test_lsmr(problem: Problem) -> None:
    """Damped least squares with the Jacobian: (J^T J + d^2 I) x = J^T b."""
    J, damp = problem.jacobian_dense, 0.3
    b = problem.vector(J.shape[0])
    tolerance = problem.error * 1e-4
    x = spla.lsmr(problem.jacobian, b, damp=damp, atol=tolerance, btol=tolerance, maxiter=100)[0]
    wanted = np.linalg.solve(J.T @ J + damp**2 * np.eye(J.shape[1]), J.T @ b.astype(np.float64))
    problem.check(x, wanted)


def test_expm_multiply(problem: Problem) -> None:
    n = len(problem.hessian_dense)
    b = problem.vector(n)
    trace = float(np.trace(problem.hessian_dense))
    actual = spla.expm_multiply(problem.hessian, b, traceA=trace)
    problem.check(actual, expm(problem.hessian_dense) @ b)


def test_onenormest(problem: Problem) -> None:
    """A lower bound by construction; with as many columns as the matrix has, the norm itself."""
    wanted = np.abs(problem.hessian_dense).sum(0).max()
    n = len(problem.hessian_dense)
    estimate = spla.onenormest(problem.hessian, t=n)
    assert estimate == pytest.approx(wanted, rel=problem.error)
    with_few = spla.onenormest(problem.hessian, t=4)
    assert 0.5 * wanted < with_few <= wanted * (1 + problem.error)


def test_asking_for_float64_of_a_float32_operator() -> None:
    case = cases.make("ce", "mean", torch.float32)
    operator = HessianLinearOperator(*case.args)
    exported = operator.to_scipy(dtype=np.float64)
    assert exported.dtype == np.float64
    x = cases.randn(case.dim, seed=3).numpy()
    product = exported @ x
    assert product.dtype == np.float64
    expected = case.truth.hessian().numpy() @ x
    assert np.abs(product - expected).max() < 2e-5 * np.abs(expected).max()
    # in- and output precision only: inside, the vector was rounded to float32
    inside = (operator @ torch.from_numpy(x).float()).double().numpy()
    assert np.array_equal(product, inside)


def test_integer_arrays_are_cast_and_complex_ones_refused() -> None:
    case = cases.make("ce")
    exported = EFLinearOperator(*case.args, keep="graph").to_scipy()
    ones = np.ones(case.dim, dtype=np.int64)
    product = exported @ ones
    assert product.dtype == np.float64
    np.testing.assert_array_equal(product, exported @ ones.astype(np.float64))
    assert np.abs(product).max() > 0
    with pytest.raises(TypeError, match="complex"):
        exported @ ones.astype(np.complex128)
    with pytest.raises(TypeError, match="complex"):
        exported.matmat(np.ones((case.dim, 2), dtype=np.complex64))


def test_arrays_are_not_written_to() -> None:
    case = cases.make("mse")
    exported = HessianLinearOperator(*case.args).to_scipy()
    x = cases.randn(case.dim, seed=3).numpy()
    before = x.copy()
    x.flags.writeable = False
    exported @ x
    exported @ np.asfortranarray(np.stack([x, x], 1))
    exported @ np.stack([x, x], 1)[:, ::-1]
    assert np.array_equal(x, before)


def test_strided_arrays() -> None:
    case = cases.make("mse")
    exported, dense = HessianLinearOperator(*case.args).to_scipy(), case.truth.hessian().numpy()
    wide = cases.randn(case.dim, 6, seed=3).numpy()
    for x in (wide[:, ::2], wide[:, ::-1], np.asfortranarray(wide), wide[::-1]):
        np.testing.assert_allclose(exported @ x, dense @ x, rtol=1e-9, atol=1e-12)
