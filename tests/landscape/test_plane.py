"""Planes: losses where they say, coordinates that come back, and the truth beside the plane."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.landscape.directions import directions, eigenvector, toward
from curvops.landscape.plane import overlay, plane, plane_through
from curvops.landscape.plane_result import Overlay, Plane
from tests.cases import randn
from tests.landscape.test_ray import network

P = 51


def at(risk: EmpiricalRisk, theta: Tensor) -> float:
    return float(risk.at(theta).loss())


def test_losses_are_those_at_the_points_of_the_plane() -> None:
    risk = network()
    scan = plane(
        risk, "random", "descent", extent=((-1, 2), (-0.5, 0.5)), resolution=(7, 5), seed=4
    )
    found = directions(risk, ["random", "descent"], seed=4)
    assert scan.labels == ("random", "descent")
    assert torch.equal(scan.axes, found.columns)
    assert scan.x.tolist() == [-1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert scan.y.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    assert scan.losses.shape == (5, 7)
    for j in range(5):
        for i in range(7):
            theta = risk.theta + scan.axes @ torch.stack([scan.x[i], scan.y[j]])
            assert float(scan.losses[j, i]) == pytest.approx(at(risk, theta), rel=1e-12)
    assert scan.loss == pytest.approx(float(risk.loss()), rel=1e-14)
    assert float(scan.losses[2, 2]) == pytest.approx(scan.loss, rel=1e-13)
    assert scan.marks.tolist() == [[0.0, 0.0]]
    assert float(scan.mark_losses[0]) == scan.loss


def test_two_random_axes_are_two() -> None:
    scan = plane(network(), "random", "random", resolution=3)
    assert scan.labels == ("random 0", "random 1")
    assert abs(float(scan.axes[:, 0] @ scan.axes[:, 1])) < 0.5


def test_eigenvectors_and_normalised_axes_and_subspaces() -> None:
    risk = network()
    scan = plane(risk, eigenvector(0), eigenvector(1), resolution=3)
    assert scan.num_matvecs > 0
    assert abs(float(scan.axes[:, 0] @ scan.axes[:, 1])) < 1e-8
    scan = plane(risk, "random", "random", normalization="filter", subspace="0.", resolution=3)
    expected = directions(
        risk, "random", normalization="filter", subspaces="0.", num_random=2
    ).columns
    assert torch.equal(scan.axes, expected)
    assert scan.labels == ("random 0 on 0.", "random 1 on 0.")


def test_orthogonal_takes_from_the_second_what_is_along_the_first() -> None:
    u, v = randn(P, seed=1), randn(P, seed=2)
    v = v + 3 * u
    scan = plane(network(), u, v, orthogonal=True, resolution=2)
    a, b = scan.axes.T
    assert float(a @ b) == pytest.approx(0, abs=1e-15)
    torch.testing.assert_close(b.norm(), torch.ones(()).double())
    torch.testing.assert_close(a, u / u.norm())
    rank = torch.linalg.matrix_rank(torch.stack([a, b, v], dim=1))
    assert int(rank) == 2


def test_the_plane_through_three_points_goes_through_them() -> None:
    risk = network()
    points = [randn(P, seed=s) for s in (1, 2, 3)]
    scan = plane_through(risk, *points, resolution=11, margin=0.5)
    axes = scan.axes
    torch.testing.assert_close(axes.T @ axes, torch.eye(2).double())
    for k, point in enumerate(points):
        torch.testing.assert_close(scan.origin + axes @ scan.marks[k], point)
        assert float(scan.mark_losses[k]) == pytest.approx(at(risk, point), rel=1e-10)
    assert scan.marks[0].tolist() == [0, 0]
    assert float(scan.marks[1, 1]) == 0
    assert float(scan.marks[2, 1]) > 0
    width = float(scan.marks[:, 0].max() - scan.marks[:, 0].min())
    assert float(scan.x[-1] - scan.x[0]) == pytest.approx(2 * width)
    assert scan.labels == ("w₁ → w₂", "→ w₃")
    assert scan.mark_labels == ("w₁", "w₂", "w₃")
    i, j = 3, 8
    theta = points[0] + axes @ torch.stack([scan.x[i], scan.y[j]])
    assert float(scan.losses[j, i]) == pytest.approx(at(risk, theta), rel=1e-12)


def test_points_may_be_modules_and_state_dicts() -> None:
    risk = network()
    assert risk.model is not None
    state = {name: p.detach() + 1 for name, p in risk.model.named_parameters()}
    scan = plane_through(risk, risk.model, state, risk, resolution=3, names="abc")
    own = risk.space.flatten([p.detach() for p in risk.model.parameters()])
    torch.testing.assert_close(scan.origin, own)
    torch.testing.assert_close(scan.origin + scan.axes @ scan.marks[2], risk.theta)
    assert float(scan.marks[1, 0]) == pytest.approx(math.sqrt(P))


def test_projection_gives_coordinates_and_distance_on_skew_axes_too() -> None:
    u, v = randn(P, seed=1), randn(P, seed=2)
    skew = u / u.norm() + 0.5 * v / v.norm()
    scan = plane(network(), u, skew, resolution=2)
    inside = torch.tensor([[0.3, -2.0], [1.5, 0.25]], dtype=torch.float64)
    off = randn(P, 2, seed=3)
    basis = torch.linalg.qr(scan.axes).Q
    off -= basis @ (basis.T @ off)
    points = scan.origin.unsqueeze(1) + scan.axes @ inside + off
    coordinates, distances = scan.project(points)
    torch.testing.assert_close(coordinates, inside.T)
    torch.testing.assert_close(distances, off.norm(dim=0))
    one, zero = scan.project(scan.origin)
    torch.testing.assert_close(one, torch.zeros(1, 2).double(), atol=1e-12, rtol=0)
    assert float(zero) < 1e-12
    with pytest.raises(ShapeError, match=r"points has shape \[3\]"):
        scan.project(torch.ones(3))


def test_overlay_has_the_true_losses_beside_those_of_the_plane() -> None:
    risk = network()
    scan = plane(risk, "random", "descent", resolution=3)
    points = risk.theta.unsqueeze(1) + 0.3 * randn(P, 70, seed=5)
    over = overlay(risk, scan, points, label="path")
    assert len(over) == 70
    for t in (0, 13, 69):
        assert float(over.losses[t]) == pytest.approx(at(risk, points[:, t]), rel=1e-12)
        below = scan.origin + scan.axes @ over.coordinates[t]
        assert float(over.plane_losses[t]) == pytest.approx(at(risk, below), rel=1e-12)
        assert float(over.distances[t]) == pytest.approx(float((points[:, t] - below).norm()))
    inside = scan.origin.unsqueeze(1) + scan.axes @ torch.tensor([[0.5], [0.2]]).double()
    on_plane = overlay(risk, scan, inside)
    torch.testing.assert_close(on_plane.losses, on_plane.plane_losses)
    assert "70 points" in str(over)
    blocks = [b.unsqueeze(-1) for b in risk.space.unflatten(points[:, 0])]
    assert torch.equal(overlay(risk, scan, blocks).distances, over.distances[:1])


def test_non_finite_losses_are_kept_as_such() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x + p["w"].log(),
        nn.MSELoss(),
        {"w": torch.tensor([1.0, 2.0]).double()},
        [(torch.eye(2).double(), torch.zeros(2, 2).double())],
    )
    scan = plane(risk, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), extent=2, resolution=9)
    assert bool(scan.losses[:, :2].isnan().all())
    assert bool(scan.losses[1:, 2].isinf().all())
    assert bool(scan.losses[1:, 3:].isfinite().all())
    assert "not finite" in str(scan)


def test_metrics_dtype_and_seed(global_rng_untouched: None) -> None:
    risk = network(torch.float32)
    before = risk.theta
    scan = plane(
        risk, "random", "random", resolution=3, extent=5, metrics="accuracy", dtype=torch.float64
    )
    assert scan.dtype == scan.axes.dtype == torch.float64
    assert scan.metrics["accuracy"].shape == (3, 3)
    double = risk.to(torch.float64)
    corner = double.theta + scan.axes @ torch.tensor([5.0, -5.0]).double()
    truth = double.metrics(corner, "accuracy")
    torch.testing.assert_close(scan.metrics["accuracy"][0, 2], truth[0])
    assert torch.equal(risk.theta, before)
    again = plane(risk, "random", "random", resolution=3, extent=5, dtype=torch.float64)
    assert torch.equal(again.losses, scan.losses)


def test_results_print_save_load_and_become_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    risk = network()
    scan = plane(risk, "random", "descent", resolution=(3, 2), metrics="accuracy")
    over = overlay(risk, scan, randn(P, 4, seed=1))
    for result, kind in ((scan, Plane), (over, Overlay)):
        result.save(tmp_path / "file.npz")  # type: ignore[attr-defined]
        again = kind.load(tmp_path / "file.npz")  # type: ignore[attr-defined]
        assert json.dumps(again.to_dict()) == json.dumps(result.to_dict())  # type: ignore[attr-defined]
    assert str(scan).startswith("plane of random [-1, 1] × descent [-1, 1], 3 × 2 points: loss")
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    table = scan.to_pandas()
    assert table["x"] == [-1, 0, 1] * 2
    assert table["y"] == [-1] * 3 + [1] * 3
    assert table["loss"][5] == float(scan.losses[1, 2])
    assert table["accuracy"][5] == float(scan.metrics["accuracy"][1, 2])
    assert over.to_pandas()["plane_loss"] == over.plane_losses.tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"extent": 0.0}, InputError, "extent is 0.0"),
        ({"extent": (1.0, -1.0)}, InputError, "extent"),
        ({"extent": ((1.0, 0.0), (0.0, 1.0))}, InputError, "extent"),
        ({"extent": ((1.0,), (0.0, 1.0))}, InputError, "extent"),
        ({"extent": "big"}, InputError, "extent"),
        ({"extent": math.inf}, InputError, "extent"),
        ({"resolution": 1}, InputError, "resolution is 1"),
        ({"resolution": (3, 3, 3)}, InputError, "resolution"),
        ({"resolution": 2.5}, InputError, "resolution"),
        ({"v": torch.zeros(P)}, InputError, "is zero"),
        ({"v": torch.ones(3)}, ShapeError, "direction"),
        ({"v": torch.ones(P, 2)}, InputError, "u and v are 3 directions"),
        ({"u": "ascent", "v": "descent"}, InputError, "'ascent' and 'descent' are parallel"),
        ({"subspace": "fc9"}, InputError, "'fc9' matches none"),
        ({"metrics": "acuracy"}, InputError, "acuracy"),
        ({"u": toward(torch.ones(2))}, ShapeError, "other point"),
    ],
)
def test_bad_input(options: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"u": "random", "v": "random", **options}
    with pytest.raises(error, match=message):
        plane(network(), **arguments)  # type: ignore[arg-type]


def test_bad_points() -> None:
    risk, a, b = network(), randn(P, seed=1), randn(P, seed=2)
    with pytest.raises(InputError, match="parallel"):
        plane_through(risk, a, b, (a + b) / 2)
    with pytest.raises(InputError, match="'w₁' and 'w₂' are the same point"):
        plane_through(risk, a, a, b)
    with pytest.raises(InputError, match="'w₁' and 'w₃' are the same point"):
        plane_through(risk, a, b, a)
    with pytest.raises(ShapeError, match="second"):
        plane_through(risk, a, torch.ones(3), b)
    with pytest.raises(NonFiniteError, match="third"):
        plane_through(risk, a, b, b * math.nan)
    with pytest.raises(InputError, match="names holds 2"):
        plane_through(risk, a, b, -b, names=["a", "b"])
    with pytest.raises(InputError, match="margin"):
        plane_through(risk, a, b, -b, margin=-1)
