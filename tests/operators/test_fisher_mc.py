"""The Monte-Carlo Fisher: its mean over seeds is the GGN, and the draw belongs to the datum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, FisherMCLinearOperator
from tests import cases, truth
from tests.operators.properties import check_formats, recut

SEEDS = 500
WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
POS_WEIGHT = torch.tensor([2.0, 0.5], dtype=torch.float64)


def _net(*last: nn.Module, outputs: int = 3) -> nn.Module:
    with cases.seeded(0):
        return cases.mlp(2, 2, outputs, *last).double()


def _masked(*shape: int) -> Tensor:
    y = cases.randint(3, *shape, seed=2)
    y[0], y[4] = -100, -100
    return y


X = cases.randn(8, 2, seed=1)
X_POSITIONS = cases.randn(8, 3, 2, seed=1)
BINARY = cases.randint(2, 8, 2, seed=2).double()


def _positions(channels_last: bool, outputs: int = 3) -> nn.Module:
    with cases.seeded(0):
        return cases.PerPosition(2, 2, outputs, channels_last=channels_last).double()


PROBLEMS: dict[str, tuple[nn.Module, Any, Tensor, Tensor]] = {
    "ce": (_net(), nn.CrossEntropyLoss, X, cases.randint(3, 8, seed=2)),
    "ce-weight-mask": (
        _net(),
        lambda reduction: nn.CrossEntropyLoss(weight=WEIGHT, reduction=reduction),
        X,
        _masked(8),
    ),
    "ce-weight-mask-smoothing": (
        _net(),
        lambda reduction: nn.CrossEntropyLoss(
            weight=WEIGHT, label_smoothing=0.4, reduction=reduction
        ),
        X,
        _masked(8),
    ),
    "ce-probabilities-weight": (
        _net(),
        lambda reduction: nn.CrossEntropyLoss(weight=WEIGHT, reduction=reduction),
        X,
        cases.randn(8, 3, seed=2).softmax(1),
    ),
    "ce-positions-weight-mask": (
        _positions(False),
        lambda reduction: nn.CrossEntropyLoss(weight=WEIGHT, reduction=reduction),
        X_POSITIONS,
        _masked(8, 3),
    ),
    "mse": (_net(outputs=2), nn.MSELoss, X, cases.randn(8, 2, seed=2)),
    "mse-positions": (_positions(True, 2), nn.MSELoss, X_POSITIONS, cases.randn(8, 3, 2, seed=2)),
    "bce": (_net(outputs=2), nn.BCEWithLogitsLoss, X, BINARY),
    "bce-weight-pos-weight": (
        _net(outputs=2),
        lambda reduction: nn.BCEWithLogitsLoss(
            weight=POS_WEIGHT.flip(0), pos_weight=POS_WEIGHT, reduction=reduction
        ),
        X,
        BINARY,
    ),
    "bce-soft-pos-weight": (
        _net(outputs=2),
        lambda reduction: nn.BCEWithLogitsLoss(pos_weight=POS_WEIGHT, reduction=reduction),
        X,
        cases.rand(8, 2, seed=2),
    ),
}


def _problem(name: str, reduction: str = "mean") -> tuple[Any, Any, Any, Any]:
    model, loss, inputs, y = PROBLEMS[name]
    return model, loss(reduction=reduction), cases.perturbed(model), cases.cut(inputs, y)


def _dense(problem: tuple[Any, Any, Any, Any]) -> truth.Dense:
    model, loss, params, batches = problem
    return truth.Dense(truth.module_predict(model), loss, params, batches)


def _check_mean(
    problem: tuple[Any, Any, Any, Any],
    expected: Tensor,
    *,
    seeds: int = 100,
    mc_samples: int = 8,
    **options: Any,
) -> None:
    """Mean over seeds of ``u^T F v`` within four standard errors of ``u^T expected v``.

    Eight forms; a right operator fails one of them with probability 6e-5, and the seeds are
    fixed. The error is small enough to see a wrong scale: that of the best form is below 2 %,
    so that a factor of 1.1 in the weights or the normaliser is five standard errors off.
    """
    risk = EmpiricalRisk(*problem, check_deterministic=False)
    dim = expected.shape[0]
    probes = cases.randn(dim, 4, seed=11)
    probes[:, 0] = torch.linalg.eigh(expected).eigenvectors[:, -1]
    forms = []
    for seed in range(seeds):
        operator = FisherMCLinearOperator.from_risk(
            risk, seed=seed, mc_samples=mc_samples, **options
        )
        forms.append(_forms(operator, probes))
    stacked, wanted = torch.stack(forms), _forms(expected, probes)
    stderr = stacked.std(0) / seeds**0.5
    z = (stacked.mean(0) - wanted) / stderr
    assert z.abs().max() < 4, z
    assert (stderr / wanted.abs()).min() < 0.02


def _forms(matrix: Any, probes: Tensor) -> Tensor:
    products = matrix @ probes
    return torch.cat([(probes * products).sum(0), probes[:, 0] @ products])


@pytest.mark.parametrize("name", PROBLEMS)
def test_mean_over_seeds_is_the_ggn(name: str) -> None:
    problem = _problem(name)
    _check_mean(problem, _dense(problem).ggn())


@pytest.mark.parametrize("name", ["ce-weight-mask", "mse", "bce-weight-pos-weight"])
def test_mean_over_seeds_is_the_ggn_of_the_sum(name: str) -> None:
    problem = _problem(name, "sum")
    _check_mean(problem, _dense(problem).ggn())


@pytest.mark.parametrize("name", ["ce-positions-weight-mask", "mse-positions"])
def test_mean_over_seeds_by_datum(name: str) -> None:
    """Independent labels at the positions of a sequence: the cross terms vanish on average."""
    problem = _problem(name)
    _check_mean(problem, _dense(problem).ggn(), per="datum")


def test_per_datum_is_another_matrix_with_the_rank_of_the_data() -> None:
    problem = _problem("mse-positions")
    position = FisherMCLinearOperator(*problem, seed=0).to_dense()
    datum = FisherMCLinearOperator(*problem, seed=0, per="datum").to_dense()
    assert torch.linalg.matrix_rank(datum, hermitian=True) <= 8
    assert torch.linalg.matrix_rank(position, hermitian=True) > 8


def test_mean_over_seeds_with_one_sample() -> None:
    problem = _problem("ce-weight-mask")
    _check_mean(problem, _dense(problem).ggn(), seeds=SEEDS, mc_samples=1)


def test_negative_log_likelihood_draws_from_its_probabilities() -> None:
    """NLL on log-probabilities is CE on logits: the mean over seeds is the GGN of the latter."""
    model, _, params, batches = _problem("ce-weight-mask")
    with_log_softmax = nn.Sequential(*model, nn.LogSoftmax(1))
    expected = _dense((model, nn.CrossEntropyLoss(weight=WEIGHT), params, batches)).ggn()
    _check_mean((with_log_softmax, nn.NLLLoss(weight=WEIGHT), params, batches), expected)


def test_bce_of_probabilities_draws_from_them() -> None:
    """BCE behind a sigmoid is BCE on logits: the mean over seeds is the GGN of the latter."""
    model, _, params, batches = _problem("bce")
    with_sigmoid = nn.Sequential(*model, nn.Sigmoid())
    loss = nn.BCELoss(weight=POS_WEIGHT)
    logits = nn.BCEWithLogitsLoss(weight=POS_WEIGHT)
    expected = _dense((model, logits, params, batches)).ggn()
    _check_mean((with_sigmoid, loss, params, batches), expected)


def test_more_samples_have_proportionally_less_variance() -> None:
    risk = EmpiricalRisk(*_problem("ce"), check_deterministic=False)
    probe = cases.randn(risk.space.dim, seed=11)

    def variance(mc_samples: int) -> Tensor:
        draws = [
            probe @ (FisherMCLinearOperator.from_risk(risk, mc_samples=mc_samples, seed=s) @ probe)
            for s in range(SEEDS)
        ]
        return torch.stack(draws).var()

    # A variance over 400 draws has a relative error near 10 %; the ratio is 4 +- 0.6.
    assert 2.4 < (variance(1) / variance(4)).item() < 6.4


def test_one_draw_per_term_has_its_rank() -> None:
    """CE, 8 data, one label each: a sum of 8 outer products, each a gradient at a label."""
    problem = _problem("ce")
    matrix = FisherMCLinearOperator(*problem, seed=3).to_dense()
    dense = _dense(problem)
    jacobian = dense.jacobian().reshape(8, 3, -1)
    p = dense.prediction().softmax(1)
    candidates = torch.stack(  # gradient of datum n at label c
        [torch.stack([(p[n] - torch.eye(3)[c]) @ jacobian[n] for c in range(3)]) for n in range(8)]
    )
    # Exactly one of the 3^8 combinations of labels gives the matrix: solve for indicators.
    outer = torch.einsum("ncp,ncq->pqnc", candidates, candidates).reshape(-1, 24) / 8
    assert torch.linalg.matrix_rank(outer) == 24
    indicators = torch.linalg.lstsq(outer, matrix.reshape(-1, 1)).solution.reshape(8, 3)
    torch.testing.assert_close(indicators, indicators.round(), rtol=0, atol=1e-6)
    torch.testing.assert_close(indicators.round().sum(1), torch.ones(8, dtype=torch.float64))


def test_same_seed_same_bits_other_seed_other_matrix() -> None:
    problem = _problem("ce-weight-mask")
    first = FisherMCLinearOperator(*problem, seed=1, keep="graph")
    again = FisherMCLinearOperator(*problem, seed=1, keep="graph")
    other = FisherMCLinearOperator(*problem, seed=2, keep="graph")
    x = cases.randn(first.shape[1], 3, seed=5)
    assert torch.equal(first @ x, again @ x)
    assert torch.equal(first @ x, first @ x)  # the draw is fixed, not renewed by a product
    assert (first @ x - other @ x).abs().max() > 1e-6


def test_the_draw_does_not_depend_on_the_columns() -> None:
    operator = FisherMCLinearOperator(*_problem("ce"), seed=1)
    x = cases.randn(operator.shape[1], 5, seed=5)
    whole = operator @ x
    for k in range(5):
        cases.assert_matches(operator @ x[:, k], whole[:, k])


@pytest.mark.parametrize("mc_samples", [1, 3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_draw_does_not_depend_on_the_cut(name: str, mc_samples: int) -> None:
    model, loss, params, batches = _problem(name)
    _, _, inputs, y = PROBLEMS[name]
    options = {"seed": 7, "mc_samples": mc_samples}
    expected = FisherMCLinearOperator(
        model, loss, params, batches, **options, **cases.UNMERGED
    ).to_dense()
    assert expected.abs().max() > 0
    for sizes in [(8,), (1,) * 8, (5, 3)]:
        data = cases.cut(inputs, y, sizes)
        for merge in (False, "auto"):
            operator = FisherMCLinearOperator(
                model, loss, params, data, **options, merge_batches=merge
            )
            cases.assert_matches(operator.to_dense(), expected)


@pytest.mark.parametrize("name", ["ce", "mse", "bce"])
def test_the_draw_does_not_depend_on_the_cut_of_many_data(name: str) -> None:
    """torch's generators draw in blocks: a cut must not fall between their steps."""
    model, loss, inputs, y = PROBLEMS[name]
    many, labels = inputs.repeat(20, 1), y.repeat(20, *[1] * (y.ndim - 1))
    x = cases.randn(_dim(model), seed=5)

    def product(sizes: tuple[int, ...]) -> Tensor:
        data = cases.cut(many, labels, sizes)
        problem = (model, loss(reduction="mean"), cases.perturbed(model), data)
        return FisherMCLinearOperator(*problem, seed=3, mc_samples=2, **cases.UNMERGED) @ x

    expected = product((160,))
    for sizes in ((17, 143), (1, 64, 95), (100, 7, 53)):
        cases.assert_matches(product(sizes), expected)


def _dim(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_global_generators_are_neither_read_nor_advanced() -> None:
    problem = _problem("ce")
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = FisherMCLinearOperator(*problem, seed=1).to_dense()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    torch.manual_seed(1)
    assert torch.equal(FisherMCLinearOperator(*problem, seed=1).to_dense(), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_formats_and_columns(dtype: torch.dtype) -> None:
    case = cases.make("ce-weight-mask", "mean", dtype)
    operator = FisherMCLinearOperator(*case.args, seed=4, **cases.UNMERGED)
    assert operator.SELF_ADJOINT is True
    assert operator.POSITIVE_SEMIDEFINITE is True
    assert operator.dtype == dtype
    dense = operator.to_dense().double()
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert eigenvalues[0] > -1e-5 * eigenvalues[-1]
    cases.assert_matches(dense.to(dtype), dense.T, dtype)
    check_formats(operator, dense, case)


def test_weight_decay_adds_its_identity() -> None:
    problem = _problem("ce")
    plain = FisherMCLinearOperator(*problem, seed=1).to_dense()
    decayed = FisherMCLinearOperator(*problem, seed=1, weight_decay=0.3).to_dense()
    cases.assert_matches(decayed, plain + 0.3 * torch.eye(len(plain), dtype=torch.float64))


def test_recut_data_of_a_case_in_another_order_is_another_draw() -> None:
    """The draw goes with the place of a datum in the data: a new order is a new sample."""
    case = cases.make("ce")
    order = torch.arange(8).flip(0)
    first = FisherMCLinearOperator(*case.args, seed=1).to_dense()
    data = recut(case, cases.SIZES, order)
    second = FisherMCLinearOperator(case.model, case.loss, case.params, data, seed=1).to_dense()
    assert (first - second).abs().max() > 1e-8


def test_a_loss_without_a_distribution_is_refused() -> None:
    case = cases.make("huber")
    with pytest.raises(ValueError, match="HuberLoss"):
        FisherMCLinearOperator(*case.args) @ case.vectors(1)


@pytest.mark.parametrize("mc_samples", [0, -1])
def test_bad_number_of_samples_is_refused(mc_samples: int) -> None:
    with pytest.raises(ValueError, match="mc_samples"):
        FisherMCLinearOperator(*_problem("ce"), mc_samples=mc_samples)
