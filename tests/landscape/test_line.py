"""Losses along lines: exact on a quadratic, tangent to the model elsewhere, the point untouched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk, HessianLinearOperator
from curvops.errors import InputError, MissingDependencyError, NonFiniteError, ShapeError
from curvops.landscape import Lines, line

P = 4 * 6 + 6 + 6 * 3 + 3


@pytest.fixture
def quadratic() -> EmpiricalRisk:
    """A linear model under MSE, whose quadratic model is exact."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    params = {"weight": torch.randn(2, 5, generator=generator, dtype=torch.float64)}
    return EmpiricalRisk(
        lambda p, x: x @ p["weight"].T, nn.MSELoss(), params, [(X[:7], y[:7]), (X[7:], y[7:])]
    )


@pytest.fixture
def network() -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    X = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    return EmpiricalRisk(
        model, nn.CrossEntropyLoss(), model, [(X[:9], y[:9]), (X[9:], y[9:])], weight_decay=0.01
    )


def directions(dim: int, num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(dim, num, generator=generator, dtype=torch.float64)


def test_quadratic_model_is_exact_for_a_quadratic_loss(quadratic: EmpiricalRisk) -> None:
    scan = line(quadratic, directions(10, 3), radius=[0.5, 2.0, 10.0], num=9)
    assert scan.losses.shape == scan.quadratic.shape == (9, 3)
    torch.testing.assert_close(scan.losses, scan.quadratic)
    torch.testing.assert_close(scan.steps[-1], torch.tensor([0.5, 2.0, 10.0]).double())
    assert scan.num_losses == 28
    assert scan.num_matvecs == 3


def test_losses_are_those_at_the_moved_points(network: EmpiricalRisk) -> None:
    columns = directions(P, 2)
    scan = line(network, columns, radius=0.7, num=5)
    for k in range(2):
        unit = columns[:, k] / columns[:, k].norm()
        for s in range(5):
            moved = network.at(network.theta + scan.steps[s, k] * unit)
            assert float(scan.losses[s, k]) == pytest.approx(float(moved.loss()), rel=1e-12)


def test_model_is_tangent_to_second_order(network: EmpiricalRisk) -> None:
    columns = directions(P, 2)
    errors = []
    for radius in (1e-2, 5e-3):
        scan = line(network, columns, radius=radius, num=3)
        errors.append((scan.losses - scan.quadratic)[[0, -1]].abs().max())
    assert errors[1] < errors[0] / 6  # the rest is of third order


def test_point_is_a_step_and_is_left_alone(network: EmpiricalRisk) -> None:
    before = network.theta
    scan = line(network, directions(P, 1), num=7)
    assert float(scan.losses[3, 0]) == pytest.approx(scan.loss, rel=1e-14)
    assert torch.equal(network.theta, before)


def test_many_points_are_evaluated_in_pieces(network: EmpiricalRisk) -> None:
    scan = line(network, directions(P, 3), num=101)
    alone = line(network, directions(P, 3)[:, 2], num=101)
    torch.testing.assert_close(scan.losses[:, 2], alone.losses[:, 0])


def test_any_format_and_known_curvatures(network: EmpiricalRisk) -> None:
    vector = directions(P, 1)[:, 0]
    blocks = network.space.unflatten(vector)
    named = dict(zip(network.space.names, blocks, strict=True))
    flat = line(network, vector, num=3)
    for other in (blocks, named):
        assert torch.equal(line(network, other, num=3).losses, flat.losses)
    unit = vector / vector.norm()
    curvature = float(unit @ (HessianLinearOperator.from_risk(network) @ unit))
    given = line(network, vector, num=3, curvatures=[curvature])
    torch.testing.assert_close(given.quadratic, flat.quadratic)
    assert given.num_matvecs == 0


def test_result_prints_saves_and_loads(network: EmpiricalRisk, tmp_path: Path) -> None:
    scan = line(network, directions(P, 2), num=3, labels=["top", "bulk"])
    assert "top: radius 1" in str(scan)
    plain = json.loads(json.dumps(scan.to_dict()))
    assert plain["labels"] == ["top", "bulk"]
    assert len(plain["losses"]) == 3
    assert plain["quadratic"] == scan.quadratic.tolist()
    scan.save(tmp_path / "lines.npz")
    assert json.dumps(Lines.load(tmp_path / "lines.npz").to_dict()) == json.dumps(plain)


def test_result_becomes_a_table(network: EmpiricalRisk, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = line(network, directions(P, 2), num=3, labels=["top", "bulk"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pandas"):
        scan.to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    table = scan.to_pandas()
    assert table["line"] == ["top"] * 3 + ["bulk"] * 3
    assert table["loss"][4] == float(scan.losses[1, 1])
    assert table["step"][5] == float(scan.steps[2, 1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num": 4}, InputError, "num is 4"),
        ({"num": 1}, InputError, "num is 1"),
        ({"radius": 0.0}, InputError, "radius"),
        ({"radius": [1.0, 2.0, 3.0]}, ShapeError, "radius"),
        ({"curvatures": [1.0]}, ShapeError, "curvatures"),
        ({"labels": ["one"]}, ShapeError, "1 labels for 2"),
        ({"directions": torch.zeros(P, 2)}, InputError, "direction 0 is zero"),
        ({"directions": torch.ones(3)}, ShapeError, "directions"),
        ({"directions": torch.full((P,), torch.nan)}, NonFiniteError, "directions"),
    ],
)
def test_bad_input(
    network: EmpiricalRisk, change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"directions": directions(P, 2), **change}
    with pytest.raises(error, match=message):
        line(network, **arguments)  # type: ignore[arg-type]
