"""Lanczos, one vector and blocks: the recurrence, breakdown, dtypes, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.linalg.block_lanczos import BlockLanczos
from curvops.linalg.lanczos import lanczos
from curvops.linalg.matrix import Products
from tests.cases import randn

F = torch.float64


def orthogonal(dim: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(dim, dim, seed=seed))[0]


def with_spectrum(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    Q = orthogonal(len(eigenvalues), seed)
    A = (Q * eigenvalues) @ Q.T
    return 0.5 * (A + A.T)


def reached(space: BlockLanczos, steps: int) -> BlockLanczos:
    for _ in range(steps):
        space.step()
    return space


def error(x: Tensor, y: Tensor | float = 0.0) -> float:
    return float((x - y).abs().max())


# ------------------------------------------------------------------------------- one vector each


def test_recurrence_and_orthogonality_where_plain_lanczos_loses_both():
    A = with_spectrum(torch.logspace(-12, 0, 60, dtype=F))
    T = lanczos(Products(A), randn(60, 3, seed=1), 60, return_basis=True)
    for k in range(3):
        steps = int(T.steps[k])
        Q = T.basis[k][:steps]
        assert error(Q @ Q.T, torch.eye(steps, dtype=F)) < 1e-13
        assert error(Q @ A @ Q.T, T.dense()[k][:steps, :steps]) < 1e-13


def test_first_vector_norm_and_residual():
    A, z = with_spectrum(torch.linspace(1, 2, 30, dtype=F)), randn(30, 1, seed=1)
    T = lanczos(Products(A), z, 5, return_basis=True)
    Q = T.basis[0].T
    assert error(Q[:, 0] * T.norms[0], z[:, 0]) < 1e-14
    residual = A @ Q - Q @ T.dense()[0]
    assert error(residual[:, :4]) < 1e-14
    assert float(residual[:, 4].norm()) == pytest.approx(float(T.beta[0, 4]), rel=1e-12)


def test_without_reorthogonalisation_the_basis_is_lost():
    A = with_spectrum(torch.logspace(-12, 0, 60, dtype=F))
    T = lanczos(Products(A), randn(60, 1, seed=1), 60, reorthogonalize=False, return_basis=True)
    Q = T.basis[0]
    assert error(Q @ Q.T, torch.eye(60, dtype=F)) > 1e-3


def test_a_few_steps_need_no_reorthogonalisation():
    A, z = with_spectrum(torch.linspace(1, 2, 60, dtype=F)), randn(60, 2, seed=1)
    plain, full = (lanczos(Products(A), z, 5, reorthogonalize=r) for r in (False, True))
    assert plain.basis is None
    assert error(plain.alpha, full.alpha) < 1e-12
    assert error(plain.beta, full.beta) < 1e-12


def test_columns_break_down_each_on_its_own_and_cost_no_more():
    Q = torch.eye(40, dtype=F)
    A = torch.diag(torch.arange(1.0, 41.0, dtype=F))
    start = torch.stack([Q[:, 0], Q[:, 0] + Q[:, 5] + Q[:, 9], torch.zeros(40).double()], 1)
    products = Products(A)
    T = lanczos(products, torch.cat([start, randn(40, 1, seed=2)], 1), 8)
    assert T.steps.tolist() == [1, 3, 0, 8]
    assert products.num_matvecs == 1 + 3 + 0 + 8
    assert T.norms[2] == 0
    assert error(T.alpha[0], 1.0) < 1e-12  # filled up with the first
    assert error(torch.linalg.eigvalsh(T.dense()[1][:3, :3]), torch.tensor([1.0, 6, 10])) < 1e-12


def test_fewer_steps_are_a_head_of_more():
    A, z = with_spectrum(torch.linspace(1, 2, 30, dtype=F)), randn(30, 2, seed=1)
    many, few = (lanczos(Products(A), z, m, return_basis=True) for m in (9, 4))
    head = many.head(4)
    assert torch.equal(head.alpha, few.alpha)
    assert torch.equal(head.beta, few.beta)
    assert torch.equal(head.steps, few.steps)
    assert torch.equal(head.basis, few.basis)


def test_chunks_of_columns_change_nothing_but_rounding():
    A, z = with_spectrum(torch.linspace(1, 2, 30, dtype=F)), randn(30, 7, seed=1)
    whole = lanczos(Products(A), z, 6, return_basis=True)
    parts = lanczos(Products(A), z, 6, return_basis=True, memory=2 * 6 * 30 * 8 + 2)
    assert error(whole.alpha, parts.alpha) < 1e-13
    assert error(whole.basis, parts.basis) < 1e-12


def test_float32_products_and_basis_with_coefficients_in_float64():
    A = with_spectrum(torch.linspace(1, 2, 80, dtype=F))
    T = lanczos(Products(A.float()), randn(80, 2, seed=1), 20, return_basis=True)
    assert T.alpha.dtype == F
    assert T.basis.dtype == torch.float32
    Q = T.basis[0].double()
    assert error(Q @ Q.T, torch.eye(20, dtype=F)) < 1e-6
    assert error(Q @ A @ Q.T, T.dense()[0]) < 1e-6


def test_basis_dtype_of_choice():
    A = torch.diag(torch.arange(1.0, 9.0))
    T = lanczos(Products(A), torch.ones(8, 1), 3, return_basis=True, basis_dtype=F)
    assert T.basis.dtype == F


def test_more_steps_than_the_dimension_end_there():
    T = lanczos(Products(torch.diag(torch.arange(1.0, 5.0)).double()), torch.ones(4, 1), 9)
    assert T.alpha.shape == (1, 4)
    assert T.beta[0, -1] == 0


@pytest.mark.parametrize("dim", [0, 1])
def test_tiny_matrices(dim):
    T = lanczos(Products(torch.eye(dim, dtype=F)), torch.ones(dim, 2), 3)
    assert T.steps.tolist() == [dim, dim]


def test_no_columns():
    T = lanczos(Products(torch.eye(3)), torch.zeros(3, 0), 2, return_basis=True)
    assert T.alpha.shape == (0, 2)


def test_bad_input():
    products = Products(torch.eye(3))
    with pytest.raises(ShapeError, match=r"start has shape \[3\]"):
        lanczos(products, torch.ones(3), 2)
    with pytest.raises(InputError, match="num_steps must be positive, got 0"):
        lanczos(products, torch.ones(3, 1), 0)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        lanczos(Products(torch.full((3, 3), torch.nan)), torch.ones(3, 1), 2)


# ----------------------------------------------------------------------------------------- blocks


def test_block_recurrence():
    A = with_spectrum(torch.logspace(-10, 0, 50, dtype=F))
    start = randn(50, 4, seed=1)
    space = reached(BlockLanczos(Products(A), start), 6)
    Q, T = space.basis, space.dense()
    assert Q.shape == (50, 24)
    assert error(Q.T @ Q, torch.eye(24, dtype=F)) < 1e-13
    assert error(Q.T @ A @ Q, T) < 1e-13
    assert error(Q[:, :4] @ space.start_coefficients, start) < 1e-13
    residual = A @ Q - Q @ T
    assert error(residual[:, :20]) < 1e-13
    gram = space.couplings[-1].T @ space.couplings[-1]
    assert error(residual[:, 20:].T @ residual[:, 20:], gram) < 1e-13


def test_multiplicities_up_to_the_width():
    eigenvalues = torch.tensor([1.0] * 3 + [2.0] * 3 + [5.0] * 14, dtype=F)
    products = Products(torch.diag(eigenvalues))
    space = reached(BlockLanczos(products, randn(20, 3, seed=1)), 9)
    assert space.is_invariant
    assert [len(block) for block in space.diagonals] == [3, 3, 3]
    found = torch.linalg.eigvalsh(space.dense())
    assert error(found, torch.tensor([1.0] * 3 + [2.0] * 3 + [5.0] * 3)) < 1e-12
    assert space.step() == 0


def test_dependent_start_and_shrinking_blocks_keep_the_recurrence():
    Q = torch.eye(30, dtype=F)
    A = torch.diag(torch.arange(1.0, 31.0, dtype=F))
    z = randn(30, 1, seed=3)
    start = torch.cat([Q[:, :1], z, 2.0 * z, Q[:, 4:5] + Q[:, 6:7]], 1)
    space = reached(BlockLanczos(Products(A), start), 12)
    assert len(space.diagonals[0]) == 3
    assert min(len(block) for block in space.diagonals) == 1
    basis = space.basis
    assert error(basis.T @ basis, torch.eye(space.size, dtype=F)) < 1e-12
    assert error(basis.T @ A @ basis, space.dense()) < 1e-11
    assert error(basis[:, :3] @ space.start_coefficients, start) < 1e-12


def test_the_space_fills_up():
    A = with_spectrum(torch.linspace(-1, 1, 10, dtype=F))
    space = reached(BlockLanczos(Products(A), randn(10, 4, seed=1)), 5)
    assert space.size == 10
    assert space.is_invariant
    assert error(torch.linalg.eigvalsh(space.dense()), torch.linspace(-1, 1, 10, dtype=F)) < 1e-12


def test_leading_blocks_growth_and_release():
    A = with_spectrum(torch.linspace(1, 2, 40, dtype=F))
    roomy = BlockLanczos(Products(A), randn(40, 3, seed=1), capacity=30)
    tight = BlockLanczos(Products(A), randn(40, 3, seed=1))
    reached(roomy, 5)
    short = reached(tight, 3).dense()
    reached(tight, 2)
    assert torch.equal(roomy.dense(), tight.dense())
    assert torch.equal(tight.dense(3), short)
    tight.release()
    assert tight.basis.shape[1] == 0
    assert tight.step() == 0
    assert not tight.is_invariant
    assert torch.equal(roomy.dense(), tight.dense())


def test_noise_is_the_asymmetry_of_products():
    A = with_spectrum(torch.linspace(1, 2, 40, dtype=F))
    exact = reached(BlockLanczos(Products(A), randn(40, 3, seed=1)), 4)
    rounded = reached(BlockLanczos(Products(A.float()), randn(40, 3, seed=1)), 4)
    assert exact.noise < 1e-14
    assert 1e-9 < rounded.noise < 1e-6


def test_empty_and_zero_starts():
    products = Products(torch.eye(5, dtype=F))
    for start in (torch.zeros(5, 0), torch.zeros(5, 2)):
        space = BlockLanczos(products, start)
        assert space.is_invariant
        assert space.step() == 0
        assert space.dense().shape == (0, 0)


def test_block_of_wrong_shape():
    with pytest.raises(ShapeError, match=r"start has shape \[4, 2\]; expected \[3, b\]"):
        BlockLanczos(Products(torch.eye(3)), torch.ones(4, 2))
