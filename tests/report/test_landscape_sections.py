"""The sections on rays and the plane: numbers that agree with what they say they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk
from curvops.report import Number, Options, Problem, Report, run_report
from tests.report.conftest import make_problem, make_risk


def numbers(report: Report, name: str) -> dict[str, Number]:
    (outcome,) = [o for o in report.outcomes if o.section.name == name]
    assert outcome.status == "ok", outcome.details or outcome.reason
    return dict(outcome.result.numbers)


def test_rays_agree_with_the_hessian(report: Report) -> None:
    found = numbers(report, "rays")
    top = next(
        n for o in report.outcomes for k, n in o.result.numbers.items() if k == "largest_eigenvalue"
    )
    curvature = found["ray_eigenvector_0_first_curvature"].value
    assert curvature == pytest.approx(top.value, rel=1e-2)
    losses, distances = found["ray_losses"].value, found["ray_distances"].value
    assert isinstance(losses, list)
    assert isinstance(distances, list)
    assert len(losses) == len(distances) == 7 * 21
    grit = found["ray_random_2_grit"].value
    assert isinstance(grit, list)
    first = 2 * 21
    loss = float(make_risk().loss())
    middle, end = losses[first + 19], losses[first + 20]
    assert grit[19] == pytest.approx((loss - 2 * middle + end) / distances[first + 19], rel=1e-9)


def test_the_plane_holds_the_point_in_its_middle(report: Report) -> None:
    found = numbers(report, "plane")
    losses = found["plane_losses"].value
    assert isinstance(losses, list)
    assert len(losses) == 31 * 31
    assert losses[31 * 15 + 15] == pytest.approx(float(make_risk().loss()), rel=1e-12)
    assert found["plane_lowest"].value == min(losses)


def run(risk: EmpiricalRisk) -> Report:
    return run_report(Problem(risk, "mine", ""), Options(only=("rays", "plane")))


def test_one_parameter_has_rays_but_no_plane() -> None:
    data = [(torch.ones(4, 1), torch.zeros(4, 1))]
    report = run(EmpiricalRisk(lambda p, x: x * p["w"], nn.MSELoss(), {"w": torch.ones(1)}, data))
    assert [o.status for o in report.outcomes] == ["ok", "skipped"]
    assert "ray_ascent_grit" in numbers(report, "rays")


def test_without_gradient_or_curvature_it_says_what_is_missing() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x + 0 * p["w"].sum(),
        nn.MSELoss(),
        {"w": torch.zeros(3)},
        [(torch.ones(4, 3), torch.zeros(4, 3))],
    )
    report = run(risk)
    found = numbers(report, "rays")
    assert "ray_random_0_grit" in found
    assert found["ray_random_0_seen_from"].value is None
    assert not [name for name in found if "ascent" in name or "radial" in name]
    (rays, _) = report.outcomes
    texts = " ".join(getattr(b, "text", "") for b in rays.result.blocks)
    assert "no direction of ascent" in texts


def test_float32_shows_its_rounding() -> None:
    problem = make_problem(dtype=torch.float32)
    report = run_report(problem, Options(only=("rays",)))
    found = numbers(report, "rays")
    noise = found["ray_noise"].value
    assert isinstance(noise, float)
    assert 1e-8 < noise < 1e-5
    seen = found["ray_random_0_seen_from"].value
    assert isinstance(seen, float)
    assert seen > 1e-4
