"""One question, three answers: what each method is given, and options that it does not take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import curvops
from curvops.errors import InputError
from curvops.risk import EmpiricalRisk
from curvops.volume import (
    BridgeVolume,
    Cost,
    QuadraticVolume,
    StarVolume,
    basin_volume,
    build_preconditioner,
    ellipsoid_volume,
    star_volume,
)
from tests import cases
from tests.volume.problems import quadratic, rotation


def problem() -> EmpiricalRisk:
    A = rotation(5) @ torch.diag(torch.logspace(1, -2, 5, dtype=torch.float64)) @ rotation(5).T
    return quadratic(A, torch.full((5,), 0.2).double())


def test_three_methods_agree_on_a_quadratic() -> None:
    risk = problem()
    options: dict[str, Any] = {"threshold": 0.05, "measure": "gaussian", "prior_std": 0.5}
    exact = basin_volume(risk, "quadratic", **options)
    star = basin_volume(risk, "star", **options)
    bridge = basin_volume(risk, "bridge", **options, num_runs=3)
    assert isinstance(exact, QuadraticVolume)
    assert isinstance(star, StarVolume)
    assert isinstance(bridge, BridgeVolume)
    assert star.log_volume == pytest.approx(exact.log_volume, abs=4 * star.stderr)
    assert bridge.log_volume == pytest.approx(exact.log_volume, abs=0.3)
    assert exact.symbol == star.symbol == bridge.symbol == "log p"


@pytest.mark.filterwarnings("ignore::curvops.linalg.estimate.UnconvergedWarning")
def test_options_arrive() -> None:
    risk = EmpiricalRisk(*cases.make("ce").args)
    options: dict[str, Any] = {
        "cost": "kl", "prior_std": 0.7, "scope": "2.bias", "num_directions": 40, "seed": 5,
    }  # fmt: skip
    ours = basin_volume(risk, threshold=0.02, **options)
    assert ours.log_volume == star_volume(risk, threshold=0.02, **options).log_volume
    quadratic_options: dict[str, Any] = {"scope": "2.*", "prior_std": 0.5, "curvature": "ggn"}
    volume = basin_volume(risk, "quadratic", threshold=0.02, **quadratic_options)
    direct = ellipsoid_volume(risk, threshold=0.02, **quadratic_options)
    assert volume.log_volume == direct.log_volume
    bridge = basin_volume(
        risk, "bridge", threshold=0.02, cost="kl", scope="2.bias", prior_std=0.7, num_runs=2
    )
    assert bridge.dim == 3
    assert bridge.log_volume == pytest.approx(ours.log_volume, abs=0.7)


@pytest.mark.filterwarnings("ignore::curvops.linalg.estimate.UnconvergedWarning")
def test_the_bridge_takes_preconditioners_of_any_kind() -> None:
    risk = EmpiricalRisk(*cases.make("ce").args)
    cost = Cost(risk, "kl", scope="2.bias")
    built = build_preconditioner(cost, "diagonal", threshold=0.02, std=0.7)
    for preconditioner in ("diagonal", built):
        result = basin_volume(
            risk,
            "bridge",
            threshold=0.02,
            cost="kl",
            scope="2.bias",
            prior_std=0.7,
            preconditioner=preconditioner,
            num_runs=1,
            num_chains=8,
            num_moves=4,
        )
        assert result.dim == 3


def test_what_a_method_does_not_take_is_named_with_what_it_does() -> None:
    risk = problem()
    for method, option in (
        ("quadratic", "cost"),
        ("quadratic", "num_directions"),
        ("star", "num_runs"),
        ("star", "logdet"),
        ("bridge", "num_directions"),
    ):
        with pytest.raises(InputError, match=f"takes no {option}=.*threshold|takes no {option}="):
            basin_volume(risk, method, threshold=0.1, **{option: 1})  # type: ignore[call-overload]
    with pytest.raises(InputError, match=r'"quadratic", "star", "bridge".*\'ball\''):
        basin_volume(risk, "ball", threshold=0.1)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="threshold"):
        basin_volume(risk, "bridge", threshold=-1.0)


def test_it_is_a_public_name() -> None:
    assert curvops.basin_volume is basin_volume
    assert "volume_scaling" in curvops.__all__
