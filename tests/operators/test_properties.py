"""Properties that hold for every small network, loss, cut and vector (hypothesis)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from curvops import (
    EFLinearOperator,
    EmpiricalRisk,
    FisherMCLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
)
from tests import cases, truth

ACTIVATIONS = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.SiLU, nn.GELU, nn.Softplus, nn.Identity)
LOSSES = ("ce", "ce-weight-mask", "ce-smooth", "mse", "bce", "huber", "function")
KINDS = (
    HessianLinearOperator,
    GGNLinearOperator,
    EFLinearOperator,
    FisherMCLinearOperator,
    GGNDiagonalLinearOperator,
)
SEMIDEFINITE = (
    GGNLinearOperator,
    EFLinearOperator,
    FisherMCLinearOperator,
    GGNDiagonalLinearOperator,
)


def quartic(prediction: Tensor, y: Tensor) -> Tensor:
    """A convex loss that the library cannot know."""
    return (prediction - y).pow(4).sum(1).mean()


@dataclass(frozen=True)
class Problem:
    """A network, a loss and its data, drawn at random."""

    model: nn.Module
    loss: Any
    params: dict[str, Tensor]
    X: Tensor
    y: Tensor
    sizes: tuple[int, ...]
    options: dict[str, Any]
    seed: int
    has_distribution: bool

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return cases.cut(self.X, self.y, self.sizes)

    @property
    def dim(self) -> int:
        return sum(p.numel() for p in self.params.values())

    @property
    def dense(self) -> truth.Dense:
        predict = truth.module_predict(self.model)
        return truth.Dense(predict, self.loss, self.params, self.batches)

    def build(self, kind: Any, **changes: Any) -> Any:
        arguments = {"data": self.batches, **cases.UNMERGED, **self.options, **changes}
        data = arguments.pop("data")
        return kind(self.model, self.loss, self.params, data, **arguments)

    def vectors(self, columns: int) -> Tensor:
        return cases.randn(self.dim, columns, seed=self.seed + 1)


@st.composite
def partitions(draw: st.DrawFn, total: int) -> tuple[int, ...]:
    """Ragged batch sizes that add up to ``total``."""
    sizes = []
    while total:
        sizes.append(draw(st.integers(1, total)))
        total -= sizes[-1]
    return tuple(sizes)


@st.composite
def problems(draw: st.DrawFn, *, distribution: bool = False) -> Problem:
    seed = draw(st.integers(0, 10_000))
    widths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    losses = [n for n in LOSSES if not distribution or n not in ("huber", "function")]
    name = draw(st.sampled_from(losses))
    if name.startswith("ce"):
        widths[-1] = max(widths[-1], 2)
    activation = draw(st.sampled_from(ACTIVATIONS))
    bias = draw(st.booleans())
    layers: list[nn.Module] = []
    with cases.seeded(seed):
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
        model = nn.Sequential(*layers[:-1]).double()
    n, c = draw(st.integers(1, 7)), widths[-1]
    sizes = draw(partitions(n))
    reduction = draw(st.sampled_from(cases.REDUCTIONS))
    y, options = _targets(name, n, c, seed), {}
    loss: Any
    match name:
        case "ce":
            loss = nn.CrossEntropyLoss(reduction=reduction)
        case "ce-weight-mask":
            weight = cases.rand(c, seed=seed) + 0.1
            loss = nn.CrossEntropyLoss(weight=weight, reduction=reduction)
        case "ce-smooth":
            loss = nn.CrossEntropyLoss(label_smoothing=0.2, reduction=reduction)
        case "mse":
            loss = nn.MSELoss(reduction=reduction)
        case "bce":
            pos_weight = cases.rand(c, seed=seed) + 0.1
            loss = nn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction=reduction)
        case "huber":
            loss = nn.HuberLoss(delta=0.5, reduction=reduction)
        case "function":
            loss, options = quartic, {"reduction": "mean"}
    return Problem(
        model,
        loss,
        cases.perturbed(model, seed=seed + 2),
        cases.randn(n, widths[0], seed=seed + 3),
        y,
        sizes,
        options,
        seed,
        name not in ("huber", "function"),
    )


def _targets(name: str, n: int, c: int, seed: int) -> Tensor:
    if name.startswith("ce"):
        y = cases.randint(c, n, seed=seed)
        if name == "ce-weight-mask":
            y[1::3] = -100  # never the first: something is left to average over
        return y
    if name == "bce":
        return cases.randint(2, n, c, seed=seed).double()
    return cases.randn(n, c, seed=seed)


class _Reread:
    """New tensors in every pass, so that nothing can be kept at no cost."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(X.clone(), y.clone()) for X, y in self.batches])


def _assert_close(actual: Tensor, expected: Tensor, scale: Tensor | float) -> None:
    """Error relative to the size of what was added up, not of what may have cancelled."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() if actual.numel() else torch.tensor(0.0)
    assert error <= 1e-10 * float(scale) + 1e-13


def _skip_without_distribution(kind: Any, problem: Problem) -> bool:
    return kind is FisherMCLinearOperator and not problem.has_distribution


@given(problem=problems())
def test_dense_truth(problem: Problem) -> None:
    dense = problem.dense
    risk = problem.build(EmpiricalRisk)
    scale = 1 + dense.hessian().abs().max()
    _assert_close(risk.loss(), dense.loss(), 1 + dense.loss().abs())
    _assert_close(risk.gradient(), dense.gradient(), 1 + dense.gradient().abs().max())
    _assert_close(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian(), scale)
    ggn = dense.ggn()
    _assert_close(GGNLinearOperator.from_risk(risk).to_dense(), ggn, 1 + ggn.abs().max())
    diagonal = GGNDiagonalLinearOperator.from_risk(risk).diagonal
    _assert_close(diagonal, ggn.diag(), 1 + ggn.abs().max())
    jacobian = dense.jacobian()
    actual = JacobianLinearOperator.from_risk(risk).to_dense()
    _assert_close(actual, jacobian, 1 + jacobian.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@given(problem=problems(), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_linear(kind: Any, problem: Problem, a: float, b: float) -> None:
    if _skip_without_distribution(kind, problem):
        return
    operator = problem.build(kind)
    u, v = problem.vectors(2).T
    Au, Av = operator @ u, operator @ v
    scale = 1 + abs(a) * Au.abs().max() + abs(b) * Av.abs().max()
    _assert_close(operator @ (a * u + b * v), a * Au + b * Av, scale)


@pytest.mark.parametrize("kind", KINDS)
@given(problem=problems())
def test_symmetric_and_semidefinite(kind: Any, problem: Problem) -> None:
    if _skip_without_distribution(kind, problem):
        return
    operator = problem.build(kind)
    u, v = problem.vectors(2).T
    Au, Av = operator @ u, operator @ v
    scale = 1 + u.norm() * Av.norm() + v.norm() * Au.norm()
    _assert_close(u @ Av, v @ Au, scale)
    _assert_close(operator.T @ u, Au, 1 + Au.abs().max())
    if kind in SEMIDEFINITE:
        assert u @ Au >= -1e-12 * scale


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), problem=problems())
def test_the_cut_does_not_matter(kind: Any, data: st.DataObject, problem: Problem) -> None:
    """Nor whether batches are merged or kept in memory. The order of the data stays: FisherMC
    draws for a datum by its place."""
    if _skip_without_distribution(kind, problem):
        return
    x = problem.vectors(2)
    expected = problem.build(kind) @ x
    sizes = data.draw(partitions(len(problem.y)))
    recut = cases.cut(problem.X, problem.y, sizes)
    for changes in (
        {"data": recut},
        {"data": recut, "merge_batches": "auto"},
        {"data": _Reread(recut), "cache_data": 0},
        {"data": recut, "check_deterministic": False},
    ):
        _assert_close(problem.build(kind, **changes) @ x, expected, 1 + expected.abs().max())


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not FisherMCLinearOperator])
@given(data=st.data(), problem=problems())
def test_the_order_does_not_matter(kind: Any, data: st.DataObject, problem: Problem) -> None:
    x = problem.vectors(2)
    expected = problem.build(kind) @ x
    order = torch.tensor(data.draw(st.permutations(range(len(problem.y)))))
    shuffled = cases.cut(problem.X[order], problem.y[order], problem.sizes)
    _assert_close(problem.build(kind, data=shuffled) @ x, expected, 1 + expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@given(problem=problems(), columns=st.integers(0, 5), split=st.integers(0, 5))
def test_columns_and_formats_do_not_matter(
    kind: Any, problem: Problem, columns: int, split: int
) -> None:
    if _skip_without_distribution(kind, problem):
        return
    operator = problem.build(kind)
    x = problem.vectors(columns)
    expected = operator @ x
    assert expected.shape == (problem.dim, columns)
    scale = 1 + (expected.abs().max() if columns else 0)
    split = min(split, columns)
    apart = torch.cat([operator @ x[:, :split], operator @ x[:, split:]], dim=1)
    _assert_close(apart, expected, scale)
    one_by_one = [operator @ column for column in x.T]
    if one_by_one:
        _assert_close(torch.stack(one_by_one, dim=1), expected, scale)
    pieces = x.split([p.numel() for p in problem.params.values()])
    blocks = {
        name: piece.reshape(*p.shape, columns)
        for piece, (name, p) in zip(pieces, problem.params.items(), strict=True)
    }
    for given_as in (blocks, list(blocks.values())):
        answer = operator @ given_as
        assert type(answer) is type(given_as)
        parts = answer.values() if isinstance(answer, dict) else answer
        flat = [b.reshape(p.numel(), columns) for b, p in zip(parts, problem.params.values())]
        _assert_close(torch.cat(flat), expected, scale)


@given(problem=problems(distribution=True), seed=st.integers(0, 2**40), other=st.integers(0, 9))
def test_seeds_are_isolated(problem: Problem, seed: int, other: int) -> None:
    """The same seed gives the same bits, whatever was drawn before, by whomever."""
    x = problem.vectors(2)
    expected = problem.build(FisherMCLinearOperator, seed=seed) @ x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(other)
        torch.rand(other)
        problem.build(FisherMCLinearOperator, seed=other) @ x
        generator = torch.Generator().manual_seed(other)
        problem.build(FisherMCLinearOperator, seed=generator) @ x
        assert torch.equal(problem.build(FisherMCLinearOperator, seed=seed) @ x, expected)


@given(problem=problems(distribution=True))
def test_the_range_of_the_fishers_is_that_of_the_jacobian(problem: Problem) -> None:
    """EF, FisherMC and GGN are J^T (..) J: they vanish where the Jacobian does."""
    jacobian = problem.dense.jacobian()
    _, s, vt = torch.linalg.svd(jacobian)
    rank = int((s > 1e-9 * s[0]).sum()) if s[0] > 0 else 0
    kernel = vt[rank:].T
    for kind in SEMIDEFINITE[:-1]:
        operator = problem.build(kind)
        size = 1 + operator.to_dense().abs().max()
        product = operator @ kernel
        assert product.numel() == 0 or product.abs().max() <= 1e-8 * size
