"""Preconditioners: spectra, roots, the temperature, and where each kind gets its scales from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from curvops.errors import InputError
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.hessian import HessianLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.volume.cost import Cost
from curvops.volume.preconditioner import build_preconditioner, temperature
from curvops.volume.spectral_form import SpectralForm
from tests import cases


def rotation(dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


def forms() -> dict[str, tuple[SpectralForm, Tensor]]:
    """Forms beside the matrices they stand for."""
    V = rotation(6)
    values = torch.logspace(1, -2, 6, dtype=torch.float64)
    low = V[:, :2] @ torch.diag(values[:2]) @ V[:, :2].T
    rest = torch.eye(6, dtype=torch.float64) - V[:, :2] @ V[:, :2].T
    none = torch.zeros(0, dtype=torch.float64)
    return {
        "dense": (SpectralForm(6, values, V), V @ torch.diag(values) @ V.T),
        "axes": (SpectralForm(6, values, None), torch.diag(values)),
        "lowrank": (SpectralForm(6, values[:2], V[:, :2], 0.3), low + 0.3 * rest),
        "scalar": (SpectralForm(6, none, None, 2.0), 2.0 * torch.eye(6, dtype=torch.float64)),
    }


@pytest.mark.parametrize("name", forms())
def test_functions_of_a_form(name: str) -> None:
    form, A = forms()[name]
    inverse = torch.linalg.inv(A)
    root = form.root(torch.rsqrt)
    eye = torch.eye(6, dtype=torch.float64)
    S = root.forward(eye)
    assert torch.allclose(S @ S.T, inverse, atol=1e-10)
    assert torch.allclose(root.adjoint(eye), S.T, atol=1e-12)
    symmetric = root.symmetric(eye)
    assert torch.allclose(symmetric, symmetric.T, atol=1e-10)
    assert torch.allclose(symmetric @ symmetric, inverse, atol=1e-10)
    assert torch.allclose(root.inverse(S), eye, atol=1e-10)
    assert torch.allclose(root.scaled(2.0).forward(eye), 2 * S)
    assert root.logabsdet() == pytest.approx(float(torch.logdet(inverse)) / 2)
    assert form.total(torch.log) == pytest.approx(float(torch.logdet(A)))
    ends = torch.linalg.eigvalsh(A)
    assert (form.smallest(), form.largest()) == pytest.approx((float(ends[0]), float(ends[-1])))


@pytest.mark.parametrize("name", forms())
@pytest.mark.parametrize("threshold", [1e-3, 0.3])
def test_the_temperature_meets_the_threshold(name: str, threshold: float) -> None:
    form, A = forms()[name]
    eye = torch.eye(6, dtype=torch.float64)
    tau = temperature(form, threshold, std=0.7)
    covariance = torch.linalg.inv(A / tau + eye / 0.7**2)
    assert 0.5 * float((A @ covariance).trace()) == pytest.approx(threshold, rel=1e-9)
    # A mean cost that the prior stays below leaves the prior alone.
    assert math.isinf(temperature(form, 1e3, std=0.7))
    # Without a prior every direction has its share.
    assert temperature(form, threshold, math.inf) == pytest.approx(2 * threshold / 6)


def quadratic(matrix: Tensor, theta: Tensor | None = None) -> Cost:
    """The cost ½ xᵀAx around zero, as a least-squares problem of a linear model."""
    dim = len(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    X = (vectors * (values / 2).sqrt()).T
    point = torch.zeros(1, dim, dtype=matrix.dtype) if theta is None else theta.reshape(1, dim)
    model = nn.Linear(dim, 1, bias=False).to(matrix.dtype)
    targets = X @ point.reshape(-1, 1)
    loss = nn.MSELoss(reduction="sum")
    return Cost(EmpiricalRisk(model, loss, [point], [(X, targets)]))


@pytest.mark.parametrize("std", [None, 0.5])
def test_dense_is_the_root_of_the_covariance_with_its_rotation(std: float | None) -> None:
    V, values = rotation(8), torch.logspace(2, -4, 8, dtype=torch.float64)
    A = V @ torch.diag(values) @ V.T
    M = build_preconditioner(quadratic(A), "dense", threshold=1e-2, std=std)
    D = M.directions(torch.eye(8, dtype=torch.float64))
    assert float(torch.linalg.slogdet(D).logabsdet) == pytest.approx(0.0, abs=1e-9)
    precision = 0.0 if std is None else std**-2
    covariance = torch.linalg.inv(A / M.tau + precision * torch.eye(8, dtype=torch.float64))
    # Without the rotation back, D D' would be diagonal.
    assert torch.allclose(D @ D.T, covariance * math.exp(-2 * M.log_scale), rtol=1e-6)
    assert M.num_matvecs == 8
    S = M.gaussian(3.0, std=0.5).forward(torch.eye(8, dtype=torch.float64))
    inverse = torch.linalg.inv(3 * A + 4 * torch.eye(8, dtype=torch.float64))
    assert torch.allclose(S @ S.T, inverse, atol=1e-9)


def test_directions_do_not_depend_on_the_choice_of_eigenvectors() -> None:
    V = rotation(6)
    values = torch.tensor([9.0, 4.0, 4.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    M = build_preconditioner(quadratic(V @ torch.diag(values) @ V.T), "dense", threshold=0.1)
    turned = M.form.eigenvectors
    assert turned is not None
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]).double()
    pair = (M.form.eigenvalues - 4.0).abs() < 1e-9
    turned = turned * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    turned[:, pair] = turned[:, pair] @ turn
    other = replace(M, form=replace(M.form, eigenvectors=turned)).reaching(M.std)
    U = rotation(6, seed=1)
    assert torch.allclose(other.directions(U), M.directions(U), atol=1e-9)


def test_lowrank_knows_the_top_and_the_mean_of_the_rest() -> None:
    V = rotation(60)
    values = torch.cat([torch.tensor([50.0, 20.0, 9.0]), torch.full((57,), 0.25)]).double()
    cost = quadratic(V @ torch.diag(values) @ V.T)
    form = build_preconditioner(cost, "lowrank", threshold=0.1, rank=3).form
    assert form.eigenvalues.sort(descending=True).values.tolist() == pytest.approx([50, 20, 9])
    assert form.rest == pytest.approx(0.25, rel=1e-6)
    assert form.num_rest == 57
    # With the right rest it is the dense one.
    dense = build_preconditioner(cost, "dense", threshold=0.1)
    low = build_preconditioner(cost, "lowrank", threshold=0.1, rank=3)
    eye = torch.eye(60, dtype=torch.float64)
    ours, theirs = (M.directions(eye) @ M.directions(eye).T for M in (low, dense))
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_diagonals_of_both_curvatures() -> None:
    cost = Cost(EmpiricalRisk(*cases.make("ce").args))
    ggn = GGNLinearOperator.from_risk(cost.risk).to_dense().diagonal()
    exact = build_preconditioner(cost, "diagonal", threshold=0.1, std=1.0)
    assert torch.allclose(exact.form.eigenvalues, ggn)
    hessian = HessianLinearOperator.from_risk(cost.risk).to_dense().diagonal()
    probed = build_preconditioner(cost, "diagonal", threshold=0.1, std=1.0, curvature="hessian")
    assert torch.allclose(probed.form.eigenvalues, hessian.abs())


def test_adam_measures_or_reads_second_moments_and_has_the_curvatures_size() -> None:
    case = cases.make("ce")
    cost = Cost(EmpiricalRisk(*case.args))
    form = build_preconditioner(cost, "adam", threshold=0.1, std=1.0).form
    blocks = torch.cat(list(cost.source.per_sample_gradients()))
    ratio = form.eigenvalues / blocks.square().mean(0)
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio))
    trace = float(GGNLinearOperator.from_risk(cost.risk).to_dense().trace())
    assert float(form.eigenvalues.sum()) == pytest.approx(trace, rel=0.2)
    model = cases.mlp().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    X, y = case.batches[0]
    nn.functional.cross_entropy(model(X), y).backward()
    optimizer.step()
    squares = torch.cat([p.grad.reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]
    optimizer.zero_grad()
    cost = Cost(EmpiricalRisk(model, case.loss, model, case.batches))
    form = build_preconditioner(cost, "adam", threshold=0.1, std=1.0, optimizer=optimizer).form
    ratio = form.eigenvalues / squares.square()
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-5)
    stranger = torch.optim.Adam(cases.mlp().double().parameters())
    with pytest.raises(InputError, match=r"0\.weight"):
        build_preconditioner(cost, "adam", threshold=0.1, std=1.0, optimizer=stranger)


def test_the_reach_of_flat_directions_changes_without_products() -> None:
    cost = Cost(EmpiricalRisk(*cases.make("ce").args))
    M = build_preconditioner(cost, "dense", threshold=0.1, std=1.0)
    other, truth = M.reaching(0.2), build_preconditioner(cost, "dense", threshold=0.1, std=0.2)
    U = rotation(cost.dim)
    assert torch.allclose(other.directions(U), truth.directions(U))
    assert (other.tau, other.log_scale) == pytest.approx((truth.tau, truth.log_scale))


def test_none_is_the_identity() -> None:
    cost = Cost(EmpiricalRisk(*cases.make("ce").args))
    for std in (None, 0.3):
        M = build_preconditioner(cost, "none", threshold=0.1, std=std)
        U = rotation(cost.dim)
        assert torch.allclose(M.directions(U), U)


def test_scopes_have_their_own_preconditioners() -> None:
    cost = Cost(EmpiricalRisk(*cases.make("ce").args), "kl", scope="*weight")
    M = build_preconditioner(cost, "dense", threshold=0.1, std=1.0)
    assert M.dim == cost.dim < EmpiricalRisk(*cases.make("ce").args).space.dim


@pytest.mark.parametrize("kind", ["none", "adam", "diagonal", "lowrank", "dense"])
def test_the_global_rng_stays_where_it_is(kind: str, global_rng_untouched: None) -> None:
    cost = Cost(EmpiricalRisk(*cases.make("ce").args))
    for curvature in ("ggn", "hessian"):
        M = build_preconditioner(cost, kind, threshold=0.1, std=1.0, curvature=curvature)  # type: ignore[arg-type]
        assert M.dim == cost.dim


def test_errors() -> None:
    cost = Cost(EmpiricalRisk(*cases.make("ce").args))
    for kind, match in (("kfac", "KFAC"), ("shampoo", "shampoo")):
        with pytest.raises(InputError, match=match):
            build_preconditioner(cost, kind, threshold=0.1)  # type: ignore[arg-type]
    for threshold in (0.0, -1.0, math.nan, math.inf, "small"):
        with pytest.raises(InputError, match="threshold"):
            build_preconditioner(cost, "none", threshold=threshold)  # type: ignore[arg-type]
    for curvature in ("kfac", "fisher"):
        with pytest.raises(InputError, match=curvature):
            build_preconditioner(cost, "dense", threshold=0.1, curvature=curvature)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rank"):
        build_preconditioner(cost, "lowrank", threshold=0.1, rank=0)
    with pytest.raises(InputError, match="rank"):
        build_preconditioner(cost, "dense", threshold=0.1, rank=3)
    with pytest.raises(InputError, match="optimizer"):
        build_preconditioner(cost, "dense", threshold=0.1, optimizer=torch.optim.Adam([cost.theta]))


def test_singular_curvature_without_a_prior_reaches_far_but_not_to_infinity() -> None:
    diagonal = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    at_zero = build_preconditioner(quadratic(diagonal), "dense", threshold=0.1)
    assert 1e6 < at_zero.std < math.inf
    elsewhere = quadratic(diagonal, theta=torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert build_preconditioner(elsewhere, "dense", threshold=0.1).std == pytest.approx(12.5**0.5)
    regular = quadratic(torch.eye(2, dtype=torch.float64))
    assert math.isinf(build_preconditioner(regular, "dense", threshold=0.1).std)
