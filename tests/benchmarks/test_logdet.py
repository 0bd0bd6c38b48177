"""The log-determinant benchmark on a matrix of forty: its truth, its claims, its reasons."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import logdet
from benchmarks.options import Options
from benchmarks.results import MEASURED
from curvops.operators import DiagonalLinearOperator

OPTIONS = Options(problems=("digits",), say=lambda line: None)


def task(*eigenvalues: float) -> logdet.Task:
    values = torch.tensor(eigenvalues, dtype=torch.float64).sort().values
    return logdet.Task("GGN", DiagonalLinearOperator(values), values, torch.diag(values))


def method(library: str, variant: str) -> logdet.Method:
    return next(m for m in logdet.METHODS if (m.library, m.variant) == (library, variant))


def test_truth_is_of_the_absolute_value_where_there_is_none_otherwise() -> None:
    indefinite = task(-0.5, 1.0, 2.0)
    assert indefinite.on_negative(1.0) == "raise"
    assert indefinite.truth(1.0) == pytest.approx(float(torch.tensor([0.5, 2.0, 3.0]).log().sum()))
    assert indefinite.on_negative(0.1) == "abs"
    assert indefinite.truth(0.1) == pytest.approx(float(torch.tensor([0.6, 1.1, 2.1]).log().sum()))


@pytest.mark.parametrize("variant", ["krylov", "slq"])
def test_rows_of_ours(variant: str) -> None:
    row = logdet._measured(
        OPTIONS, task(*torch.linspace(1, 3, 400).tolist()), method("curvops", variant), 0.1, 3
    )
    assert row.status == MEASURED
    assert row.rounds == 3
    assert row.extra["held"] == 1.0
    assert 0 < row.value < row.extra["claimed"]
    assert 250 < row.extra["products"] <= logdet.PRODUCTS
    assert "claimed" in logdet.table([row]).headers


def test_reasons_that_there_is_no_number() -> None:
    hessian = dataclasses.replace(task(1.0, 2.0), name="Hessian")
    row = logdet._measured(OPTIONS, hessian, method("curvops", "gram"), 0.1, 3)
    assert row.status == "not of the form V Vᵀ"
    skerch = logdet._measured(OPTIONS, hessian, method("skerch", ""), 0.1, 3)
    assert skerch.value is None
    assert skerch.status.startswith("not ")
    assert len(logdet.table([row, skerch]).rows) == 2

    def broken(*_: object) -> logdet.Claim:
        raise ValueError("no convergence")

    failed = logdet._measured(OPTIONS, hessian, logdet.Method("peer", "", broken), 0.1, 3)
    assert (failed.status, failed.note) == ("fails", "ValueError: no convergence")
