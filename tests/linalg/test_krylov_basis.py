"""Whatever is done to a Krylov basis, A V = V H + R B + P C holds, and V and R are orthonormal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvops.linalg.krylov_basis import KrylovBasis
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes
from curvops.linalg.wanted import margin, prominence, wanted

DIM = 80


def matrix() -> Tensor:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(DIM, DIM, generator=g, dtype=torch.float64)
    return A + A.T


def fresh(A: Tensor, rows: int = 60, dtype: torch.dtype = torch.float64) -> KrylovBasis:
    probes = Probes(DIM, "gaussian", 1)
    return KrylovBasis(Products(A), rows, probes, torch.device("cpu"), dtype)


def check(A: Tensor, basis: KrylovBasis, tolerance: float = 1e-11) -> None:
    V, H = basis._V[: basis.size].double(), basis._H[: basis.size, : basis.size]
    R, P = basis._R.double(), basis._P.double()
    off = V @ A - H.T @ V - basis._B.T @ R - basis._C.T @ P
    assert float(off.norm()) < tolerance
    both = torch.cat([V, R])
    assert float((both @ both.T - torch.eye(len(both))).abs().max()) < tolerance
    if len(P):
        assert float((V @ P.T).abs().max()) < tolerance
    ritz = basis.ritz()
    X = V.T @ ritz.rotation
    true = (A @ X - X * ritz.values).norm(dim=0)
    assert bool(((ritz.residuals - true).abs() < 10 * tolerance).all())


def test_every_move_keeps_the_relation() -> None:
    A = matrix()
    basis = fresh(A)
    assert basis.inject() == 1
    for _ in range(4):
        basis.expand()
    check(A, basis)
    share = basis.perturb(0.5)
    assert 0 < share < 1
    assert float(basis._C.norm()) == pytest.approx(0.5)
    check(A, basis)
    basis.expand()
    basis.expand()
    check(A, basis)
    basis.set_aside()
    assert basis.block == 0
    assert basis.inject() == 1
    for _ in range(3):
        basis.expand()
        check(A, basis)
    basis.rejoin(most=2)
    assert basis.block == 2
    check(A, basis)
    basis.expand()
    check(A, basis)
    basis.restart(basis.ritz().rotation[:, 4:9])
    assert basis.size == 5
    check(A, basis)
    basis.perturb(1e-3)
    for _ in range(5):
        basis.expand()
    check(A, basis)


def test_in_float32() -> None:
    A = matrix()
    basis = fresh(A, dtype=torch.float32)
    basis.inject(count=2)
    for _ in range(5):
        basis.expand()
    basis.perturb(1e-2)
    basis.restart(basis.ritz().rotation[:, :6])
    for _ in range(10):
        basis.expand()
    check(A, basis, tolerance=1e-4)


def test_dependent_directions_are_seen() -> None:
    A = matrix()
    basis = fresh(A)
    g = torch.Generator().manual_seed(2)
    W = torch.randn(2, DIM, generator=g, dtype=torch.float64)
    assert basis.inject(torch.cat([W, W.sum(0, keepdim=True), 0 * W[:1]])) == 2
    assert basis.inject(W[:1] * 1e-9) == 0
    check(A, basis)
    assert basis.inject(W[:1] + 1e-4 * torch.randn(1, DIM, generator=g, dtype=torch.float64)) == 1
    check(A, basis)


def test_the_whole_space() -> None:
    A = matrix()
    basis = fresh(A, rows=DIM)
    basis.inject(count=30)
    assert basis.perturb(1.0) == 0.0  # nothing is coupled yet
    while basis.block:
        basis.expand()
    assert basis.full
    assert basis.inject() == 0
    check(A, basis)
    torch.testing.assert_close(basis.ritz().values, torch.linalg.eigvalsh(A))


def test_an_invariant_subspace_ends_the_block() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0] + [0.0] * (DIM - 3), dtype=torch.float64))
    basis = fresh(A)
    basis.inject()
    for _ in range(4):
        basis.expand()
    assert basis.block == 0
    check(A, basis)
    torch.testing.assert_close(basis.ritz().values[1:], torch.tensor([1.0, 2.0, 3.0]).double())


def test_the_perturbation_is_the_share_it_says() -> None:
    A = matrix()
    basis = fresh(A)
    basis.inject()
    basis.expand()
    before = basis._R.clone()
    share = basis.perturb(0.3)
    lost = (before - (before @ basis._R.T) * basis._R).norm()
    assert float(lost) == pytest.approx(share, rel=1e-6)


def test_what_is_wanted() -> None:
    values = torch.tensor([-5.0, -1.0, 0.5, 2.0, 4.0])
    for which, k, expected in (
        ("LM", 2, [0, 4]),
        ("LA", 2, [3, 4]),
        ("SA", 2, [0, 1]),
        ("BE", 3, [0, 3, 4]),
        ("BE", 1, [4]),
        ("LA", 9, [0, 1, 2, 3, 4]),
    ):
        assert wanted(values, which, k).tolist() == expected  # type: ignore[arg-type]
    rest = torch.tensor([-1.0, 0.5])
    assert margin(rest, torch.tensor([2.0, 4.0]), "LA") == 1.5
    assert margin(rest, torch.tensor([-5.0, -2.0]), "SA") == 1.0
    assert margin(rest, torch.tensor([-5.0, 2.0]), "LM") == 1.0
    assert margin(rest, torch.tensor([-1.5, 2.0]), "BE") == 0.5
    assert margin(torch.tensor([3.0]), torch.tensor([2.0, 4.0]), "LA") == -1.0
    assert prominence(torch.tensor([-5.0, 2.0, 4.0]), "LM").tolist() == [3.0, 0.0, 2.0]
    assert prominence(torch.tensor([-5.0, 2.0, 4.0]), "BE").tolist() == [0.0, 0.0, 2.0]
    assert prominence(torch.tensor([-5.0, -2.0]), "SA").tolist() == [3.0, 0.0]
