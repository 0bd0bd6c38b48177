"""Gauss and Gauss-Radau: exactness on polynomials, bounds of log, and the bound of the spectrum."""

from __future__ import annotations

import pytest
import torch

from curvops.errors import InputError
from curvops.linalg.block_lanczos import BlockLanczos
from curvops.linalg.lanczos import lanczos
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes
from curvops.linalg.quadrature import block_radau, gauss, gauss_radau
from curvops.linalg.smallest_eigenvalue import below_block, below_tridiagonals
from tests.cases import randn
from tests.linalg.test_lanczos import F, error, orthogonal, reached, with_spectrum


def moment(A, z, power):
    """zᵀ Aᵏ z / ‖z‖², by multiplying."""
    x = z
    for _ in range(power):
        x = A @ x
    return (z * x).sum(0) / z.square().sum(0)


def test_gauss_is_exact_up_to_degree_2m_minus_1_and_radau_up_to_2m():
    A, z = with_spectrum(torch.linspace(1, 3, 40, dtype=F)), randn(40, 3, seed=1)
    T = lanczos(Products(A), z, 3)
    for rule, degree in ((gauss(T), 5), (gauss_radau(T, 0.5), 6)):
        nodes, weights = rule
        for power in range(degree + 1):
            exact = moment(A, z, power)
            assert error((weights * nodes**power).sum(1) / exact, 1.0) < 1e-12, power
        next_one = (weights * nodes ** (degree + 1)).sum(1) / moment(A, z, degree + 1)
        assert error(next_one, 1.0) > 1e-6
        assert bool((weights > 0).all())


def test_radau_has_its_node():
    A, z = with_spectrum(torch.linspace(1, 3, 40, dtype=F)), randn(40, 3, seed=1)
    nodes, _ = gauss_radau(lanczos(Products(A), z, 4), 0.7)
    assert error(nodes[:, 0], 0.7) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_gauss_above_and_radau_below_for_log(steps):
    eigenvalues = torch.logspace(-3, 0, 50, dtype=F)
    Q = orthogonal(50)
    A, z = (Q * eigenvalues) @ Q.T, randn(50, 20, seed=1)
    exact = ((Q.T @ z).square() * eigenvalues.log().unsqueeze(1)).sum(0) / z.square().sum(0)
    T = lanczos(Products(A), z, steps)
    over, under = gauss(T), gauss_radau(T, 1e-3)
    assert bool(((over[1] * over[0].log()).sum(1) >= exact - 1e-10).all())
    assert bool(((under[1] * under[0].log()).sum(1) <= exact + 1e-10).all())
    assert float(((over[1] * over[0].log()).sum(1) - exact).mean()) > 1e-6 or steps == 12


def test_columns_that_ended_carry_no_weight_beyond():
    Q = torch.eye(20, dtype=F)
    A = torch.diag(torch.arange(1.0, 21.0, dtype=F))
    T = lanczos(Products(A), torch.cat([Q[:, 1:2], randn(20, 1, seed=1)], 1), 5)
    for nodes, weights in (gauss(T), gauss_radau(T, 0.5)):
        assert float((weights[0] * nodes[0].log()).sum()) == pytest.approx(
            float(torch.tensor(2.0).log()), rel=1e-7
        )


def test_node_above_the_spectrum_is_refused():
    A = with_spectrum(torch.linspace(1, 3, 20, dtype=F))
    with pytest.raises(InputError, match="must be below every Ritz value"):
        gauss_radau(lanczos(Products(A), randn(20, 1, seed=1), 20), 1.5)
    with pytest.raises(InputError, match="must be below every Ritz value"):
        block_radau(reached(BlockLanczos(Products(A), randn(20, 2, seed=1)), 3), 2.9)


def test_block_radau_of_width_one_is_radau():
    A, z = with_spectrum(torch.linspace(1, 3, 40, dtype=F)), randn(40, 1, seed=1)
    space = reached(BlockLanczos(Products(A), z), 5)
    nodes, _ = gauss_radau(lanczos(Products(A), z, 5), 0.4)
    assert error(torch.linalg.eigvalsh(block_radau(space, 0.4)), nodes[0]) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_bracket_survives_deflation(steps):
    """f(T) ⪰ Qᵀ log(A) Q ⪰ the leading block of f of the augmented T, as matrices."""
    eigenvalues = torch.logspace(-4, 0, 60, dtype=F)
    A = with_spectrum(eigenvalues)
    Qa = orthogonal(60)
    log_A = (Qa * eigenvalues.log()) @ Qa.T
    space = reached(BlockLanczos(Products(A), randn(60, 5, seed=2)), steps)
    size, Q = space.size, space.basis
    exact = Q.T @ log_A @ Q

    def log(M):
        values, vectors = torch.linalg.eigh(M)
        return ((vectors * values.log()) @ vectors.T)[:size, :size]

    augmented = block_radau(space, 1e-4 - 1e-12)
    assert len(augmented) == size + 5
    smallest = torch.linalg.eigvalsh(augmented)[:5]
    assert error(smallest, 1e-4) < 1e-9
    assert float(torch.linalg.eigvalsh(log(space.dense()) - exact)[0]) > -1e-9
    assert float(torch.linalg.eigvalsh(exact - log(augmented))[0]) > -1e-9


# ----------------------------------------------------------------- the lower bound of the spectrum


SPECTRA = {
    "outlier below": torch.cat([torch.tensor([-0.5]), torch.linspace(0.5, 1.5, 399)]).double(),
    "indefinite": torch.linspace(-1, 1, 400, dtype=F),
    "bulk at zero": torch.cat([torch.logspace(-6, 0, 390), -torch.logspace(-6, -3, 10)]).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [2, 6, 15])
def test_the_bound_holds_in_every_run(name, steps):
    eigenvalues = SPECTRA[name]
    products = Products(torch.diag(eigenvalues))
    truth = float(eigenvalues.min())
    for seed in range(10):
        T = lanczos(products, Probes(400, "sphere", seed).take(4), steps)
        space = BlockLanczos(products, Probes(400, "gaussian", seed).take(4))
        for bound in (below_tridiagonals(T), below_block(reached(space, steps))):
            assert bound <= truth + 1e-12, (seed, bound)


def test_the_bound_is_not_vacuous_and_beats_the_worst_case():
    eigenvalues = SPECTRA["bulk at zero"]
    products = Products(torch.diag(eigenvalues))
    T = lanczos(products, Probes(400, "gaussian", 0).take(8), 20)
    space = reached(BlockLanczos(products, Probes(400, "gaussian", 0).take(8)), 20)
    # Kuczynski & Wozniakowski: no spectrum-independent bound is better than about 0.05 here.
    assert below_tridiagonals(T) > -0.02
    assert below_block(space) > -0.005


def test_a_naive_residual_bound_would_be_wrong_where_this_one_is_not():
    """One eigenvalue far below, which three steps have not seen."""
    eigenvalues = torch.cat([torch.tensor([-0.5]), torch.linspace(0.5, 1.5, 9999)]).double()

    class Diagonal:
        shape, dtype, device = (10000, 10000), F, torch.device("cpu")

        def __matmul__(self, x):
            return eigenvalues.unsqueeze(1) * x

    T = lanczos(Products(Diagonal()), Probes(10000, "gaussian", 0).take(4), 3)
    values, vectors = torch.linalg.eigh(T.dense())
    naive = values[:, 0] - T.beta[:, -1] * vectors[:, -1, 0].abs()
    assert float(naive.min()) > -0.3
    assert below_tridiagonals(T) < -0.5


def test_invariant_spaces_bound_tightly():
    eigenvalues = torch.tensor([2.0, 2.0, 2.0, 5.0, 5.0, 5.0], dtype=F)
    products = Products(torch.diag(eigenvalues))
    space = reached(BlockLanczos(products, randn(6, 2, seed=1)), 2)
    assert below_block(space) == pytest.approx(2.0, abs=1e-10)
    T = lanczos(products, randn(6, 2, seed=1), 2)
    assert below_tridiagonals(T) == pytest.approx(2.0, abs=1e-10)


def test_no_runs_bound_nothing():
    empty = lanczos(Products(torch.eye(3, dtype=F)), torch.zeros(3, 0), 2)
    assert below_tridiagonals(empty) == float("-inf")
    dependent = BlockLanczos(Products(torch.eye(3, dtype=F)), torch.ones(3, 2))
    dependent.step()
    assert below_block(dependent) == float("-inf")
