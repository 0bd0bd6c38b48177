"""Whatever is done to a Krylov basis, A V = V H + R B + P C holds, and V and R are orthonormal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvops.linalg import krylov_basis
from curvops.linalg.krylov_basis import KrylovBasis
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes
from curvops.linalg.semiorthogonal import Drift
from curvops.linalg.wanted import margin, prominence, wanted

DIM = 80


def matrix() -> Tensor:
    g = torch.Generator().manual_seed(0)
    A = torch.randn(DIM, DIM, generator=g, dtype=torch.float64)
    return A + A.T


def fresh(
    A: Tensor, rows: int = 60, dtype: torch.dtype = torch.float64, block: int = 30
) -> KrylovBasis:
    probes = Probes(DIM, "gaussian", 1)
    return KrylovBasis(Products(A), rows, block, probes, torch.device("cpu"), dtype)


def relation(A: Tensor, basis: KrylovBasis) -> float:
    """By how much the relation misses."""
    V, H = basis._V[: basis.size].double(), basis._H[: basis.size, : basis.size]
    R, P = basis._R.double(), basis._P.double()
    return float((V @ A - H.T @ V - basis._B.T @ R - basis._C.T @ P).norm())


def lost(basis: KrylovBasis) -> float:
    """By how much basis and block are not orthonormal."""
    both = torch.cat([basis._V[: basis.size], basis._R]).double()
    return float((both @ both.T - torch.eye(len(both))).abs().max())


def check(A: Tensor, basis: KrylovBasis, tolerance: float = 1e-11) -> None:
    assert relation(A, basis) < tolerance  # also before orthogonality is restored
    basis.restore()
    assert relation(A, basis) < tolerance
    assert lost(basis) < tolerance
    V, P = basis._V[: basis.size].double(), basis._P.double()
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


def spread(dim: int = DIM) -> Tensor:
    """A matrix whose largest eigenvalues converge at once, so that orthogonality is lost soon."""
    g = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64)).Q
    values = torch.cat([torch.tensor([-40.0, 30.0, 60.0, 100.0]), torch.linspace(-1, 8, dim - 4)])
    A = (Q * values.double()) @ Q.T
    return (A + A.T) / 2


@pytest.mark.parametrize("A", [matrix(), spread()], ids=["random", "outliers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 3])
def test_no_more_than_said_is_lost_between_restorations(
    A: Tensor, dtype: torch.dtype, block: int
) -> None:
    basis = fresh(A, dtype=dtype)
    basis.inject(count=block)
    eps = torch.finfo(dtype).eps
    waited = 0
    while basis.size < 42:
        basis.expand()
        assert lost(basis) < krylov_basis.MOST
        assert relation(A, basis) < 1e3 * eps * float(A.norm())
        waited += basis._clean < basis.size
    assert waited  # there was something to lose
    check(A, basis, tolerance=1e4 * eps * float(A.norm()))


def test_what_is_predicted_to_be_lost_is_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    A = spread()
    monkeypatch.setattr(krylov_basis, "MOST", math.inf)
    monkeypatch.setattr(krylov_basis, "LAZY", DIM)
    basis = fresh(A)
    basis.inject()
    losses = []
    while basis.size < 20:
        basis.expand()
        losses.append((lost(basis), basis._drift._now))
    some = [(true, said) for true, said in losses if 1e-12 < true < 1e-2]
    assert len(some) >= 4
    assert all(true < said < 1e5 * true for true, said in some)


def test_more_lost_than_was_meant_is_restored_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    A = spread()
    monkeypatch.setattr(krylov_basis, "MOST", math.inf)
    monkeypatch.setattr(krylov_basis, "LAZY", DIM)
    basis = fresh(A, dtype=torch.float32)
    basis.inject()
    while not basis.size or lost(basis) < 0.03:
        basis.expand()
    check(A, basis, tolerance=1e-3)


class Noisy:
    """A matrix whose products are wrong by more than rounding, and that does not say so."""

    def __init__(self, A: Tensor, noise: float) -> None:
        self.A, self.noise = A, noise
        self.shape, self.dtype, self.device = A.shape, A.dtype, A.device
        self.generator = torch.Generator().manual_seed(5)

    def __matmul__(self, X: Tensor) -> Tensor:
        wrong = torch.randn(X.shape, generator=self.generator, dtype=X.dtype)
        return self.A @ X + self.noise * wrong


def test_what_is_lost_to_noise_is_learnt() -> None:
    A = spread()
    basis = KrylovBasis(
        Products(Noisy(A, 1e-3)), 60, 1, Probes(DIM, "gaussian", 1), A.device, A.dtype
    )
    basis.inject()
    losses = []
    while basis.size < 45:
        basis.expand()
        losses.append(lost(basis))
    assert max(losses[:15]) > krylov_basis.MOST > max(losses[15:])


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_perturbation_brings_back_is_predicted(size: float, dtype: torch.dtype) -> None:
    A = spread()
    basis = fresh(A, dtype=dtype)
    basis.inject()
    for _ in range(6):
        basis.expand()
    basis.perturb(size)
    while basis.size < 42:
        basis.expand()
        assert lost(basis) < krylov_basis.MOST
    check(A, basis, tolerance=1e4 * torch.finfo(dtype).eps * float(A.norm()))


def test_a_restart_may_drop_fewer_vectors_than_the_block_has() -> None:
    A = matrix()
    basis = fresh(A)
    basis.inject(count=5)
    for _ in range(3):
        basis.expand()
    basis.restart(basis.ritz().rotation[:, 1:])
    assert (basis.size, basis.block) == (14, 5)
    check(A, basis)


def test_what_has_no_room_stays_aside() -> None:
    A = matrix()
    basis = fresh(A, rows=20, block=4)
    basis.inject(count=4)
    for _ in range(5):
        basis.expand()
    basis.set_aside()
    basis.restart(basis.ritz().rotation[:, :16])
    basis.inject(count=4)
    basis.expand()
    basis.rejoin(most=40)
    assert (basis.size, basis.block) == (20, 4)
    assert len(basis._P)
    check(A, basis)


def test_what_was_seen_to_be_lost_is_predicted_with_caution() -> None:
    drift = Drift(1e-7)

    def said(seen: float) -> float:
        drift.step(1.0, 10.0)
        drift.step(1.0, 10.0)
        before = drift._now
        drift.clear(seen)
        return before

    first = said(seen=1e-7)
    assert first == pytest.approx(10 * (10 * 1e-6 + 1e-6))
    assert first > said(seen=1e-7) > 1e-6  # less than it seemed: a little at a time
    for _ in range(20):
        said(seen=1e-7)
    assert said(seen=1e-7) == pytest.approx(1e-6, rel=0.1)
    said(seen=1e-3)  # more than it seemed: at once
    assert said(seen=0.0) == pytest.approx(1e-2, rel=0.1)
    for _ in range(50):
        said(seen=1e-12)
    assert said(seen=0.0) == pytest.approx(0.01 * first)


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
