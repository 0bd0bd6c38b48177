"""Rays: exact on quadratics, on a grid that doubles exactly, honest where they cannot see."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, HessianLinearOperator
from curvops.errors import InputError, MissingDependencyError, NonFiniteError, ShapeError
from curvops.landscape.directions import along, directions, eigenvector
from curvops.landscape.ray import grid, rays
from curvops.landscape.ray_result import Rays
from tests.cases import perturbed, rng, seeded
from tests.landscape.test_roughness import definition


def quadratic(seed: int = 0) -> tuple[EmpiricalRisk, Tensor, Tensor]:
    """A linear model under MSE, its Hessian and its minimum: L is a quadratic in 8 dimensions."""
    X = torch.randn(30, 8, generator=rng(seed), dtype=torch.float64)
    y = torch.randn(30, 1, generator=rng(seed + 1), dtype=torch.float64)
    params = {"fc1.weight": torch.randn(1, 6, generator=rng(seed + 2), dtype=torch.float64)}
    params["out.weight"] = torch.randn(1, 2, generator=rng(seed + 3), dtype=torch.float64)

    def model(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return x @ torch.cat([p["fc1.weight"], p["out.weight"]], dim=1).T

    risk = EmpiricalRisk(model, nn.MSELoss(), params, [(X[:13], y[:13]), (X[13:], y[13:])])
    return risk, 2 / 30 * X.T @ X, torch.linalg.lstsq(X, y).solution[:, 0]


def network(dtype: torch.dtype = torch.float64) -> EmpiricalRisk:
    with seeded(1):
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    X = torch.randn(20, 4, generator=rng(1), dtype=torch.float64).to(dtype)
    y = torch.randint(3, (20,), generator=rng(2))
    data = [(X[:9], y[:9]), (X[9:], y[9:])]
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), perturbed(model), data, weight_decay=0.01)


# --------------------------------------------------------------------------- the grid


def test_distances_double_to_the_last_bit_and_interleave() -> None:
    distances = grid(1e-4, 40, 7)
    assert torch.equal(distances[1:], 2 * distances[:-1])
    assert float(distances[0, 0]) == 1e-4
    merged = distances.flatten()
    assert torch.equal(merged, merged.sort().values), "rows of all rays follow one another"
    ratios = merged[1:] / merged[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 2 ** (1 / 7)))
    single = distances.float()
    assert torch.equal(single[1:], 2 * single[:-1])


def test_losses_are_those_at_the_moved_points() -> None:
    risk = network()
    found = directions(risk, ["descent", "random"], subspaces=["*", "0."])
    scan = rays(risk, found, base=1e-2, num=6)
    for k in range(4):
        for i in range(6):
            point = risk.theta + scan.distances[i, k] * found.columns[:, k]
            assert float(scan.losses[i, k]) == pytest.approx(
                float(risk.at(point).loss()), rel=1e-12
            )
    assert scan.loss == pytest.approx(float(risk.loss()), rel=1e-14)
    assert scan.labels == ("descent", "descent on 0.", "random", "random on 0.")


# --------------------------------------------------------------------------- known answers


def test_on_a_quadratic_grit_is_lambda_h_and_curvature_lambda() -> None:
    risk, hessian, minimum = quadratic()
    values = torch.linalg.eigvalsh(hessian)
    wanted = [eigenvector(i) for i in range(8)]
    scan = rays(risk.at(minimum), wanted, base=0.5, num=14)
    truth = values.flip(0)
    torch.testing.assert_close(scan.curvature, truth.expand_as(scan.curvature), rtol=1e-10, atol=0)
    torch.testing.assert_close(scan.grit, truth * scan.distances[:-1], rtol=1e-10, atol=0)
    assert bool(scan.resolved.all())


def test_on_a_quadratic_off_the_minimum_any_direction_has_its_curvature() -> None:
    risk, hessian, _ = quadratic(5)
    found = directions(risk, ["random", "descent"], subspaces=["*", "fc1"], num_random=3)
    scan = rays(risk, found, base=1.0, num=10, two_sided=True)
    truth = (found.columns * (hessian @ found.columns)).sum(0)
    torch.testing.assert_close(scan.curvature, truth.expand_as(scan.curvature), rtol=1e-10, atol=0)
    torch.testing.assert_close(scan.two_sided_curvature, truth.expand(10, -1), rtol=1e-10, atol=0)


def test_two_sided_curvature_is_the_hessian_to_second_order() -> None:
    risk = network()
    found = directions(risk, ["random", "descent"], num_random=3)
    scan = rays(risk, found, base=2.0**-9, num=4, two_sided=True)
    product = HessianLinearOperator.from_risk(risk) @ found.columns
    truth = (found.columns * product).sum(0)
    errors = (scan.two_sided_curvature - truth).abs()
    assert float((errors[0] / truth.abs()).max()) < 1e-4
    assert float((errors[1:] / errors[:-1]).min()) > 3.5, "fourfold with every doubling"
    assert float((errors[1:] / errors[:-1]).max()) < 4.5
    # the one-sided form is centred at h and misses it to first order
    assert float(((scan.curvature - truth).abs() / errors[:-1]).min()) > 10


def test_roughness_is_that_of_the_losses() -> None:
    scan = rays(network(), ["descent", "random"], base=1e-3, num=14)
    for k in range(2):
        for i in range(13):
            values = (scan.loss, float(scan.losses[i, k]), float(scan.losses[i + 1, k]))
            truth = float(definition(*values, float(scan.distances[i, k])))
            assert float(scan.roughness[i, k]) == pytest.approx(truth, rel=1e-12)
            assert scan.roughness_error[i, k] >= scan.roughness_floor[i, k] * (1 - 1e-9)


# --------------------------------------------------------------------------- choices


def test_float64_goes_through_the_whole_net() -> None:
    single = network(torch.float32)
    double = network(torch.float64)
    point = double.space.flatten([p.double() for p in single.params.values()])
    data = [(b.X, b.y) for b in single._data]
    reference = EmpiricalRisk(
        copy.deepcopy(single.model).double(),  # type: ignore[union-attr]
        nn.CrossEntropyLoss(),
        {n: p.double() for n, p in single.params.items()},
        [(X.double(), y) for X, y in data],
        weight_decay=0.01,
    )
    assert torch.equal(reference.theta, point)
    scan = rays(single, ["random", "descent"], base=1e-5, num=8, dtype=torch.float64)
    truth = rays(reference, ["random", "descent"], base=1e-5, num=8)
    assert scan.dtype == torch.float64
    torch.testing.assert_close(scan.losses, truth.losses, rtol=1e-14, atol=0)
    assert single.dtype == torch.float32
    assert bool(scan.resolved[3:].all())
    assert rays(single, "random", base=1e-5, num=3).dtype == torch.float32


def test_metrics_beside_the_loss() -> None:
    risk = network()

    def margin(f: Tensor, y: Tensor) -> Tensor:
        return f.gather(1, y.unsqueeze(1))[:, 0] - f.mean(1)

    metrics = {"accuracy": "accuracy", "margin": margin}
    scan = rays(risk, ["descent", "random"], base=1.0, num=5, metrics=metrics)
    found = directions(risk, ["descent", "random"])
    for i in range(5):
        for k in range(2):
            at = risk.at(risk.theta + scan.distances[i, k] * found.columns[:, k])
            f = torch.cat([f for f, _ in at.predictions()])
            y = torch.cat([y for _, y in at.predictions()])
            hits = float((f.argmax(1) == y).double().mean())
            assert float(scan.metrics["accuracy"][i, k]) == pytest.approx(hits)
            assert float(scan.metrics["margin"][i, k]) == pytest.approx(float(margin(f, y).mean()))
    assert set(scan.point_metrics) == {"accuracy", "margin"}
    named = rays(risk, "descent", base=1.0, num=5, metrics=["accuracy"])
    torch.testing.assert_close(
        named.metrics["accuracy"],
        rays(risk, "descent", base=1.0, num=5, metrics="accuracy").metrics["accuracy"],
    )


def test_the_same_seed_gives_the_same_scan(global_rng_untouched: None) -> None:
    risk = network()
    before = risk.theta
    one, two = (rays(risk, ["random", "descent"], num=4, num_random=2, seed=3) for _ in range(2))
    assert torch.equal(one.losses, two.losses)
    assert not torch.equal(
        one.losses, rays(risk, ["random", "descent"], num=4, num_random=2).losses
    )
    assert torch.equal(risk.theta, before)


def test_many_points_are_evaluated_in_pieces() -> None:
    risk = network()
    scan = rays(risk, ["random"], num_random=30, num=9, base=1e-2)
    alone = rays(risk, directions(risk, "random", num_random=30), num=9, base=1e-2)
    torch.testing.assert_close(scan.losses, alone.losses)
    assert scan.num_losses == 2 + 270 + 25


# --------------------------------------------------------------------------- what cannot be seen


def test_non_finite_losses_are_kept_as_such() -> None:
    params = {"w": torch.tensor([1.0, 2.0]).double()}
    risk = EmpiricalRisk(
        lambda p, x: x + p["w"].log(),
        nn.MSELoss(),
        params,
        [(torch.eye(2).double(), torch.zeros(2, 2).double())],
    )
    scan = rays(risk, [torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 1.0])], base=0.25, num=6)
    # log of 0 is -inf (its square inf), of less NaN
    assert scan.losses[:3, 0].isfinite().tolist() == [True, True, False]
    assert math.isinf(float(scan.losses[2, 0]))
    assert bool(scan.losses[3:, 0].isnan().all())
    assert scan.roughness[:, 0].isfinite().tolist() == [True, False, False, False, False]
    assert not bool(scan.resolved[1:, 0].any())
    assert bool(scan.losses[:, 1].isfinite().all())
    assert bool(scan.roughness[:, 1].isfinite().all())
    text = json.dumps(scan.to_dict())
    assert "Infinity" in text
    assert "2 rays" in str(scan)


def test_on_a_constant_loss_nothing_is_resolved() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x + 0 * p["w"].sum(),
        nn.MSELoss(),
        {"w": torch.ones(3).double()},
        [(torch.rand(5, 1, generator=rng(0)).double(), torch.zeros(5, 1).double())],
    )
    scan = rays(risk, "random", num=10)
    assert not bool(scan.resolved.any())
    assert not bool(scan.roughness.any())
    assert "within the rounding everywhere" in str(scan)


# --------------------------------------------------------------------------- the result


def test_prints_serialises_saves_and_loads(tmp_path: Path) -> None:
    scan = rays(
        network(), ["random", "descent"], base=0.1, num=5, metrics="accuracy", two_sided=True
    )
    lines = str(scan).splitlines()
    assert lines[0].startswith("2 rays, 5 distances from 0.1 to")
    assert lines[2].startswith("  descent: from")
    path = tmp_path / "rays.npz"
    scan.save(path)
    again = Rays.load(path)
    assert json.dumps(again.to_dict()) == json.dumps(scan.to_dict())
    assert again.dtype == torch.float64
    assert torch.equal(again.two_sided_curvature, scan.two_sided_curvature)
    plain = scan.to_dict()
    assert plain["roughness"] == scan.roughness.tolist()
    assert len(plain["two_sided_curvature"]) == 5


def test_quantities_by_name() -> None:
    scan = rays(network(), ["random", "descent"], base=0.1, num=5, metrics="accuracy")
    for name, values in (
        ("loss", scan.losses),
        ("rise", scan.losses - scan.loss),
        ("roughness", scan.roughness),
        ("grit", scan.grit),
        ("curvature", scan.curvature),
        ("accuracy", scan.metrics["accuracy"]),
    ):
        quantity = scan.quantity(name)
        assert torch.equal(quantity.values, values)
        shapes = {part.shape for part in quantity}
        assert shapes == {values.shape}
    grit, curvature = scan.quantity("grit"), scan.quantity("curvature")
    torch.testing.assert_close(grit.floors, curvature.floors * scan.distances[:-1])
    with pytest.raises(InputError, match=r"no quantity 'grits'.*accuracy"):
        scan.quantity("grits")
    with pytest.raises(InputError, match="two_sided=True"):
        scan.quantity("two_sided_curvature")


def test_becomes_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = rays(network(), ["random", "descent"], base=0.1, num=5, metrics="accuracy")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="needs pandas"):
        scan.to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    table = scan.to_pandas()
    assert {len(column) for column in table.values()} == {10}
    assert table["ray"] == ["random"] * 5 + ["descent"] * 5
    assert table["loss"][6] == float(scan.losses[1, 1])
    assert table["accuracy"][6] == float(scan.metrics["accuracy"][1, 1])
    assert table["grit"][6] == float(scan.grit[1, 1])
    assert math.isnan(table["grit"][4])
    assert table["resolved"][4] is False


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"base": 0.0}, InputError, "base is 0"),
        ({"base": math.nan}, InputError, "base is nan"),
        ({"num": 1}, InputError, "num is 1"),
        ({"num": 2.0}, InputError, "num is 2.0"),
        ({"num": 1040}, InputError, "the largest distance"),
        ({"base": 1.0, "num": 128, "dtype": torch.float32}, InputError, "float32 cannot hold"),
        ({"num_noise": 0}, InputError, "num_noise is 0"),
        ({"dtype": torch.int32}, InputError, "dtype is torch.int32"),
        ({"metrics": "acuracy"}, InputError, "acuracy"),
        ({"metrics": {"margin": 3}}, InputError, "'margin' is int"),
        ({"subspaces": "fc9"}, InputError, "'fc9' matches none"),
        ({"wanted": "up"}, InputError, "no direction 'up'"),
        ({"wanted": along(torch.zeros(51))}, InputError, "is zero"),
        ({"wanted": torch.ones(3)}, ShapeError, "direction"),
    ],
)
def test_bad_input(options: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"wanted": "random", **options}
    with pytest.raises(error, match=message):
        rays(network(), **arguments)  # type: ignore[arg-type]


def test_directions_that_do_not_fit() -> None:
    found = directions(network(), "random")
    with pytest.raises(InputError, match="subspaces has no effect"):
        rays(network(), found, subspaces="0.")
    with pytest.raises(ShapeError, match="51 entries, the risk 8"):
        rays(quadratic()[0], found)


def test_a_point_without_a_loss_is_refused_before_any_work() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"].log(),
        nn.MSELoss(),
        {"w": torch.zeros(1)},
        [(torch.ones(2, 1), torch.ones(2, 1))],
    )
    with pytest.raises(NonFiniteError, match="loss at the current point of the risk is inf"):
        rays(risk, "random")


def test_distances_beyond_float32_are_no_samples_of_the_noise() -> None:
    scan = rays(network(), "random", base=1.0, num=140)
    assert bool(scan.noise.loss.isfinite().all())


def test_the_module_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with seeded(3):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    model[0].bias.requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    X, y = torch.randn(20, 4, generator=rng(1)), torch.randint(3, (20,), generator=rng(2))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, [(X, y)])
    wanted = ["descent", eigenvector(0)]
    scan = rays(risk, wanted, num=4, dtype=torch.float64, metrics="accuracy", progress=True)
    assert scan.dtype == torch.float64
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [True, False] + [True] * 4
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    shown = capsys.readouterr().err
    assert "0/34" in shown, "9 points, and 25 more for the noise"
    assert shown.count("| 0/") == 1
    rays(risk, "random", num=2)
    assert capsys.readouterr().err == ""
