"""The quadratic volume of a risk: dense, estimated, by scope and measure; or why there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops.datasets import DEBIAN_FASHION_MNIST, digits, fashion_mnist
from curvops.errors import IndefiniteError, InputError, NonFiniteError
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.hessian import HessianLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.volume.ellipsoid import ellipsoid_volume
from curvops.volume.prior import Box
from curvops.volume.quadratic import quadratic_volume
from curvops.volume.star import star_volume
from tests import cases
from tests.volume.problems import quadratic, rotation


def images() -> tuple[Tensor, Tensor]:
    """Real images of 28 × 28 pixels: Fashion-MNIST, or digits enlarged where there is none."""
    if Path(DEBIAN_FASHION_MNIST).is_dir():
        X, y = fashion_mnist(dtype=torch.float64)
        return X[:100], y[:100]
    X, y = digits(torch.float64)
    return nn.functional.interpolate(X[:100], size=(28, 28)), y[:100]


@pytest.fixture(scope="module")
def cnn() -> EmpiricalRisk:
    """The small CNN of 1710 parameters, trained for a moment from N(0, 0.5²)."""
    X, y = images()
    with cases.seeded(0):
        model = nn.Sequential(
            nn.Conv2d(1, 1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(169, 10)
        ).double()
        for p in model.parameters():
            nn.init.normal_(p, std=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), model, [(X, y)])


CHOICES = {"threshold": 2.0, "weight_decay": 1e-5, "prior_std": 0.5, "prior_count": 1.0}


def test_the_small_cnn(cnn: EmpiricalRisk) -> None:
    assert cnn.space.dim == 1710
    result = ellipsoid_volume(cnn, **CHOICES)  # type: ignore[arg-type]
    assert result.shift == pytest.approx(1e-5 + 1 / 0.25)
    assert result.threshold_term == 1185.2816787575064
    # Stirling's form, as notebooks write it, is 1/(6 P) above.
    stirling = -0.5 * math.log(1710 * math.pi) + 855 * math.log(2 * math.pi * math.e / 1710)
    assert stirling == pytest.approx(-3942.7422, abs=1e-4)
    assert stirling - result.ball_term == pytest.approx(1 / (6 * 1710), rel=1e-2)
    H = HessianLinearOperator.from_risk(cnn).to_dense()
    shifted = (H + H.T) / 2 + result.shift * torch.eye(1710, dtype=torch.float64)
    exact = float(torch.linalg.slogdet(shifted).logabsdet)
    assert result.logdet == pytest.approx(exact, abs=1e-8)
    total = result.ball_term + result.threshold_term - exact / 2
    assert result.log_volume == pytest.approx(total, abs=1e-8)
    assert result.lower <= total <= result.upper
    assert result.num_matvecs == 1710
    estimate = ellipsoid_volume(cnn, **CHOICES, logdet="krylov", num_matvecs=100)  # type: ignore[arg-type]
    assert estimate.lower <= total <= estimate.upper
    assert estimate.upper - estimate.lower < 5.0
    assert 80 <= estimate.num_matvecs <= 100
    assert estimate.stderr > 0
    assert (estimate.how, estimate.curvature) == ("krylov", "hessian")
    assert "matvecs" in str(estimate)


def test_curvatures_and_scopes() -> None:
    risk = EmpiricalRisk(*cases.make("ce").args, weight_decay=0.1)
    for curvature, operator in (("hessian", HessianLinearOperator), ("ggn", GGNLinearOperator)):
        dense = operator.from_risk(risk).to_dense()  # its weight decay included
        for scope, rows in ((None, slice(None)), ("2.*", slice(16, None))):
            part = dense[rows, rows]
            expected = quadratic_volume(part, threshold=0.3, prior_std=0.6)
            result = ellipsoid_volume(
                risk, threshold=0.3, prior_std=0.6, curvature=curvature, scope=scope  # type: ignore[arg-type]
            )  # fmt: skip
            assert result.log_volume == pytest.approx(expected.log_volume, abs=1e-9)
            assert (result.dim, result.curvature) == (len(part), curvature)


def test_under_a_gaussian_it_agrees_with_the_star_domain() -> None:
    V, values = rotation(6), torch.tensor([9.0, 4.0, 1.0, 0.3, 0.1, 0.0]).double()
    risk = quadratic(V @ torch.diag(values) @ V.T, torch.full((6,), 0.2).double())
    result = ellipsoid_volume(risk, threshold=0.05, measure="gaussian", prior_std=0.4)
    assert (result.symbol, result.shift, result.prior_std) == ("log p", 0.0, 0.4)
    assert math.isnan(result.logdet)
    star = star_volume(risk, threshold=0.05, prior_std=0.4, num_directions=3000)
    assert star.log_volume == pytest.approx(result.log_volume, abs=4 * star.stderr)
    assert result.lower <= result.log_volume <= result.upper
    assert result.upper - result.lower < 1e-6
    # Weight decay is a part of the loss, and its region is smaller.
    decayed = ellipsoid_volume(
        risk, threshold=0.05, measure="gaussian", prior_std=0.4, weight_decay=1.0
    )
    assert decayed.log_volume < result.log_volume - 0.1


@pytest.mark.parametrize("measure", ["lebesgue", "gaussian"])
def test_nan_in_the_parameters_is_named(measure: str) -> None:
    w = torch.ones(3).double()
    broken = EmpiricalRisk(
        lambda params, X: X @ params["w"].square(),
        nn.MSELoss(),
        {"w": w},
        [(torch.eye(3).double(), torch.zeros(3).double())],
    )
    w[1] = math.nan  # after construction, which would have refused it
    with pytest.raises(NonFiniteError, match=r"curvature.*NaN"):
        ellipsoid_volume(broken, threshold=0.1, measure=measure, prior_std=1.0)


def test_singular_and_indefinite_curvature_has_a_remedy() -> None:
    flat = quadratic(torch.diag(torch.tensor([1.0, 0.0]).double()))
    with pytest.raises(IndefiniteError, match=r"singular.*prior_std=.*weight_decay=.*gaussian"):
        ellipsoid_volume(flat, threshold=0.1)
    assert math.isfinite(ellipsoid_volume(flat, threshold=0.1, prior_std=1.0).log_volume)
    assert math.isfinite(ellipsoid_volume(flat, threshold=0.1, weight_decay=0.1).log_volume)

    def saddle(params: dict[str, Tensor], X: Tensor) -> Tensor:
        return X * params["w"].prod()

    data = [(torch.ones(1, 1).double(), torch.ones(1, 1).double())]
    params = {"w": torch.tensor([0.1, -0.1]).double()}
    risk = EmpiricalRisk(saddle, nn.MSELoss(), params, data)
    with pytest.raises(IndefiniteError, match=r'indefinite.*curvature="ggn"') as caught:
        ellipsoid_volume(risk, threshold=0.1)
    enough = 1.01 * caught.value.sufficient_shift
    assert math.isfinite(ellipsoid_volume(risk, threshold=0.1, weight_decay=enough).log_volume)
    with pytest.raises(IndefiniteError, match="falls without bound"):
        ellipsoid_volume(risk, threshold=0.1, measure="gaussian", prior_std=1.0)
    semidefinite = ellipsoid_volume(
        risk, threshold=0.1, measure="gaussian", prior_std=1.0, curvature="ggn"
    )
    assert math.isfinite(semidefinite.log_volume)


def test_nothing_but_flat_directions_under_a_gaussian() -> None:
    flat = quadratic(torch.zeros(3, 3, dtype=torch.float64))
    result = ellipsoid_volume(flat, threshold=0.1, measure="gaussian", prior_std=1.0)
    assert result.log_volume == 0.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"curvature": "kfac"}, "KFAC"),
        ({"curvature": "fisher"}, "fisher"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"prior_std": 0.0}, "prior_std"),
        ({"prior_std": 1.0, "prior_count": -1.0}, "prior_count"),
        ({"measure": Box()}, "Box"),
        ({"num_steps": 3, "colour": 2}, "colour"),
        ({"measure": "gaussian", "prior_std": 1.0, "num_matvecs": 5}, "eigenpairs"),
        ({"scope": "v"}, "'v'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    risk = quadratic(torch.eye(2, dtype=torch.float64))
    with pytest.raises(InputError, match=match):
        ellipsoid_volume(risk, **({"threshold": 0.1} | options))


def test_it_serialises_and_leaves_the_global_state(global_rng_untouched: None) -> None:
    risk = EmpiricalRisk(*cases.make("ce").args)
    for measure in ("lebesgue", "gaussian"):
        result = ellipsoid_volume(
            risk, threshold=0.1, prior_std=0.5, curvature="ggn", measure=measure
        )
        assert json.loads(json.dumps(result.to_dict()))["measure"]["name"] == measure
