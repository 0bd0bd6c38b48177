"""Volumes over thresholds and their local exponents: regular minima and a normal crossing."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from curvops.errors import InputError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.risk import EmpiricalRisk
from curvops.volume.prior import Box
from curvops.volume.star import star_volume
from curvops.volume.volume_scaling import volume_scaling
from tests.volume.problems import crossing, quadratic, rotation, toy


def test_the_normal_crossing() -> None:
    result = volume_scaling(crossing(), [1e-8, 1e-2, 1e-4], measure=Box(-1.0, 1.0))
    assert result.thresholds.tolist() == [1e-8, 1e-4, 1e-2]
    t = result.thresholds.sqrt()
    assert torch.allclose(result.log_volume.exp(), 4 * t * (1 - t.log()), rtol=1e-5)
    assert result.exponent.tolist() == pytest.approx([0.4510, 0.4108, 0.3486], abs=5e-5)
    exact = 0.5 * (1 - 1 / (1 - t.log()))
    assert torch.allclose(result.exponent, exact, atol=1e-5)
    assert bool(((result.exponent - exact).abs() <= result.exponent_stderr + 1e-6).all())
    assert result.directions == "all"
    assert bool(result.converged.all())


def test_the_normal_crossing_by_chance() -> None:
    result = volume_scaling(
        crossing(), [1e-4, 1e-2], measure=Box(-1.0, 1.0), directions="random", num_directions=2000
    )
    t = result.thresholds.sqrt()
    truth = (4 * t * (1 - t.log())).log()
    assert bool(((result.log_volume - truth).abs() <= 4 * result.stderr).all())
    exact = 0.5 * (1 - 1 / (1 - t.log()))
    assert bool(((result.exponent - exact).abs() <= 4 * result.exponent_stderr).all())
    assert bool((result.exponent_stderr > 0).all())


def test_a_regular_minimum_has_half_its_dimension() -> None:
    risk = toy()[0]
    result = volume_scaling(risk, [1e-4, 1e-2, 1.0], measure="lebesgue", num_directions=50)
    assert torch.allclose(result.exponent, torch.full((3,), 100.0).double(), rtol=1e-4)
    steps = result.log_volume.diff() / result.thresholds.log().diff()
    assert torch.allclose(steps, torch.full((2,), 100.0).double(), rtol=1e-4)


def test_a_quartic_one_has_a_quarter() -> None:
    def model(params: dict[str, Tensor], X: Tensor) -> Tensor:
        return X * params["w"].square().sum()

    data = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    risk = EmpiricalRisk(model, nn.MSELoss(), {"w": torch.zeros(6).double()}, data)
    result = volume_scaling(
        risk, [1e-3, 1e-1], measure="lebesgue", preconditioner="none", num_directions=20
    )
    assert result.exponent.tolist() == pytest.approx([1.5, 1.5], rel=1e-4)


def test_exponents_are_slopes_of_log_volumes_under_a_gaussian_too() -> None:
    A = rotation(5) @ torch.diag(torch.logspace(1, -2, 5, dtype=torch.float64)) @ rotation(5).T
    risk = quadratic(A, torch.full((5,), 0.3).double())
    step = 1e-2
    result = volume_scaling(
        risk, [0.1 * math.exp(-step), 0.1, 0.1 * math.exp(step)], prior_std=0.6, num_directions=300
    )
    slope = float(result.log_volume[2] - result.log_volume[0]) / (2 * step)
    # With shared directions the difference has none of their noise.
    assert float(result.exponent[1]) == pytest.approx(slope, rel=1e-3)
    assert float(result.exponent[1]) < 2.5  # the prior bounds the flat directions


def test_it_is_the_star_domain_at_every_threshold() -> None:
    A = torch.diag(torch.logspace(0, -1, 4, dtype=torch.float64))
    risk = quadratic(A, torch.full((4,), 0.2).double())
    result = volume_scaling(risk, [0.01, 0.1], prior_std=0.5, num_directions=500, num_pilot=0)
    for k, threshold in enumerate((0.01, 0.1)):
        single = star_volume(
            risk, threshold=threshold, prior_std=0.5, num_directions=500, num_pilot=0
        )
        slack = 4 * math.hypot(single.stderr, float(result.stderr[k]))
        assert float(result.log_volume[k]) == pytest.approx(single.log_volume, abs=slack)


def test_lower_bounds_are_called_that() -> None:
    risk, _ = toy()
    with pytest.warns(UnconvergedWarning, match="2 of 2 thresholds"):
        result = volume_scaling(
            risk, [1e-3, 1e-2], measure="lebesgue", preconditioner="none", num_directions=20
        )
    assert str(result).count("lower bound (ESS 1") == 2
    assert not bool(result.converged.any())


def test_it_prints_and_serialises(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = quadratic(torch.eye(3, dtype=torch.float64))
    result = volume_scaling(risk, [0.1, 0.2], measure="lebesgue", num_directions=20)
    text = str(result)
    assert "20 directions, P = 3" in text
    assert "ε = 0.1" in text
    assert "exponent 1.50" in text
    assert len(json.loads(json.dumps(result.to_dict()))["exponent"]) == 2

    class Pandas:
        DataFrame = dict

    monkeypatch.setitem(__import__("sys").modules, "pandas", Pandas)
    table = result.to_pandas()
    assert {"thresholds", "log_volume", "exponent", "converged"} <= set(table)


def test_errors() -> None:
    risk = quadratic(torch.eye(3, dtype=torch.float64))
    for thresholds, match in (
        ([], "empty"),
        (0.1, "list"),
        ([0.1, 0.1], "twice"),
        ([0.1, -1.0], "threshold"),
    ):
        with pytest.raises(InputError, match=match):
            volume_scaling(risk, thresholds)


def test_the_global_state(global_rng_untouched: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        found = volume_scaling(
            crossing(), [1e-2], measure=Box(), directions="random", num_directions=5
        )
    assert found.thresholds.tolist() == [1e-2]
