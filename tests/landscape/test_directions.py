"""Named directions are what they say, on the whole space and on parts of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, HessianLinearOperator, eigsh
from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.landscape.directions import Directions, along, directions, eigenvector, toward
from curvops.landscape.subspace import mask, matching
from tests.cases import perturbed, rng, seeded


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    net = nn.Sequential()
    with seeded(0):
        net.add_module("fc1", nn.Linear(4, 6))
        net.add_module("act", nn.Tanh())
        net.add_module("fc2", nn.Linear(6, 3))
    return net.to(dtype)


@pytest.fixture
def risk() -> EmpiricalRisk:
    model = network()
    X = torch.randn(20, 4, generator=rng(1), dtype=torch.float64)
    y = torch.randint(3, (20,), generator=rng(2))
    params = perturbed(model)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), params, [(X[:9], y[:9]), (X[9:], y[9:])])


def dense(risk: EmpiricalRisk) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian by torch.func, which shares nothing with the operators."""
    X = torch.cat([b.X for b in risk._data])
    y = torch.cat([b.y for b in risk._data])

    def loss(theta: Tensor) -> Tensor:
        params = dict(zip(risk.space.names, risk.space.unflatten(theta), strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(risk.model, params, X), y)

    theta = risk.theta
    return torch.func.grad(loss)(theta), torch.func.hessian(loss)(theta)


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def test_named_directions(risk: EmpiricalRisk) -> None:
    gradient, _ = dense(risk)
    found = directions(risk, ["ascent", "descent", "radial_out", "radial_in"])
    assert found.labels == found.names == ("ascent", "descent", "radial_out", "radial_in")
    assert found.subspaces == ("*",) * 4
    truth = torch.stack([gradient, -gradient, risk.theta, -risk.theta], dim=1)
    torch.testing.assert_close(found.lengths, truth.norm(dim=0))
    torch.testing.assert_close(found.columns, truth / truth.norm(dim=0))
    assert (found.num_gradients, found.num_matvecs) == (1, 0)


def test_eigenvectors_from_both_ends(risk: EmpiricalRisk) -> None:
    _, hessian = dense(risk)
    values, vectors = torch.linalg.eigh(hessian)
    found = directions(risk, [eigenvector(1), eigenvector(-1), eigenvector(0), eigenvector(-2)])
    assert found.labels == ("eigenvector 1", "eigenvector -1", "eigenvector 0", "eigenvector -2")
    for k, place in enumerate((-2, 0, -1, 1)):
        v = found.columns[:, k]
        assert abs(float(v @ vectors[:, place])) == pytest.approx(1, abs=1e-8)
        assert float(v @ hessian @ v) == pytest.approx(float(values[place]), abs=1e-8)
        assert float(v[v.abs().argmax()]) > 0
    assert found.num_matvecs > 0


def test_eigenvectors_of_what_is_there_already(risk: EmpiricalRisk) -> None:
    operator = HessianLinearOperator.from_risk(risk)
    pairs = eigsh(operator, 3, "LA")
    found = directions(risk, [eigenvector(0, pairs), eigenvector(-1, pairs)])
    assert pairs.eigenvectors is not None
    assert abs(float(found.columns[:, 0] @ pairs.eigenvectors[:, 2])) == pytest.approx(1)
    assert abs(float(found.columns[:, 1] @ pairs.eigenvectors[:, 0])) == pytest.approx(1)
    assert found.num_matvecs == 0
    matrix = torch.diag(torch.arange(risk.space.dim, dtype=torch.float64))
    of = directions(risk, [eigenvector(0, matrix), eigenvector(2, matrix)])
    assert int(of.columns[:, 0].abs().argmax()) == risk.space.dim - 1
    assert int(of.columns[:, 1].abs().argmax()) == risk.space.dim - 3


def test_random_directions_are_normal_unit_and_seeded(
    risk: EmpiricalRisk, global_rng_untouched: None
) -> None:
    three = directions(risk, "random", num_random=3, seed=5)
    assert three.labels == ("random 0", "random 1", "random 2")
    assert three.names == ("random",) * 3
    torch.testing.assert_close(three.columns.norm(dim=0), torch.ones(3).double())
    eight = directions(risk, ["random"], num_random=8, seed=5)
    assert torch.equal(eight.columns[:, :3], three.columns)
    one = directions(risk, "random", seed=torch.Generator().manual_seed(3))
    assert one.labels == ("random",)
    assert not torch.equal(one.columns[:, 0], three.columns[:, 0])
    lengths = directions(risk, "random", num_random=40).lengths
    assert float(lengths.square().mean()) == pytest.approx(risk.space.dim, rel=0.15)
    drawn = directions(risk, "random", num_random=200).columns.double()
    assert float(drawn.mean(1).abs().max()) < 5 / (200 * risk.space.dim) ** 0.5


def test_random_directions_do_not_depend_on_the_dtype(risk: EmpiricalRisk) -> None:
    model = network(torch.float32)
    data = [(torch.zeros(2, 4), torch.tensor([0, 1]))]
    single = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data)
    a = directions(single, "random", seed=1).columns
    assert a.dtype == torch.float32
    torch.testing.assert_close(a.double(), directions(risk, "random", seed=1).columns)


@pytest.mark.parametrize("kind", ["tensor", "list", "dict", "state_dict", "module", "risk"])
def test_toward_another_point(risk: EmpiricalRisk, kind: str) -> None:
    other = network()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    blocks = [p.detach() for p in other.parameters()]
    flat = risk.space.flatten(blocks)
    named = dict(zip(risk.space.names, blocks, strict=True))
    points = {
        "tensor": flat,
        "list": blocks,
        "dict": named,
        "state_dict": {**other.state_dict(), "buffer": torch.ones(3, dtype=torch.int64)},
        "module": other,
        "risk": risk.at(flat),
    }
    found = directions(risk, toward(points[kind], "other"))  # type: ignore[arg-type]
    assert found.labels == ("other",)
    assert float(found.lengths[0]) == pytest.approx(float((flat - risk.theta).norm()))
    torch.testing.assert_close(risk.theta + found.lengths[0] * found.columns[:, 0], flat)


def test_given_vectors_in_every_format(risk: EmpiricalRisk) -> None:
    vector = torch.randn(risk.space.dim, generator=rng(7), dtype=torch.float64)
    blocks = risk.space.unflatten(vector)
    named = dict(zip(risk.space.names, blocks, strict=True))
    expected = unit(vector)
    for wanted in (vector, [vector], [blocks], named, [named], along(vector), along(blocks, "x")):
        found = directions(risk, wanted)  # type: ignore[arg-type]
        torch.testing.assert_close(found.columns[:, 0], expected)
    assert directions(risk, along(vector, "mine")).labels == ("mine",)
    assert directions(risk, [vector, vector]).labels == ("direction 0", "direction 1")
    both = directions(risk, torch.stack([vector, -vector], dim=1))
    assert both.labels == ("direction 0 0", "direction 0 1")
    torch.testing.assert_close(both.columns[:, 1], -expected)


def test_projection_onto_subspaces_is_renormalised(risk: EmpiricalRisk) -> None:
    gradient, _ = dense(risk)
    patterns = ["fc1", "weight", "bias", "*", "fc?.weight"]
    found = directions(risk, ["ascent", "random"], subspaces=patterns)
    assert found.subspaces == tuple(patterns) * 2
    assert found.labels[:5] == (
        "ascent on fc1",
        "ascent on weight",
        "ascent on bias",
        "ascent",
        "ascent on fc?.weight",
    )
    assert found.names == ("ascent",) * 5 + ("random",) * 5
    for k, pattern in enumerate(found.subspaces):
        inside = torch.cat(
            [torch.full((p.numel(),), named_by(pattern, name)) for name, p in risk.params.items()]
        )
        column = found.columns[:, k]
        assert not column[~inside].any()
        assert column[inside].all()
        assert float(column.norm()) == pytest.approx(1)
        if k < 5:
            projected = gradient * inside
            torch.testing.assert_close(column, unit(projected))
            assert float(found.lengths[k]) == pytest.approx(float(projected.norm()))


def named_by(pattern: str, name: str) -> bool:
    if pattern == "*":
        return True
    if pattern == "fc?.weight":
        return name.endswith("weight")
    return pattern in name


def test_filter_normalisation_follows_the_projection(risk: EmpiricalRisk) -> None:
    found = directions(risk, "random", subspaces="fc1", normalization="filter")
    assert found.normalization == "filter"
    blocks = dict(zip(risk.space.names, risk.space.unflatten(found.columns[:, 0]), strict=True))
    theta = dict(zip(risk.space.names, risk.space.unflatten(risk.theta), strict=True))
    torch.testing.assert_close(blocks["fc1.weight"].norm(dim=1), theta["fc1.weight"].norm(dim=1))
    assert not any(blocks[n].any() for n in ("fc1.bias", "fc2.weight", "fc2.bias"))
    raw = directions(risk, toward(torch.zeros(risk.space.dim)), normalization="none")
    torch.testing.assert_close(raw.columns[:, 0], -risk.theta)


def test_the_point_that_counts_is_that_of_the_risk(risk: EmpiricalRisk) -> None:
    moved = risk.at(2 * risk.theta)
    gradient, _ = dense(moved)
    torch.testing.assert_close(directions(moved, "ascent").columns[:, 0], unit(gradient))


def test_prints_saves_and_loads(risk: EmpiricalRisk, tmp_path: Path) -> None:
    found = directions(risk, ["descent", eigenvector(0)], subspaces=["*", "bias"])
    assert "descent on bias: length" in str(found)
    assert len(found) == 4
    found.save(tmp_path / "directions.npz")
    again = Directions.load(tmp_path / "directions.npz")
    assert torch.equal(again.columns, found.columns)
    assert again.to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("wanted", "options", "error", "message"),
    [
        ("descend", {}, InputError, "no direction 'descend'.*descent"),
        ([], {}, InputError, "No direction"),
        ("random", {"num_random": 0}, InputError, "num_random is 0"),
        ("random", {"seed": -1}, InputError, "seed"),
        ("random", {"subspaces": "fc9"}, InputError, "'fc9' matches none of the 4.*fc1.weight"),
        ("random", {"subspaces": ["fc1", "fc*x"]}, InputError, r"'fc\*x' matches none"),
        ("random", {"subspaces": []}, InputError, "subspaces is empty"),
        ("random", {"subspaces": [""]}, InputError, "subspaces holds ''"),
        ("random", {"normalization": "norm"}, InputError, "normalization"),
        (
            "random",
            {"subspaces": "bias", "normalization": "filter"},
            InputError,
            "zero when it is normalised by filter.*ignore=None",
        ),
        (torch.zeros(51), {}, InputError, "direction 'direction 0' is zero"),
        (torch.ones(50), {}, ShapeError, "expected .51"),
        ([torch.ones(51), torch.full((51,), torch.nan)], {}, NonFiniteError, "direction 1"),
        (eigenvector(51), {}, InputError, "eigenvector 51.*51 parameters"),
        (eigenvector(-52), {}, InputError, "eigenvector -52"),
        (toward(torch.ones(3)), {}, ShapeError, "other point of 'toward'"),
        (toward({"fc1.weight": torch.ones(6, 4)}), {}, InputError, "lacks the parameters"),
        (toward(torch.ones(51, 2)), {}, InputError, "2 points"),
        (eigenvector(0, torch.eye(3)), {}, ShapeError, "direction 'eigenvector 0'"),
    ],
)
def test_bad_input(
    risk: EmpiricalRisk,
    wanted: object,
    options: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        directions(risk, wanted, **options)  # type: ignore[arg-type]


def test_directions_that_vanish_say_why(risk: EmpiricalRisk) -> None:
    with pytest.raises(InputError, match="Both points agree"):
        directions(risk, toward(risk))
    at_zero = risk.at(torch.zeros(risk.space.dim))
    with pytest.raises(InputError, match=r"'radial_out' is zero.*all zero"):
        directions(at_zero, "radial_out")
    gradient_free = EmpiricalRisk(
        lambda p, x: x * p["w"] ** 2,
        nn.MSELoss(),
        {"w": torch.zeros(1)},
        [(torch.ones(2, 1), torch.zeros(2, 1))],
    )
    with pytest.raises(InputError, match=r"'descent' is zero. The gradient vanishes"):
        directions(gradient_free, "descent")
    only = torch.zeros(risk.space.dim)
    only[0] = 1
    with pytest.raises(InputError, match=r"'direction 0 on bias' is zero. Its entries there"):
        directions(risk, only, subspaces=["weight", "bias"])


def test_a_gradient_that_is_not_finite_has_no_direction() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"].sqrt(),
        nn.MSELoss(),
        {"w": torch.zeros(1)},
        [(torch.ones(2, 1), torch.ones(2, 1))],
    )
    with pytest.raises(NonFiniteError, match="gradient"):
        directions(risk, "ascent")


def test_bad_eigenvectors() -> None:
    pairs = eigsh(torch.diag(torch.arange(5.0)), 2, return_eigenvectors=False)
    with pytest.raises(InputError, match="return_eigenvectors"):
        eigenvector(0, pairs)
    with pytest.raises(InputError, match="holds 2 eigenpairs"):
        eigenvector(2, eigsh(torch.diag(torch.arange(5.0)), 2))
    for index in (True, 1.0, "0"):
        with pytest.raises(InputError, match="index"):
            eigenvector(index)  # type: ignore[arg-type]


def test_matching_is_by_substring_or_glob(risk: EmpiricalRisk) -> None:
    assert matching(risk.space, "1.w") == ("fc1.weight",)
    assert matching(risk.space, "fc[12].bias") == ("fc1.bias", "fc2.bias")
    assert matching(risk.space, "*") == risk.space.names
    assert int(mask(risk.space, "fc2").sum()) == 21
    with pytest.raises(InputError, match="matches none"):
        matching(risk.space, "c1.b?")  # globs match whole names
