"""Noise floors cover what rounding really does, and are not absurdly large."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath
import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk
from curvops.landscape.directions import directions
from curvops.landscape.noise import Noise, measure_noise
from curvops.landscape.ray import rays
from curvops.landscape.ray_result import Rays
from tests.cases import rng, seeded

X = torch.randn(300, 1, 8, 8, generator=rng(1))
TEACHER = torch.randn(64, 10, generator=rng(2))
Y = (X.flatten(1) @ TEACHER).argmax(1)


def relu() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def tanh() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], nn.Module, int]] = {
    "untrained": (relu, nn.CrossEntropyLoss(), 0),
    "trained": (relu, nn.CrossEntropyLoss(), 60),
    "interpolating": (relu, nn.CrossEntropyLoss(), 1000),
    "sum": (convolution, nn.CrossEntropyLoss(reduction="sum"), 60),
    "regression": (tanh, nn.MSELoss(), 60),
}


def trained(name: str, seed: int) -> EmpiricalRisk:
    make, loss, steps = CASES[name]
    with seeded(seed):
        model = make()
    y = nn.functional.one_hot(Y, 10).float() if isinstance(loss, nn.MSELoss) else Y
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(X), y).backward()
        optimizer.step()
    return EmpiricalRisk(model, loss, model, [(X[:200], y[:200]), (X[200:], y[200:])])


def both_precisions(risk: EmpiricalRisk, seed: int, num_noise: int = 24) -> tuple[Rays, Rays]:
    """The same scan in float32 and in float64."""
    found = directions(risk, ["descent", "random", "radial_out"], num_random=2, seed=seed)
    options = {"base": 1e-5, "num": 21}
    single = rays(risk, found, num_noise=num_noise, **options)  # type: ignore[arg-type]
    double = rays(risk, found, dtype=torch.float64, **options)  # type: ignore[arg-type]
    return single, double


@pytest.mark.parametrize("name", list(CASES))
def test_floors_cover_the_rounding_of_float32(name: str) -> None:
    losses, rises, differences, rough, of_loss, of_difference = [], [], [], [], [], []
    for seed in range(3):
        single, double = both_precisions(trained(name, seed), seed)
        error = (single.losses - double.losses).abs()
        losses.append(error <= single.noise.loss)
        rise = (single.losses - single.loss) - (double.losses - double.loss)
        rises.append(rise.abs() <= single.noise.rise)
        change = (single.difference - double.difference).abs()
        differences.append(change <= single.difference_floor)
        moved = (single.roughness - double.roughness).abs()
        rough.append(moved <= single.roughness_error)
        of_loss.append(single.noise.loss / error)
        of_difference.append(single.difference_floor / change)
        assert abs(single.loss - double.loss) <= single.noise.point_loss
    for covered in (losses, rises, differences, rough):
        assert float(torch.stack(covered).double().mean()) >= 0.995
    # An error of standard deviation 1 has a median of 0.67, so that 4 would be 6 of these.
    assert 1 < float(torch.stack(of_loss).median()) < 30
    assert 1 < float(torch.stack(of_difference).median()) < 60


@pytest.mark.parametrize("name", ["trained", "regression"])
def test_what_is_resolved_in_float32_is_right(name: str) -> None:
    single, double = both_precisions(trained(name, 0), 0)
    resolved = single.resolved
    assert bool(resolved[-5:].all()), "far out everything is resolved"
    assert not bool(resolved[:5].any()), "float32 sees nothing at 1e-5"
    assert float(double.resolved.double().mean()) > float(resolved.double().mean()) + 0.2
    for got, truth in ((single.grit, double.grit), (single.curvature, double.curvature)):
        assert bool(((got - truth).abs() <= truth.abs())[resolved].all())
    # below the floor float32 shows a roughness that is not there
    hollow = single.roughness[:4].median(), double.roughness[:4].median()
    assert float(hollow[0]) > 10 * float(hollow[1])


def test_floors_of_float64_cover_the_rounding_seen_in_mpmath() -> None:
    """A small net in 60 digits: the floors are 2^-29 of those measured in float32, and hold."""
    x = torch.randn(12, 3, generator=rng(3), dtype=torch.float64)
    y = torch.randint(3, (12,), generator=rng(4))
    with seeded(0):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, [(x, y)])
    found = directions(risk, "random", num_random=2)
    scan = rays(risk, found, base=1e-7, num=26)

    def exact(theta: list[mpmath.mpf]) -> mpmath.mpf:
        w1, b1 = [theta[3 * i : 3 * i + 3] for i in range(4)], theta[12:16]
        w2, b2 = [theta[16 + 4 * i : 20 + 4 * i] for i in range(3)], theta[28:31]
        total = mpmath.mpf(0)
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            hidden = [mpmath.tanh(mpmath.fdot(w, row) + b) for w, b in zip(w1, b1, strict=True)]
            z = [mpmath.fdot(w, hidden) + b for w, b in zip(w2, b2, strict=True)]
            total += mpmath.log(sum(mpmath.exp(v) for v in z)) - z[label]
        return total / len(y)

    covered, ratios = [], []
    with mpmath.workdps(60):
        for k in range(2):
            for i in range(0, 26, 2):
                step, d = scan.distances[i, k].item(), found.columns[:, k]
                # the exact point, not the rounded one
                point = [
                    mpmath.mpf(t) + mpmath.mpf(step) * mpmath.mpf(v)
                    for t, v in zip(risk.theta.tolist(), d.tolist(), strict=True)
                ]
                error = abs(float(exact(point) - mpmath.mpf(scan.losses[i, k].item())))
                floor = float(scan.noise.loss[i, k])
                covered.append(error <= floor)
                ratios.append(floor / max(error, 1e-20))
    assert all(covered)
    assert 1 < sorted(ratios)[len(ratios) // 2] < 50


def test_noise_is_nan_where_nothing_is_known() -> None:
    risk = trained("untrained", 0)
    found = directions(risk, "random")
    distances = torch.tensor([[1.0], [2.0], [4.0]]).double()
    losses = torch.tensor([[math.nan], [math.inf], [math.nan]]).double()
    noise = measure_noise(risk, found.columns, distances, losses, float(risk.loss()), 4)
    assert bool(noise.loss.isnan().all())
    assert math.isnan(noise.point_loss), "one sample has no spread"
    assert noise.num_losses == 1
    some = losses.clone()
    some[0] = float(risk.losses(risk.theta + found.columns[:, 0]))
    noise = measure_noise(risk, found.columns, distances, some, float(risk.loss()), 4)
    assert bool(noise.loss[0].isfinite().all())
    assert bool(noise.loss[1:].isnan().all())
    assert noise.num_losses == 2


def test_shared_errors_cancel_in_differences() -> None:
    ones = torch.ones(4, 2, dtype=torch.float64)
    noise = Noise(1e-3 * ones, 5 * ones, 1e-3, 5.0, 9)
    assert float(noise.loss[0, 0]) == pytest.approx(5.004)
    assert noise.point_loss == pytest.approx(5.004)
    torch.testing.assert_close(noise.difference, 4e-3 * 6**0.5 * ones[:3])
    torch.testing.assert_close(noise.two_sided_difference, 4e-3 * 6**0.5 * ones)
    torch.testing.assert_close(noise.rise, 4e-3 * 2**0.5 * ones)
    moved = replace(noise, point_shift=6.0)
    torch.testing.assert_close(moved.difference, (1 + 4e-3 * 6**0.5) * ones[:3])
    torch.testing.assert_close(moved.rise, (1 + 4e-3 * 2**0.5) * ones)


def test_half_precision_is_measured_against_float64() -> None:
    risk = trained("trained", 0).to(torch.bfloat16)
    scan = rays(risk, "random", base=1e-2, num=12, num_random=3)
    assert scan.dtype == torch.bfloat16
    assert scan.noise.point_loss > 1e-3 * scan.loss
    assert not bool(scan.resolved[0].any())
