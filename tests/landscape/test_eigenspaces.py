"""Eigenspaces along a trajectory: against dense matrices, and what a warm start saves."""

from __future__ import annotations

import copy
import json
import sys
from functools import cache
from pathlib import Path as File
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, GGNLinearOperator, HessianLinearOperator, eigsh
from curvops.errors import InputError, ShapeError
from curvops.landscape import Eigenspaces, EigenTracker, Trajectory, eigen_lines, eigenspaces
from curvops.linalg.eigen_result import EighResult
from tests import cases
from tests.landscape import nets


@cache
def training() -> tuple[EmpiricalRisk, Trajectory]:
    """Thirty epochs of Adam, a snapshot after each."""
    X, y = nets.images()
    trajectory = Trajectory()
    with cases.seeded(0):
        net = nets.mlp()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(30):
            for rows in torch.randperm(len(X)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
                optimizer.step()
            trajectory.record(net)
    net.zero_grad()
    return nets.risk_of(net), trajectory


def small() -> EmpiricalRisk:
    with cases.seeded(1):
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    X, y = cases.randn(30, 4, seed=0), cases.randint(3, 30, seed=1)
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), net, [(X[:17], y[:17]), (X[17:], y[17:])])


def path_of(risk: EmpiricalRisk, num: int) -> list[Tensor]:
    step = cases.randn(risk.space.dim, seed=2)
    return [risk.theta + 0.05 * i * step for i in range(num)]


def test_against_dense_matrices(global_rng_untouched: None) -> None:
    risk = small()
    points = path_of(risk, 4)
    found = eigenspaces(risk, points, 3, tol=1e-8)
    bases = []
    for t, theta in enumerate(points):
        here = risk.at(theta)
        values, vectors = torch.linalg.eigh(HessianLinearOperator.from_risk(here).to_dense())
        torch.testing.assert_close(found.eigenvalues[t], values.flip(0)[:3])
        bases.append(vectors[:, -3:])
        g = here.gradient()
        share = float((bases[t].T @ g).square().sum() / g.square().sum())
        assert float(found.gradient_shares[t]) == pytest.approx(share, rel=1e-6)
    for t, one in enumerate(bases):
        for u, other in enumerate(bases):
            expected = float((one.T @ other).square().sum()) / 3
            assert float(found.overlaps[t, u]) == pytest.approx(expected, abs=1e-6)
    assert found.random_level == pytest.approx(3 / risk.space.dim)
    assert torch.equal(found.overlap_with_previous, found.overlaps.diagonal(1))
    assert torch.equal(found.largest, found.eigenvalues[:, 0])
    assert bool(found.converged.all())


def test_warm_starts_take_less_than_half_of_the_products() -> None:
    risk, trajectory = training()
    k = 2
    warm = eigenspaces(risk, trajectory, k, gradient=False)
    cold = eigenspaces(risk, trajectory, k, gradient=False, warm_start=False)
    assert warm.num_matvecs[0] == cold.num_matvecs[0]
    assert 2 * int(warm.num_matvecs[1:].sum()) < int(cold.num_matvecs[1:].sum())
    # At a tolerance of 1 % an eigenvalue may be passed over for the next one, warm or cold.
    for t in range(0, 30, 6):
        H = HessianLinearOperator.from_risk(risk.at(trajectory[t]))
        truth = eigsh(H, k, "LA", tol=1e-4).eigenvalues.flip(0)
        for found in (warm, cold):
            torch.testing.assert_close(found.eigenvalues[t], truth, atol=0, rtol=5e-3)


def test_a_trajectory_keeps_its_steps(tmp_path: File) -> None:
    risk = small()
    with Trajectory(tmp_path, every=10, shard=2) as trajectory:
        for i, point in enumerate(path_of(risk, 3)):
            trajectory.record(point, 10 * i)
    found = eigenspaces(risk, trajectory, 2)
    assert found.steps.tolist() == [0, 10, 20]
    listed = eigenspaces(risk, path_of(risk, 3), 2)
    torch.testing.assert_close(found.eigenvalues, listed.eigenvalues)


def test_modules_are_points() -> None:
    risk = small()
    assert risk.model is not None
    found = eigenspaces(risk, [risk.model, copy.deepcopy(risk.model)], 2)
    assert float(found.overlaps[0, 1]) == pytest.approx(1.0)


def test_tracker_in_a_training_loop() -> None:
    with cases.seeded(1):
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    X, y = cases.randn(30, 4, seed=0), cases.randint(3, 30, seed=1)
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), net, [(X, y)])
    tracker = EigenTracker(2, tol=1e-6, matrix=GGNLinearOperator.from_risk, overlaps="previous")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    seen = []
    for step in range(0, 30, 10):
        found = tracker.update(risk, step)
        assert isinstance(found, EighResult)
        seen.append(torch.linalg.eigvalsh(GGNLinearOperator.from_risk(risk).to_dense())[-2:])
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    result = tracker.result()
    torch.testing.assert_close(result.eigenvalues, torch.stack(seen).flip(1))
    assert result.steps.tolist() == [0, 10, 20]
    assert bool(result.overlaps[0, 2].isnan())
    assert bool(result.overlaps.diagonal(1).isfinite().all())


def test_starts_anew_on_request() -> None:
    risk, trajectory = training()
    points = [trajectory[i] for i in (8, 9, 10, 11)]
    cold = eigenspaces(risk, points, 3, warm_start=False, gradient=False)
    often = eigenspaces(risk, points, 3, refresh=2, gradient=False)
    same = often.num_matvecs == cold.num_matvecs
    assert same.tolist() == [True, False, True, False]


def test_no_gradient_no_share() -> None:
    risk = small()
    assert bool(eigenspaces(risk, [risk.theta], 1, gradient=False).gradient_shares.isnan().all())
    flat = EmpiricalRisk(
        lambda p, x: x * p["w"].square().sum(),
        nn.L1Loss(),
        {"w": torch.zeros(3)},
        [(torch.ones(1), torch.zeros(1))],
    )
    found = eigenspaces(flat, [torch.zeros(3)], 1)
    assert bool(found.gradient_shares.isnan().all())


def test_saves_prints_and_converts(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    risk = small()
    found = eigenspaces(risk, path_of(risk, 3), 2)
    found.save(tmp_path / "e.npz")
    again = Eigenspaces.load(tmp_path / "e.npz")
    assert torch.equal(again.overlaps, found.overlaps)
    assert str(again).startswith("2 eigenvalues at 3 points: λmax")
    assert "(random 0.039)" in str(again)
    json.dumps(found.to_dict())
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    table = found.to_pandas()
    assert table["step"] == [0, 1, 2]
    assert len(table["eigenvalue_2"]) == 3


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    risk = small()
    eigenspaces(risk, [risk.theta], 1, progress=True)
    assert "eigenspaces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 0}, "k must"),
        ({"k": True}, "k must"),
        ({"k": 1000}, "k is 1000"),
        ({"refresh": 0}, "refresh"),
        ({"overlaps": "some"}, "overlaps"),
        ({"tol": 0.0}, "tol"),
        ({"seed": -1}, "seed"),
        ({"points": []}, "nothing has been looked at"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    risk = small()
    with pytest.raises(InputError, match=match):
        eigenspaces(risk, **{"points": [risk.theta], "k": 2, **options})


def test_bad_updates() -> None:
    risk = small()
    tracker = EigenTracker(1)
    tracker.update(risk, 5)
    with pytest.raises(InputError, match="step 5 is not after"):
        tracker.update(risk, 5)
    with pytest.raises(ShapeError, match="at the last point it had"):
        tracker.update(nets.risk_of(nets.trained("mlp", 0)))
    with pytest.raises(ShapeError):
        eigenspaces(risk, [torch.zeros(5)], 1)


# Lines ---------------------------------------------------------------------------------------


def test_lines_along_the_top_and_the_bulk() -> None:
    risk = small()
    lines = eigen_lines(risk, k=6, num=9)
    values = torch.linalg.eigvalsh(HessianLinearOperator.from_risk(risk).to_dense())
    torch.testing.assert_close(lines.curvatures, values[[-1, -6]], rtol=1e-6, atol=1e-8)
    assert [label.split(",")[0] for label in lines.labels] == ["rank 1", "rank 6"]
    assert lines.num_matvecs > 0
    near = eigen_lines(risk, k=6, num=3, radius=1e-3, ranks=[1])
    torch.testing.assert_close(near.losses, near.quadratic, atol=1e-9, rtol=0)
    pairs = eigsh(HessianLinearOperator.from_risk(risk), 3, "LA")
    given = eigen_lines(risk, pairs, ranks=[2])
    assert given.num_matvecs == 0
    assert float(given.curvatures) == pytest.approx(float(pairs.eigenvalues[1]))
    # To where the quadratic model has risen by the loss, or half of ‖θ‖ if that is nearer.
    farthest = 0.5 * float(risk.theta.norm())
    assert float(lines.steps[-1, 1]) == pytest.approx(farthest)
    near_zero = risk.at(1e3 * risk.theta)
    steep = eigen_lines(near_zero, k=2, num=3)
    rise = float(steep.curvatures[0]) * float(steep.steps[-1, 0]) ** 2 / 2
    assert rise == pytest.approx(steep.loss, rel=1e-6)


@pytest.mark.parametrize("ranks", [[0], [4], [1.0], [True], []])
def test_ranks_that_do_not_exist(ranks: list[Any]) -> None:
    with pytest.raises(InputError, match="rank"):
        eigen_lines(small(), k=3, ranks=ranks)


def test_lines_need_vectors() -> None:
    risk = small()
    pairs = eigsh(HessianLinearOperator.from_risk(risk), 2, "LA", return_eigenvectors=False)
    with pytest.raises(InputError, match="return_eigenvectors"):
        eigen_lines(risk, pairs)
    with pytest.raises(InputError, match="k must"):
        eigen_lines(risk, k=0)
