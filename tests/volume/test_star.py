"""Star domains whose volume is known, and what a result says about itself."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops.errors import InputError, MissingDependencyError, NonFiniteError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.risk import EmpiricalRisk
from curvops.volume.ball import log_unit_ball
from curvops.volume.cost import Cost
from curvops.volume.preconditioner import build_preconditioner
from curvops.volume.prior import Box
from curvops.volume.quadratic import quadratic_volume
from curvops.volume.spectral_form import Root
from curvops.volume.star import star_volume
from curvops.volume.star_result import StarVolume
from tests import cases
from tests.volume.problems import quadratic, rotation, toy


def quietly(*args: Any, **options: Any) -> StarVolume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        return star_volume(*args, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_toy_quadratic(dtype: torch.dtype) -> None:
    risk, values = toy(dtype)
    exact = float(quadratic_volume(values, threshold=1e-2))
    assert exact == pytest.approx(-410.2, abs=0.05)
    dense = star_volume(
        risk, threshold=1e-2, measure="lebesgue", preconditioner="dense", num_directions=300
    )
    assert dense.log_volume == pytest.approx(exact, abs=0.2 if dtype == torch.float32 else 0.001)
    assert dense.ess > 290
    assert dense.converged
    # Isotropic directions: the best of so many is far from the truth, though above what the gap
    # between the arithmetic and the geometric mean of the eigenvalues makes of a typical one.
    gap = 100 * float(values.mean().log() - values.log().mean())
    isotropic = quietly(
        risk, threshold=1e-2, measure="lebesgue", preconditioner="none", num_directions=1000
    )
    assert isotropic.log_volume == pytest.approx(-773, abs=25)
    assert isotropic.log_volume > exact - gap
    assert not isotropic.converged
    assert isotropic.ess < 10


def test_without_the_rotation_the_exact_hessian_is_no_better_than_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the slip of published code would do here; and what the test above would find."""
    risk, values = toy()

    def slip(self: Root, Z: Tensor) -> Tensor:
        assert self.form.eigenvectors is not None
        return self.values.to(Z).unsqueeze(1) * (self.form.eigenvectors.T @ Z)

    monkeypatch.setattr(Root, "symmetric", slip)
    result = quietly(
        risk, threshold=1e-2, measure="lebesgue", preconditioner="dense", num_directions=300
    )
    assert result.log_volume < float(quadratic_volume(values, threshold=1e-2)) - 200


def test_a_gaussian_quadratic_against_plain_monte_carlo() -> None:
    V, values = rotation(3), torch.tensor([4.0, 1.0, 0.2], dtype=torch.float64)
    A, theta = V @ torch.diag(values) @ V.T, torch.tensor([0.3, -0.5, 0.4], dtype=torch.float64)
    risk = quadratic(A, theta)
    generator = torch.Generator().manual_seed(1)
    w = 0.8 * torch.randn(400_000, 3, generator=generator, dtype=torch.float64) - theta
    truth = float((0.5 * ((w @ A) * w).sum(1) <= 0.3).double().mean())
    for kind in ("none", "diagonal", "dense"):
        result = star_volume(
            risk, threshold=0.3, prior_std=0.8, preconditioner=kind, num_directions=1500
        )
        assert math.exp(result.log_volume) == pytest.approx(truth, rel=0.05)
        assert result.lower <= math.log(truth) + 0.03
        assert result.upper >= math.log(truth) - 0.03


def test_the_whole_prior_when_nothing_is_outside() -> None:
    risk = quadratic(torch.eye(50, dtype=torch.float64), torch.full((50,), 0.02).double())
    result = star_volume(risk, threshold=1e6, prior_std=0.3, num_directions=500)
    assert result.log_volume == pytest.approx(0.0, abs=0.05)
    assert bool(result.open.all())


def test_one_parameter_is_exact() -> None:
    risk = quadratic(torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([0.7]).double())
    half = math.sqrt(2 * 0.1 / 2)
    line = star_volume(risk, threshold=0.1, measure="lebesgue")
    assert line.log_volume == pytest.approx(math.log(2 * half), abs=1e-9)
    assert (line.directions, line.num_directions) == ("all", 2)
    gauss = star_volume(risk, threshold=0.1, prior_std=0.5)
    ends = [(0.7 + s * half) / 0.5 / math.sqrt(2) for s in (1, -1)]
    assert gauss.log_volume == pytest.approx(
        math.log((math.erf(ends[0]) - math.erf(ends[1])) / 2), abs=1e-7
    )


def test_two_parameters_are_exact_whatever_the_preconditioner() -> None:
    A = torch.tensor([[3.0, 1.0], [1.0, 0.8]], dtype=torch.float64)
    area = 2 * math.pi * 0.2 / math.sqrt(3.0 * 0.8 - 1.0)
    for kind in ("none", "diagonal", "dense"):
        result = star_volume(quadratic(A), threshold=0.2, measure="lebesgue", preconditioner=kind)
        assert result.log_volume == pytest.approx(math.log(area), abs=1e-6)
        assert result.converged


def test_a_box_cuts_the_ball() -> None:
    # The ball of radius 1.2 within the square: four segments of a circle are missing.
    risk = quadratic(2 * torch.eye(2, dtype=torch.float64))
    result = star_volume(risk, threshold=1.44, measure=Box(-1.0, 1.0))
    angle = math.acos(1 / 1.2)
    area = math.pi * 1.44 - 4 * 1.44 * (angle - math.sin(2 * angle) / 2)
    assert math.exp(result.log_volume) == pytest.approx(area, rel=1e-5)
    assert bool(result.open.any())
    assert not bool(result.open.all())


def test_kl_of_one_bias_is_what_a_scan_says() -> None:
    # p = softmax(b, 0), so that the basin is an interval that can be found by hand.
    model = nn.Linear(1, 2).double()
    params = {"weight": torch.zeros(2, 1).double(), "bias": torch.tensor([0.4, 0.0]).double()}
    data = [(torch.ones(3, 1).double(), torch.tensor([0, 1, 1]))]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), params, data)
    b = torch.linspace(-3, 4, 1_400_001, dtype=torch.float64)
    q = torch.sigmoid(torch.tensor(0.4).double())
    kl = q * (q.log() - b.sigmoid().log()) + (1 - q) * ((1 - q).log() - (-b).sigmoid().log())
    within = b[kl <= 0.05]
    # The second bias moves along: only the difference counts, and the box bounds the sum.
    result = star_volume(risk, threshold=0.05, cost="kl", scope="bias", measure=Box(-9.0, 9.0))
    width = float(within[-1] - within[0])
    low, high = float(within[0]), float(within[-1])
    # {(x, y) in the square: low <= x - y <= high}, of width 18 along the diagonal.
    area = 18 * width - (high**2 + low**2) / 2
    assert math.exp(result.log_volume) == pytest.approx(area, rel=1e-4)


@pytest.mark.parametrize("kind", ["loss", "kl"])
@pytest.mark.parametrize("preconditioner", ["none", "adam", "diagonal", "lowrank", "dense"])
def test_every_preconditioner_measures_the_same_domain(kind: str, preconditioner: str) -> None:
    case = cases.make("ce")
    risk = EmpiricalRisk(*case.args)
    scope = "2.bias"  # three parameters, few enough for all to converge
    options: dict[str, Any] = {"rank": 2} if preconditioner == "lowrank" else {}
    result = star_volume(
        risk,
        threshold=0.05,
        cost=kind,  # type: ignore[arg-type]
        prior_std=1.0,
        scope=scope,
        preconditioner=preconditioner,  # type: ignore[arg-type]
        num_directions=300,
        **options,
    )
    reference = star_volume(
        risk,
        threshold=0.05,
        cost=kind,  # type: ignore[arg-type]
        prior_std=1.0,
        scope=scope,
        preconditioner="dense",
        num_directions=600,
        seed=1,
    )
    assert result.dim == 3
    slack = 4 * math.hypot(result.stderr, reference.stderr)
    assert result.log_volume == pytest.approx(reference.log_volume, abs=slack)


def test_a_preconditioner_can_be_shared_and_must_fit() -> None:
    risk = EmpiricalRisk(*cases.make("ce").args)
    cost = Cost(risk, "kl")
    M = build_preconditioner(cost, "dense", threshold=0.05, std=1.0)
    shared = quietly(
        risk, threshold=0.05, cost="kl", prior_std=1.0, preconditioner=M, num_directions=50
    )
    own = quietly(
        risk, threshold=0.05, cost="kl", prior_std=1.0, preconditioner="dense", num_directions=50
    )
    assert shared.log_volume == pytest.approx(own.log_volume, abs=1e-9)
    with pytest.raises(InputError, match="scope"):
        star_volume(risk, threshold=0.05, preconditioner=M, scope="*bias")


def test_seeds_and_the_global_state(global_rng_untouched: None) -> None:
    risk, _ = toy()

    def run(seed: int | torch.Generator) -> float:
        return quietly(
            risk, threshold=1e-2, measure="lebesgue", preconditioner="none", num_directions=20,
            seed=seed,
        ).log_volume  # fmt: skip

    assert run(3) == run(3) != run(4)
    generator = torch.Generator().manual_seed(0)
    assert run(generator) != run(generator)


def test_a_trial_run_shortens_the_reach_where_the_cost_is_not_quadratic() -> None:
    """A product of two blocks: flat at zero, but not when both move."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    params = {"a": torch.zeros(12, 6).double(), "b": torch.zeros(6, 3).double()}

    def model(params: dict[str, Tensor], X: Tensor) -> Tensor:
        return X @ (params["a"] + 0.05) @ params["b"]

    risk = EmpiricalRisk(model, nn.MSELoss(), params, [(X, torch.zeros(40, 3).double())])
    without, tried = (
        quietly(risk, threshold=1e-4, prior_std=10.0, num_directions=300, num_pilot=n)
        for n in (0, 32)
    )
    assert tried.log_volume > without.log_volume + 5


def test_what_it_says_when_it_is_only_a_lower_bound() -> None:
    risk, _ = toy()
    with pytest.warns(UnconvergedWarning, match=r'lower bound .*preconditioner="adam".*bridge'):
        result = star_volume(
            risk, threshold=1e-2, measure="lebesgue", preconditioner="none", num_directions=50
        )
    text = str(result)
    assert text.startswith("log V = -")
    assert ", lower bound (ESS " in text
    assert " of 50, largest weight " in text
    assert result.upper == math.inf
    assert result.lower == pytest.approx(result.log_volume - math.log(20))
    assert float(result) == result.log_volume


def test_a_good_result_prints_and_serialises() -> None:
    risk = quadratic(torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)))
    result = star_volume(
        risk, threshold=0.1, measure="lebesgue", preconditioner="none", num_directions=400
    )
    assert "(ESS " in str(result)
    assert "lower bound" not in str(result)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["measure"] == {"name": "lebesgue"}
    assert len(plain["radii"]) == result.num_directions == 400
    assert (result.method, result.symbol, result.cost) == ("star", "log V", "loss")
    assert float(result.weights.sum()) == pytest.approx(1.0)
    assert float(result.log_weights.logsumexp(0)) == pytest.approx(result.log_volume)
    radii = result.radii.log() * 3 + log_unit_ball(3)
    assert torch.allclose(radii - math.log(400), result.log_weights)
    some = replace(result, reentered=torch.arange(400) < 7)
    assert "7 of 400 rays leave and come back" in str(some)


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = quadratic(torch.eye(2, dtype=torch.float64))
    result = star_volume(risk, threshold=0.1, measure="lebesgue")

    class Pandas:
        DataFrame = dict

    monkeypatch.setitem(__import__("sys").modules, "pandas", Pandas)
    table = result.to_pandas()
    assert list(table) == ["radius", "log_weight", "weight", "open", "reentered"]
    assert len(table["radius"]) == result.num_directions
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="to_dict"):
        result.to_pandas()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": -1e-2}, "threshold"),
        ({"threshold": math.nan}, "threshold"),
        ({"cost": "margin"}, "margin"),
        ({"cost": "kl"}, "categorical"),
        ({"measure": "counting"}, "counting"),
        ({"prior_std": 0.0}, "prior_std"),
        ({"preconditioner": "kfac"}, "KFAC"),
        ({"curvature": "kfac"}, "KFAC"),
        ({"num_directions": 1}, "num_directions"),
        ({"num_directions": 2.5}, "num_directions"),
        ({"num_pilot": -1}, "num_pilot"),
        ({"directions": "some"}, "directions"),
        ({"directions": "all"}, "one or two parameters"),
        ({"grid": 0}, "grid"),
        ({"seed": -1}, "seed"),
        ({"scope": "v"}, "'v'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    risk = quadratic(torch.eye(3, dtype=torch.float64), torch.ones(3).double())
    with pytest.raises(InputError, match=match):
        star_volume(risk, **({"threshold": 0.1} | options))


def test_a_cost_that_becomes_nan() -> None:
    def model(params: dict[str, Tensor], X: Tensor) -> Tensor:
        return X * (1 - params["w"].square().sum()).log()

    data = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    params = {"w": torch.full((3,), 0.1).double()}
    risk = EmpiricalRisk(model, nn.MSELoss(), params, data)
    with pytest.raises(NonFiniteError, match="NaN at radius"):
        star_volume(risk, threshold=1e9, prior_std=1.0, preconditioner="none")


def test_a_basin_without_an_end() -> None:
    flat = quadratic(torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))
    with pytest.raises(InputError, match="no end"):
        star_volume(
            quadratic(torch.zeros(3, 3, dtype=torch.float64)), threshold=0.1, measure="lebesgue",
            preconditioner="none",
        )  # fmt: skip
    result = star_volume(flat, threshold=0.1, prior_std=1.0)
    assert math.isfinite(result.log_volume)
