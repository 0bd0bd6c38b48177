"""Densities of rungs, against autograd and the formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvops.volume.cloud import Chart, Cloud, Rung
from curvops.volume.prior import Gaussian
from curvops.volume.spectral_form import SpectralForm
from curvops.volume.tilt import Hardened, Level, Tempered, Tilt
from tests.volume.closed_form import ClosedForm
from tests.volume.problems import rotation

DOUBLE = torch.float64


def quartic(x: Tensor) -> Tensor:
    return (x.square() * torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)).sum(1) + x[:, 0] * x[
        :, 1
    ] ** 3


@pytest.fixture
def chart() -> Chart:
    values = torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE)
    root = SpectralForm(3, values, rotation(3)).root(torch.rsqrt)
    center = torch.tensor([0.3, -0.2, 0.1], dtype=DOUBLE)
    return Chart(ClosedForm(quartic, center), Gaussian(1.5), center, root)


def log_density(chart: Chart, z: Tensor, mix: float, tilt: Tilt) -> Tensor:
    """The formula, differentiable."""
    V, scale = rotation(3), torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE).rsqrt()
    theta = chart.center + z @ (V * scale).T
    reference = -0.5 * z.square().sum(1) - 1.5 * math.log(2 * math.pi)
    measure = (
        -0.5 * theta.square().sum(1) / 1.5**2 - 1.5 * math.log(2 * math.pi * 1.5**2)
        + scale.log().sum()
    )  # fmt: skip
    return (1 - mix) * reference + mix * measure + tilt.log(quartic(theta))


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tilt", [Tempered(0.0), Tempered(2.0), Hardened(2.0, 0.7, 0.3)])
def test_log_density_and_gradient(chart: Chart, mix: float, tilt: Tilt) -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    cloud = chart.evaluate(z)
    rows = z.clone().requires_grad_()
    value = log_density(chart, rows, mix, tilt)
    [gradient] = torch.autograd.grad(value.sum(), rows)
    torch.testing.assert_close(cloud.log_density(Rung(mix, tilt)), value.detach())
    torch.testing.assert_close(cloud.gradient(Rung(mix, tilt)), gradient)


def test_take_where_and_join(chart: Chart) -> None:
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    cloud, other = chart.evaluate(z), chart.evaluate(-z)
    chosen = torch.tensor([True, False, True, True, False, False])
    rung = Rung(1.0, Tempered(1.0))
    mixed = cloud.where(chosen, other)
    expected = torch.where(chosen, cloud.log_density(rung), other.log_density(rung))
    assert torch.equal(mixed.log_density(rung), expected)
    assert torch.equal(cloud.take(torch.tensor([4, 4])).z, z[[4, 4]])
    joined = Cloud.join([cloud, other])
    assert len(joined) == 12
    assert torch.equal(joined.cost[6:], other.cost)


def test_what_is_not_finite_is_outside() -> None:
    cost = ClosedForm(lambda x: x[:, 0].log(), torch.ones(2, dtype=DOUBLE))
    root = SpectralForm(2, torch.zeros(0, dtype=DOUBLE), None).root(torch.ones_like)
    chart = Chart(cost, Gaussian(1.0), torch.zeros(2, dtype=DOUBLE), root)
    cloud = chart.evaluate(torch.tensor([[-1.0, 0.0], [2.0, 0.0]], dtype=DOUBLE))
    assert cloud.cost.tolist() == [math.inf, pytest.approx(math.log(2))]
    assert bool(cloud.cost_gradient[0].eq(0).all())
    for tilt in (Tempered(0.0), Tempered(3.0), Hardened(3.0, 1.0, 0.5), Level(1.0, 1.0)):
        assert cloud.log_density(Rung(1.0, tilt)).isneginf().tolist() == [True, False]


def test_hardening_leads_from_the_soft_basin_to_the_level_set() -> None:
    cost = torch.linspace(-0.5, 3.0, 50, dtype=DOUBLE)
    torch.testing.assert_close(Hardened(2.0, 1.0, 0.0).log(cost), Tempered(2.0).log(cost))
    torch.testing.assert_close(Hardened(2.0, 1.0, 1.0).log(cost), Level(1.0, 2.0).log(cost))
    for hardness in (0.0, 0.3, 0.9):
        tilt = Hardened(2.0, 1.0, hardness)
        points = cost.clone().requires_grad_()
        [slope] = torch.autograd.grad(tilt.log(points).sum(), points)
        torch.testing.assert_close(tilt.slope(cost), slope)
    # Outside of a level set a wall turns back, harder than the volume pulls out.
    assert bool((Level(1.0, 2.0).slope(cost)[cost > 1.0] < -2.0).all())
    assert bool((Level(1.0, 2.0).slope(cost)[cost <= 1.0] == 0.0).all())
    for tilt in (Tempered(2.0), Hardened(2.0, 1.0, 0.5), Level(1.0, 2.0)):
        assert tilt.softened == Tempered(2.0)
