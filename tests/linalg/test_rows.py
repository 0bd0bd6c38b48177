"""Products of long rows against dense float64, and rows made orthonormal again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvops.linalg.rows import combine, inner, remove
from curvops.linalg.semiorthogonal import restore


def rows(count: int, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(count + length)
    return torch.randn(count, length, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("length", [7, 4096, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner(length: int, dtype: torch.dtype) -> None:
    X, Y = rows(5, length, dtype), rows(3, length, dtype)
    found, true = inner(X, Y), X.double() @ Y.double().T
    assert found.dtype == torch.float64
    sizes = X.double().abs() @ Y.double().abs().T
    assert bool(((found - true).abs() <= 4 * torch.finfo(dtype).eps * sizes).all())
    torch.testing.assert_close(
        inner(X, X[:1])[0, 0].item(),
        X[0].double().square().sum().item(),
        rtol=10 * torch.finfo(dtype).eps,
        atol=0.0,
    )


@pytest.mark.parametrize("length", [7, 4096, 100_000])
def test_combinations_may_replace_some_of_their_rows(length: int) -> None:
    X, rotation = rows(6, length), rows(6, 2)
    true = rotation.T @ X
    before, out = X.clone(), torch.empty(2, length, dtype=torch.float64)
    combine(X, rotation, out)
    torch.testing.assert_close(out, true)
    combine(X, rotation, X[3:5])
    torch.testing.assert_close(X[3:5], true)
    torch.testing.assert_close(X[[0, 1, 2, 5]], before[[0, 1, 2, 5]], rtol=0, atol=0)


def test_what_is_removed_is_returned() -> None:
    V = torch.linalg.qr(rows(200, 8)).Q.T
    W = rows(3, 200)
    before = W.clone()
    C = remove(V, W)
    assert float((V @ W.T).abs().max()) < 1e-14
    torch.testing.assert_close(W + C.T @ V, before)
    assert remove(V[:0], W).shape == (0, 3)


@pytest.mark.parametrize("loss", [1e-9, 1e-3, 0.5, 30.0, 1e7], ids=str)
@pytest.mark.parametrize("length", [40, 9000])
def test_rows_are_orthonormal_again_and_it_is_known_how(loss: float, length: int) -> None:
    Q = torch.linalg.qr(rows(length, 12)).Q.T.contiguous()
    clean = 7
    X = Q.clone()
    X[clean:] += loss * rows(5, 12) @ Q
    X[clean:] /= X[clean:].norm(dim=1, keepdim=True)
    before = X.clone()
    S, inverse = restore(X, clean)
    assert float((X @ X.T - torch.eye(12)).abs().max()) < 1e-13
    torch.testing.assert_close(X[:clean], before[:clean], rtol=0, atol=0)
    assert float((S.T @ before - X).abs().max()) < 1e-13 * float(S.abs().max())
    assert float((S @ inverse - torch.eye(12)).abs().max()) < 1e-13 * float(S.abs().max())
    assert float(S.tril(-1).abs().max()) == 0.0


def test_rows_that_depend_on_each_other_are_told_apart_by_their_rounding() -> None:
    Q = torch.linalg.qr(rows(300, 6)).Q.T.contiguous()
    X = torch.cat(
        [Q, Q[:1] + 1e-9 * rows(1, 300), (Q[1:2] + Q[2:3]) / 2**0.5 + 1e-9 * rows(1, 300)]
    )
    restore(X, 5)
    assert float((X @ X.T - torch.eye(8)).abs().max()) < 1e-13


@pytest.mark.parametrize("apart", [0.0, 1e-6, 1e-5])
def test_rows_whose_gram_matrix_is_not_definite_are_told_apart_as_well(apart: float) -> None:
    Q = torch.linalg.qr(rows(300, 6)).Q.T
    X = torch.cat([Q] + [Q + apart * rows(6 + i, 300)[:6] for i in range(3)]).float()
    assert int(torch.linalg.cholesky_ex(X @ X.T).info)
    restore(X, 0)
    assert float((X.double() @ X.double().T - torch.eye(24)).abs().max()) < 1e-6
