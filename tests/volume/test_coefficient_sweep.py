"""Sweeps: every combination, in order, and those that diverge do not stop the others."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

from curvops.errors import InputError
from curvops.volume.coefficient_sweep import CoefficientSweep, coefficient_sweep
from tests.volume.test_learning_coefficient import closed, expected, quadratic, quietly

OPTIONS: dict[str, Any] = {"num_draws": 40, "num_burnin": 40, "num_leapfrog": 3}


@pytest.fixture(scope="module")
def sweep() -> CoefficientSweep:
    return coefficient_sweep(
        closed(1.0, 2.0),
        method="sgld",
        step_sizes=(1e-3, 1e2),
        localizations=(0.5, 5.0),
        inverse_temperatures=(None, 10.0),
        seed=3,
        num_draws=400,
        num_burnin=100,
    )


def test_every_combination_in_order(sweep: CoefficientSweep) -> None:
    default = 1000 / math.log(1000)
    found = [(r.inverse_temperature, r.localization, r.step_size) for r in sweep.runs]
    assert found == [
        (pytest.approx(heat), tie, step)
        for heat in (default, 10.0)
        for tie in (0.5, 5.0)
        for step in (1e-3, 1e2)
    ]
    assert len(sweep) == 8
    run = sweep.runs[4]
    assert run.result is not None
    alone = quietly(
        closed(1.0, 2.0),
        method="sgld",
        step_size=1e-3,
        localization=0.5,
        inverse_temperature=10.0,
        seed=3,
        num_draws=400,
        num_burnin=100,
    )
    assert run.result.value == alone.value


def test_what_diverges_is_told(sweep: CoefficientSweep) -> None:
    for run in sweep.runs:
        assert (run.result is None) == (run.step_size == 1e2)
        assert ("step_size=100" in run.failure) == (run.step_size == 1e2)
    assert str(sweep).count("diverged") == 4
    assert str(sweep).startswith("8 learning coefficients (sgld, ")


def test_localization_moves_the_estimate_as_it_should() -> None:
    risk = closed(0.1, 1.0)
    ties = (0.1, 1.0, 10.0)
    sweep = coefficient_sweep(
        risk, localizations=ties, inverse_temperatures=[10.0], num_leapfrog=3, num_chains=64
    )
    for tie, run in zip(ties, sweep.runs, strict=True):
        assert run.result is not None
        truth = expected(risk.curvatures, 10.0, tie)
        assert abs(run.result.value - truth) < 3.5 * run.result.stderr


def test_bad_choices_are_named_before_any_work() -> None:
    for name in ("step_sizes", "localizations", "inverse_temperatures"):
        with pytest.raises(InputError, match=f"{name} is empty"):
            coefficient_sweep(closed(1.0), **{name: []})
    # The last combination is refused before the first has run.
    risk = closed(1.0)
    del risk.curvatures
    with pytest.raises(InputError, match=r"localization is -1\.0"):
        coefficient_sweep(risk, localizations=(1.0, -1.0))
    with pytest.raises(TypeError, match="num_drawers"):
        coefficient_sweep(closed(1.0), num_drawers=3)


def test_a_part_of_the_parameters() -> None:
    sweep = coefficient_sweep(quadratic(torch.ones(6, dtype=torch.float64)), scope="w", **OPTIONS)
    assert sweep.runs[0].result is not None
    with pytest.raises(InputError, match="matches none"):
        coefficient_sweep(quadratic(torch.ones(6, dtype=torch.float64)), scope="v", **OPTIONS)


def test_converts(sweep: CoefficientSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pandas:
        DataFrame = dict

    plain = sweep.to_dict()
    assert plain["method"] == "sgld"
    assert plain["runs"][1]["result"] is None
    assert plain["runs"][0]["result"]["localization"] == 0.5
    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    table = sweep.to_pandas()
    assert {len(column) for column in table.values()} == {8}
    assert math.isnan(table["value"][1])
    assert table["reason"][1] == sweep.runs[1].failure
    assert table["converged"][1] is False
    result = sweep.runs[2].result
    assert result is not None
    assert table["lower"][2] == result.lower


def test_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    coefficient_sweep(closed(1.0), progress=True, **OPTIONS)
    assert "estimate" in capsys.readouterr().err
