"""Bridges: volumes that are known, bounds that hold, answers that say when not to be trusted."""

from __future__ import annotations

import json
import math
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from scipy import integrate, special, stats
from torch import Tensor

from curvops.errors import DivergenceError, InputError, NonFiniteError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.volume.bridge import bridge_volume
from curvops.volume.bridge_result import BridgeVolume
from curvops.volume.cost import Cost
from curvops.volume.gaussian_ellipsoid import log_gaussian_ellipsoid
from curvops.volume.prior import Box
from curvops.volume.quadratic import log_ellipsoid
from tests.volume.closed_form import ClosedForm, curvature, ellipse
from tests.volume.problems import quadratic, rotation

DOUBLE = torch.float64
QUICK: dict[str, Any] = {"num_chains": 16, "num_moves": 4, "num_leapfrog": 4, "ess": 0.7}


def bridge(cost: Any, **options: Any) -> BridgeVolume:
    """Bridge, whatever the result thinks of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        return bridge_volume(cost, **options)


def log_soft(values: Tensor, theta: Tensor, std: float, beta: float) -> float:
    """log of the integral of N(w; 0, σ²) exp(-β/2 Σ λ (w - θ)²)."""
    stiff = 1 + beta * std**2 * values
    return float(-0.5 * stiff.log().sum() - 0.5 * (beta * values * theta**2 / stiff).sum())


# ---------------------------------------------------------------------- volumes that are known


def test_ellipsoid_under_lebesgue() -> None:
    values, V = torch.logspace(2, -4, 40, dtype=DOUBLE), rotation(40)
    cost = Cost(quadratic(V @ torch.diag(values) @ V.T, torch.ones(40, dtype=DOUBLE)))
    result = bridge_volume(
        cost, threshold=1e-2, measure="lebesgue", num_runs=3, num_chains=32, num_leapfrog=4
    )
    truth = log_ellipsoid(40, 1e-2, float(values.log().sum()))
    assert abs(float(result) - truth) < 1.0
    assert abs(float(result) - truth) < 4 * result.stderr
    assert result.ess > 100
    assert result.converged
    assert not result.reasons
    assert result.symbol == "log V"
    assert not result.is_global
    # The reference is exact here, so that the soft basin is too, but for the step in β.
    soft = 20 * math.log(2 * math.pi / result.beta) - 0.5 * float(values.log().sum())
    assert abs(float(result.soft) - soft) < 0.3  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["laplace", "prior"])
def test_ball_under_a_gaussian(start: str) -> None:
    theta, std, threshold = torch.full((12,), 0.4, dtype=DOUBLE), 1.3, 0.4
    ones = torch.ones(12, dtype=DOUBLE)
    precise = {**QUICK, "num_moves": 8, "num_leapfrog": 6}
    options = {"preconditioner": curvature(ones, 0.05, std)} if start == "laplace" else {}
    result = bridge(
        ellipse(ones, theta), threshold=threshold, prior_std=std, start=start, **precise, **options
    )
    # ‖w - θ‖² / σ² is noncentral chi-square.
    distance = float((theta / std).square().sum())
    truth = float(stats.ncx2.logcdf(2 * threshold / std**2, 12, distance))
    assert abs(float(result) - truth) < max(4 * result.stderr, 0.1)
    assert result.stderr < 0.4
    assert abs(float(result.soft) - log_soft(ones, theta, std, result.beta)) < 0.8  # type: ignore[arg-type]
    assert result.symbol == "log p"
    assert result.is_global == (start == "prior")


def test_unequal_curvatures_from_both_starts_and_by_splitting() -> None:
    values, std = torch.logspace(1, -2, 8, dtype=DOUBLE), 1.0
    theta = torch.linspace(-0.5, 0.5, 8, dtype=DOUBLE)
    truth = log_gaussian_ellipsoid(values, theta, std, 0.05)
    common = {"threshold": 0.05, "prior_std": std, **QUICK, "num_chains": 32}
    for options in (
        {"start": "laplace", "preconditioner": curvature(values, 0.02, std)},
        {"start": "laplace", "preconditioner": curvature(values, 0.02, std), "beta": 1.0},
        {"start": "prior"},
        {"start": "prior", "path": "splitting"},
    ):
        result = bridge(ellipse(values, theta), **common, **options)
        assert abs(float(result) - truth) < max(4 * result.stderr, 0.15), options
        assert result.stderr < 0.5, options


def test_singular_normal_crossing_from_the_prior() -> None:
    # |w₁ w₂| of two standard normals has the density (2/π) K₀.
    cost = ClosedForm(lambda x: (x[:, 0] * x[:, 1]).square(), torch.zeros(2, dtype=DOUBLE))
    result = bridge(cost, threshold=1e-6, prior_std=1.0, start="prior", **QUICK, num_runs=6)
    mass = integrate.quad(lambda r: 2 / math.pi * special.k0(r), 0, 1e-3, epsabs=1e-12)[0]
    assert abs(float(result) - math.log(mass)) < max(4 * result.stderr, 0.2)
    assert result.stderr < 0.3


def test_box_cuts_the_basin() -> None:
    # A disc of radius 1 around a corner region of a box that holds a quarter of it.
    cost = ellipse(torch.full((2,), 2.0, dtype=DOUBLE))
    box = Box(-1e-9, 5.0)
    form = curvature(torch.full((2,), 2.0, dtype=DOUBLE), 1.0, 1.0)
    result = bridge(cost, threshold=1.0, measure=box, preconditioner=form, **QUICK)
    assert abs(float(result) - math.log(math.pi / 4)) < max(4 * result.stderr, 0.1)


def test_where_the_cost_is_nan_is_outside() -> None:
    def half(x: Tensor) -> Tensor:
        # The logarithm is NaN where w₀ > 0, and its gradient then too.
        return x.square().sum(1) + 0 * (-x[:, 0] + 1e-9).log()

    cost = ClosedForm(half, torch.zeros(3, dtype=DOUBLE))
    form = curvature(torch.full((3,), 2.0, dtype=DOUBLE), 0.5, math.inf)
    result = bridge(cost, threshold=1.0, measure="lebesgue", preconditioner=form, **QUICK)
    truth = math.log(4 / 3 * math.pi / 2)
    assert abs(float(result) - truth) < max(4 * result.stderr, 0.1)


def test_a_basin_flat_in_the_quadratic_model_is_entered_on_the_ladder() -> None:
    # w₂ has no curvature at 0, but a wall at 1: the quadratic model's Gaussian is too wide.
    def wall(x: Tensor) -> Tensor:
        return 0.5 * x[:, 0].square() + 1e3 * x[:, 1].pow(8)

    cost = ClosedForm(wall, torch.zeros(2, dtype=DOUBLE))
    form = curvature(torch.tensor([1.0, 0.0], dtype=DOUBLE), 1e-3, 5.0)
    result = bridge(cost, threshold=1e-3, prior_std=5.0, preconditioner=form, **QUICK)
    assert result.reference_std < 2.0

    def width(y: float) -> float:
        rest = 1e-3 - 1e3 * y**8
        x = math.sqrt(2 * rest) if rest > 0 else 0.0
        return (2 * stats.norm.cdf(x / 5) - 1) * stats.norm.pdf(y / 5) / 5

    edge = (1e-3 / 1e3) ** (1 / 8)
    truth = math.log(integrate.quad(width, -edge, edge)[0])
    assert abs(float(result) - truth) < max(4 * result.stderr, 0.15)


def test_float32() -> None:
    values = torch.logspace(0, -2, 6)
    result = bridge(ellipse(values), threshold=0.1, prior_std=1.0, start="prior", **QUICK)
    truth = log_gaussian_ellipsoid(values, torch.zeros(6), 1.0, 0.1)
    assert abs(float(result) - truth) < max(4 * result.stderr, 0.15)
    assert result.volume.samples.dtype == DOUBLE


# ---------------------------------------------------------------------- errors and bounds


def test_intervals_hold_the_truth_and_z_is_unbiased() -> None:
    ones, held, bounded = torch.ones(4, dtype=DOUBLE), 0, 0
    truth = float(stats.chi2.logcdf(0.1, 4))
    fast = {"num_chains": 16, "num_moves": 3, "num_leapfrog": 2, "ess": 0.6, "num_runs": 3}
    samples = []
    for seed in range(20):
        result = bridge(
            ellipse(ones), threshold=0.05, prior_std=1.0, start="prior", seed=seed, **fast
        )
        samples.append(result.volume.samples - truth)
        held += result.lower <= truth <= result.upper
        bounded += float(result.chernoff) >= truth - 3 * result.chernoff.stderr  # type: ignore[arg-type, union-attr]
    assert held >= 18
    assert bounded == 20
    # Z itself is right on average, its logarithm low by half its variance.
    logs = torch.cat(samples)
    ratios = logs.exp()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(len(ratios))
    bias = float(logs.mean() + 0.5 * logs.var())
    assert abs(bias) < 4 * float(logs.std()) / math.sqrt(len(logs))


def test_chernoff_stands_above_at_the_best_temperature() -> None:
    values, zero = torch.logspace(0, -1, 10, dtype=DOUBLE), torch.zeros(10, dtype=DOUBLE)
    result = bridge(ellipse(values), threshold=0.1, prior_std=1.0, start="prior", **QUICK)
    assert result.chernoff is not None
    assert result.soft is not None
    assert_allclose(float(result.chernoff), float(result.soft) + result.beta * 0.1, rtol=1e-12)
    exact = [log_soft(values, zero, 1.0, b) + 0.1 * b for b in torch.logspace(-1, 4, 2000).tolist()]
    assert min(exact) > log_gaussian_ellipsoid(values, zero, 1.0, 0.1)
    here = log_soft(values, zero, 1.0, result.beta) + 0.1 * result.beta
    assert 0 <= here - min(exact) < 0.2  # as low as any β could make it
    assert abs(float(result.chernoff) - here) < 5 * result.chernoff.stderr + 0.05


def test_round_trip_returns_to_one() -> None:
    ones = torch.ones(6, dtype=DOUBLE)
    result = bridge(
        ellipse(ones), threshold=0.1, prior_std=1.0, start="prior", round_trip=True, **QUICK
    )
    assert result.round_trip is not None
    assert abs(float(result.round_trip)) < max(4 * result.round_trip.stderr, 0.2)
    up = [s for s in result.ladders[0] if s.stage == "temper"]
    back = [s for s in result.ladders[0] if s.stage == "return"]
    assert [s.beta for s in back] == [s.beta for s in up[-2::-1]] + [0.0]
    assert (
        bridge(ellipse(ones), threshold=0.1, prior_std=1.0, start="prior", **QUICK).round_trip
        is None
    )


def test_too_few_points_are_confessed() -> None:
    values = torch.logspace(1, -1, 10, dtype=DOUBLE)
    few = {"num_chains": 4, "num_moves": 2, "num_leapfrog": 3, "ess": 0.4}
    with pytest.warns(UnconvergedWarning, match="has not converged"):
        result = bridge_volume(
            ellipse(values), threshold=0.01, prior_std=1.0, start="prior", **few, num_runs=3
        )
    assert not result.converged
    assert "not converged" in str(result)
    with pytest.warns(UnconvergedWarning, match="single run has no error"):
        one = bridge_volume(
            ellipse(values[:3]), threshold=0.01, prior_std=1.0, start="prior", **QUICK, num_runs=1
        )
    assert math.isnan(one.stderr)
    assert one.lower == -math.inf
    assert one.upper == math.inf


# ---------------------------------------------------------------------- as a function


def test_seeds_and_side_effects(global_rng_untouched: None) -> None:
    risk = quadratic(
        torch.diag(torch.tensor([1.0, 3.0], dtype=DOUBLE)), torch.ones(2, dtype=DOUBLE)
    )
    before = risk.theta.clone()
    options = {"threshold": 0.1, "prior_std": 1.0, **QUICK, "num_runs": 2}
    first, again = (bridge(Cost(risk), seed=7, **options) for _ in range(2))
    other = bridge(Cost(risk), seed=8, **options)
    assert first.volume.samples.tolist() == again.volume.samples.tolist()
    assert first.volume.samples.tolist() != other.volume.samples.tolist()
    assert first.volume.samples[0] != first.volume.samples[1]
    generator = torch.Generator().manual_seed(3)
    bridge(Cost(risk), seed=generator, **options)
    assert torch.equal(risk.theta, before)


class Frame(dict[str, Any]):
    """What stands for a data frame: its columns."""


def test_result_as_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones(3, dtype=DOUBLE)
    cost = ellipse(ones)
    result = bridge(cost, threshold=0.1, prior_std=1.0, start="prior", **QUICK, num_runs=2)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["volume"]["value"] == float(result)
    assert plain["is_global"] is True
    assert plain["method"] == "bridge"
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    table = result.to_pandas()
    assert isinstance(table, Frame)
    assert {len(column) for column in table.values()} == {sum(map(len, result.ladders))}
    last = dict(zip(table["run"], table["log_z"], strict=True))
    assert list(last.values()) == result.volume.samples.tolist()
    assert result.num_evaluations == cost.num_evaluations
    text = str(result)
    assert text.startswith("log p(cost ≤ 0.1 units of the loss) = -")
    assert "Chernoff's bound" in text
    assert "the whole level set" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"start": "middle"}, "start must be"),
        ({"path": "straight"}, "path must be"),
        ({"path": "splitting", "start": "laplace"}, 'use start="prior"'),
        ({"measure": "lebesgue", "start": "prior"}, 'needs measure="gaussian"'),
        ({"beta": 1.0, "start": "prior"}, "beta= is of the Laplace Gaussian"),
        ({"beta": -1.0, "start": "laplace"}, "beta is -1.0"),
        ({"ess": 1.0}, "ess is 1.0"),
        ({"acceptance": 0.0}, "acceptance is 0.0"),
        ({"num_runs": 0}, "num_runs must be"),
        ({"num_leapfrog": 1.5}, "num_leapfrog must be"),
        ({"num_chains": 1}, "learns from the other"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    ones = torch.ones(3, dtype=DOUBLE)
    cost = ellipse(ones)
    defaults = {"threshold": 0.1, "prior_std": 1.0, "start": "prior"}
    with pytest.raises(InputError, match=message):
        bridge_volume(cost, **{**defaults, **options})  # type: ignore[arg-type]
    assert cost.num_evaluations <= 1


def test_singular_curvature_without_a_width() -> None:
    values = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    with pytest.raises(InputError, match="singular"):
        bridge_volume(
            ellipse(values),
            threshold=0.1,
            measure="lebesgue",
            preconditioner=curvature(values, 0.1, math.inf),
        )


def test_nan_at_the_anchor() -> None:
    cost = ClosedForm(lambda x: x.sum(1) * torch.nan, torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(NonFiniteError, match="at θ\\* is nan"):
        bridge_volume(cost, threshold=0.1, prior_std=1.0, start="prior")  # type: ignore[arg-type]


def test_nan_everywhere_else() -> None:
    def spike(x: Tensor) -> Tensor:
        return x.square().sum(1) + 0 * (1e-300 - x.square().sum(1)).log()

    cost = ClosedForm(spike, torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(DivergenceError, match="at all of 256 draws"):
        bridge_volume(cost, threshold=0.1, prior_std=1.0, start="prior")  # type: ignore[arg-type]
    form = curvature(torch.ones(2, dtype=DOUBLE), 0.1, 1.0)
    with pytest.raises(DivergenceError, match="any neighbourhood"):
        bridge_volume(cost, threshold=0.1, prior_std=1.0, preconditioner=form)  # type: ignore[arg-type]


def test_chains_that_cannot_move() -> None:
    calls = 0

    def breaks(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        size = x.square().sum(1)
        return size if calls <= 2 else torch.nan * size

    cost = ClosedForm(breaks, torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(DivergenceError, match="have stopped moving"):
        bridge_volume(cost, threshold=1e-9, prior_std=1.0, start="prior", **QUICK)  # type: ignore[arg-type]


def test_a_ladder_without_end() -> None:
    ones = torch.ones(3, dtype=DOUBLE)
    with pytest.raises(DivergenceError, match=r"max_rungs=3.*beta="):
        bridge_volume(
            ellipse(ones), threshold=1e-6, prior_std=1.0, start="prior", max_rungs=3, **QUICK
        )


def test_a_cost_that_cannot_be_reached() -> None:
    constant = ClosedForm(lambda x: 0 * x.sum(1) + 1.0, torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(DivergenceError, match="have the cost 1"):
        bridge_volume(constant, threshold=0.1, prior_std=1.0, start="prior", **QUICK)  # type: ignore[arg-type]
    with pytest.raises(DivergenceError, match="share the lowest cost"):
        bridge_volume(
            constant, threshold=0.1, prior_std=1.0, start="prior", path="splitting", **QUICK
        )  # type: ignore[arg-type]


def test_the_whole_space_lies_inside() -> None:
    values = torch.full((3,), 1e-6, dtype=DOUBLE)
    for options in ({"start": "prior"}, {"preconditioner": curvature(values, math.inf, 1.0)}):
        result = bridge(ellipse(values), threshold=1.0, prior_std=1.0, **QUICK, **options)
        assert abs(float(result)) < 0.05
        assert result.beta == 0.0
