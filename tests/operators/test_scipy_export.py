"""The SciPy export: dtypes, the four products, and SciPy's solvers one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg as ssl
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor

from curvops.errors import DTypeError, NonFiniteError
from curvops.operators.linear import LinearOperator
from curvops.tensors import Space
from tests.operators.dense import MatrixOperator, random, rectangular


def spread(dim: int = 30, dtype: torch.dtype = torch.float64) -> MatrixOperator:
    """A positive definite operator with eigenvalues 1, 2, ..., dim."""
    Q = torch.linalg.qr(random(dim, dim)).Q
    A = Q @ torch.diag(torch.arange(1.0, dim + 1, dtype=torch.float64)) @ Q.T
    return MatrixOperator(((A + A.T) / 2).to(dtype), self_adjoint=True, positive=True)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float16, np.float32),
    ],
)
def test_the_dtype_is_the_operators_own(dtype: torch.dtype, expected: Any) -> None:
    op = MatrixOperator(random(3, 2).to(dtype))
    A = op.to_scipy()
    assert A.dtype == expected
    assert A.shape == (3, 2)
    for answer in (A @ np.ones(2), A @ np.ones((2, 2)), A.H @ np.ones(3), A.rmatmat(np.eye(3))):
        assert answer.dtype == expected
    reference = op.matrix.double() @ torch.ones(2, dtype=torch.float64)
    assert_allclose(A @ np.ones(2), reference, rtol=4 * torch.finfo(dtype).eps, atol=0.05)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float64, np.float64),
        ("float32", np.float32),
        (np.dtype(np.float16), np.float16),
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.float16, np.float16),
    ],
)
def test_another_real_dtype_is_input_and_output_precision_only(dtype: Any, expected: Any) -> None:
    third = MatrixOperator(torch.full((1, 1), 1 / 3, dtype=torch.float32))
    A = third.to_scipy(dtype)
    assert A.dtype == expected
    assert A.T.dtype == A.H.dtype == expected
    answer = A @ np.ones(1)
    assert answer.dtype == expected
    assert answer[0] == np.float32(1 / 3).astype(expected)
    assert (A.H @ np.ones(1)).dtype == expected


@pytest.mark.parametrize("dtype", [np.complex64, int, bool, "object", torch.int32, torch.complex64])
def test_the_dtype_must_be_real_floating(dtype: Any) -> None:
    with pytest.raises(DTypeError, match="real floating"):
        rectangular().to_scipy(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "no such dtype"])
def test_a_dtype_that_numpy_lacks_is_refused(dtype: Any) -> None:
    with pytest.raises(DTypeError, match="NumPy has no dtype"):
        rectangular().to_scipy(dtype)


@given(seed=st.integers(0, 1000), width=st.sampled_from([0, 1, 3]))
def test_the_four_products(seed: int, width: int) -> None:
    op = rectangular(seed)
    A, dense = op.to_scipy(), op.matrix.numpy()
    X, Y = random(11, width, seed=seed + 1).numpy(), random(7, width, seed=seed + 2).numpy()
    assert_allclose(A.matmat(X), dense @ X, atol=1e-12)
    assert_allclose(A.rmatmat(Y), dense.T @ Y, atol=1e-12)
    assert A.matmat(X).shape == (7, width)
    assert A.rmatmat(Y).shape == (11, width)
    for x, y in zip(X.T, Y.T, strict=True):
        assert_allclose(A.matvec(x), dense @ x, atol=1e-12)
        assert_allclose(A.rmatvec(y), dense.T @ y, atol=1e-12)


def test_vectors_keep_their_shape() -> None:
    A = rectangular().to_scipy()
    assert A.matvec(np.ones(11)).shape == (7,)
    assert A.matvec(np.ones((11, 1))).shape == (7, 1)
    assert A.rmatvec(np.ones(7)).shape == (11,)
    assert A.rmatvec(np.ones((7, 1))).shape == (11, 1)
    for bad in (np.ones(10), np.ones((1, 11)), np.ones((11, 2))):
        with pytest.raises(ValueError, match="mismatch"):
            A.matvec(bad)
    with pytest.raises(ValueError, match="mismatch"):
        A.matmat(np.ones((7, 2)))


def test_transposes_of_the_export() -> None:
    op = rectangular()
    A, dense = op.to_scipy(), op.matrix.numpy()
    for transposed in (A.T, A.H):
        assert transposed.shape == (11, 7)
        assert_allclose(transposed @ np.eye(7), dense.T)
        assert_allclose(transposed.rmatmat(np.eye(11)), dense)
    assert_allclose(np.eye(7) @ A, dense)


def test_scipys_own_algebra_works_on_it() -> None:
    op = spread(5)
    A, dense = op.to_scipy(), op.matrix.numpy()
    total = 2.0 * A - ssl.aslinearoperator(np.eye(5)) @ A**2
    assert_allclose(total @ np.eye(5), 2 * dense - dense @ dense, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, bool])
def test_integers_and_booleans_are_cast(dtype: Any) -> None:
    op = rectangular()
    x = np.arange(11).astype(dtype)
    answer = op.to_scipy() @ x
    assert answer.dtype == np.float64
    assert_allclose(answer, op.matrix.numpy() @ x.astype(float))
    assert_allclose(op.to_scipy().rmatvec(np.arange(7).astype(dtype)).dtype.itemsize, 8)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, object, "U1"])
def test_arrays_that_are_not_real_are_refused(dtype: Any) -> None:
    A = rectangular().to_scipy()
    products = [(A.matvec, (11,)), (A.rmatvec, (7,)), (A.matmat, (11, 2)), (A.rmatmat, (7, 2))]
    for product, shape in products:
        with pytest.raises(DTypeError, match=str(np.dtype(dtype))):
            product(np.ones(shape).astype(dtype))


def test_non_finite_arrays_are_refused() -> None:
    A = rectangular().to_scipy()
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="11 non-finite"):
            A @ np.full(11, bad)


def test_a_value_beyond_the_operators_range_is_refused() -> None:
    A = MatrixOperator(torch.eye(2)).to_scipy(np.float64)
    with pytest.raises(NonFiniteError, match="2 non-finite"):
        A @ np.full(2, 1e300)


def test_sparse_matrices_are_refused() -> None:
    with pytest.raises(TypeError, match="sparse"):
        rectangular().to_scipy().matmat(scipy.sparse.eye_array(11))


@pytest.mark.parametrize(
    "x",
    [
        np.arange(22.0)[::2],
        np.arange(11.0)[::-1],
        np.arange(11.0).astype(">f8"),
        np.arange(11.0).astype(np.longdouble),
        np.arange(11.0).astype(np.float16),
        list(range(11)),
        np.matrix(np.arange(11.0)).T,
    ],
    ids=["strided", "reversed", "big endian", "long double", "half", "list", "matrix"],
)
def test_unusual_arrays(x: Any) -> None:
    op = rectangular()
    expected = op.matrix.numpy() @ np.asarray(x, dtype=np.float64).reshape(11, -1)
    assert_allclose(np.asarray(op.to_scipy().matvec(x)).reshape(7, -1), expected, atol=1e-12)


def test_read_only_arrays_are_read_and_results_share_no_memory() -> None:
    class Same(LinearOperator):
        SELF_ADJOINT = True

        def _matmat(self, X: Tensor) -> Tensor:
            return X  # breaks the contract on purpose: the export must still not alias

    space = Space.flat(4)
    A = Same(space, space, torch.float64, "cpu").to_scipy()
    x = np.arange(4.0)
    x.flags.writeable = False
    answer = A @ x
    answer += 1
    assert_allclose(x, np.arange(4.0))


def test_an_operator_without_transpose_exports_its_forward_products() -> None:
    class Forward(LinearOperator):
        def _matmat(self, X: Tensor) -> Tensor:
            return 2 * X

    space = Space.flat(4)
    A = Forward(space, space, torch.float64, "cpu").to_scipy()
    assert_allclose(A @ np.ones(4), 2 * np.ones(4))
    with pytest.raises(NotImplementedError, match="Forward"):
        A.rmatvec(np.ones(4))


# SciPy's solvers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_eigsh(dtype: torch.dtype, rtol: float) -> None:
    values, vectors = ssl.eigsh(spread(dtype=dtype).to_scipy(), k=4, which="LA", v0=np.ones(30))
    assert values.dtype == spread(dtype=dtype).to_scipy().dtype
    assert_allclose(np.sort(values), [27, 28, 29, 30], rtol=rtol)
    dense = spread().matrix.numpy()
    assert_allclose(dense @ vectors, vectors * values, atol=100 * rtol)


def test_svds() -> None:
    op = rectangular()
    values = ssl.svds(op.to_scipy(), k=3, v0=np.ones(7), return_singular_vectors=False)
    expected = np.linalg.svd(op.matrix.numpy(), compute_uv=False)[:3]
    assert_allclose(np.sort(values)[::-1], expected, rtol=1e-9)


@pytest.mark.parametrize("solver", [ssl.cg, ssl.minres, ssl.gmres, ssl.bicgstab])
def test_solvers(solver: Any) -> None:
    op, b = spread(), np.arange(30.0)
    x, info = solver(op.to_scipy(), b, rtol=1e-12)
    assert info == 0
    assert_allclose(x, np.linalg.solve(op.matrix.numpy(), b), rtol=1e-7, atol=1e-7)


def test_lobpcg() -> None:
    op = spread()
    start = random(30, 3, seed=1).numpy()
    values, _ = ssl.lobpcg(op.to_scipy(), start, largest=True, maxiter=200, tol=1e-7)
    assert_allclose(np.sort(values), [28, 29, 30], rtol=1e-8)


@pytest.mark.parametrize("solver", [ssl.lsmr, ssl.lsqr])
def test_least_squares(solver: Any) -> None:
    op, b = rectangular(), np.arange(7.0)
    x = solver(op.to_scipy(), b, atol=1e-14, btol=1e-14)[0]
    assert_allclose(x, np.linalg.lstsq(op.matrix.numpy(), b, rcond=None)[0], atol=1e-9)


def test_expm_multiply() -> None:
    op, b = spread(8), np.arange(8.0)
    A = (-0.1 * op).to_scipy()
    answer = ssl.expm_multiply(A, b, traceA=float(-0.1 * op.matrix.trace()))
    expected = torch.linalg.matrix_exp(-0.1 * op.matrix).numpy() @ b
    assert_allclose(answer, expected, rtol=1e-9)


def test_onenormest() -> None:
    op = rectangular()
    square = (op.T @ op).to_scipy()
    dense = op.matrix.T @ op.matrix
    assert_allclose(ssl.onenormest(square, t=5), float(dense.abs().sum(0).max()), rtol=1e-9)
