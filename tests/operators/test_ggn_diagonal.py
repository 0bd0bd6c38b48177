"""The diagonal of the GGN, exact and sampled."""

from __future__ import annotations

import pytest
import torch

from curvops import EmpiricalRisk, GGNDiagonalLinearOperator
from tests import cases
from tests.operators.properties import check_formats, check_matrix

SEEDS = 150


def test_exact_against_dense(case: cases.Case) -> None:
    expected = case.truth.ggn().diag()
    operator = GGNDiagonalLinearOperator(*case.args, mode="exact", **cases.UNMERGED)
    cases.assert_matches(operator.diagonal, expected, case.dtype)
    check_matrix(operator, expected.diag(), case)


@pytest.mark.parametrize("name", ["ce-sequence", "bce-pos-weight"])
def test_formats_and_columns(name: str, reduction: str) -> None:
    case = cases.make(name, reduction)
    operator = GGNDiagonalLinearOperator(*case.args)
    check_formats(operator, case.truth.ggn().diag().diag(), case)


def test_exact_is_the_default_and_from_risk_is_the_same() -> None:
    case = cases.make("ce-weight-mask")
    operator = GGNDiagonalLinearOperator.from_risk(EmpiricalRisk(*case.args))
    cases.assert_matches(operator.diagonal, case.truth.ggn().diag())


def test_weight_decay_adds_to_every_entry() -> None:
    case = cases.make("ce")
    operator = GGNDiagonalLinearOperator(*case.args, weight_decay=0.3)
    cases.assert_matches(operator.diagonal, case.truth.ggn().diag() + 0.3)


@pytest.mark.parametrize("name", ["ce-weight-mask", "ce-sequence", "mse", "bce-pos-weight"])
def test_sampled_mean_over_seeds_is_the_diagonal(name: str) -> None:
    """The sum, and three random combinations, of the entries: within four standard errors."""
    case = cases.make(name)
    expected = case.truth.ggn().diag()
    risk = EmpiricalRisk(*case.args, check_deterministic=False)
    combinations = torch.cat(
        [torch.ones(case.dim, 1, dtype=torch.float64), cases.rand(case.dim, 3, seed=3)], dim=1
    )
    draws = torch.stack(
        [
            GGNDiagonalLinearOperator.from_risk(risk, mode="mc", seed=s, mc_samples=4).diagonal
            @ combinations
            for s in range(SEEDS)
        ]
    )
    wanted = expected @ combinations
    stderr = draws.std(0) / SEEDS**0.5
    assert stderr.min() > 0
    assert ((draws.mean(0) - wanted) / stderr).abs().max() < 4
    assert (stderr / wanted).max() < 0.04


def test_sampled_is_reproducible_and_independent_of_the_cut() -> None:
    case = cases.make("ce")

    def diagonal(seed: int, **options: object) -> torch.Tensor:
        return GGNDiagonalLinearOperator(
            *case.args, mode="mc", seed=seed, mc_samples=2, **options
        ).diagonal

    first = diagonal(1)
    assert torch.equal(first, diagonal(1))
    assert (first - diagonal(2)).abs().max() > 1e-6
    cases.assert_matches(diagonal(1, **cases.UNMERGED), first)
    assert (first >= 0).all()


def test_bad_mode_is_refused() -> None:
    case = cases.make("ce")
    with pytest.raises(ValueError, match="approximate"):
        GGNDiagonalLinearOperator(*case.args, mode="approximate")
