"""Lengths of directions by layer and filter, against loops over filters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.errors import InputError
from curvops.landscape.normalization import is_bias_or_norm, normalize
from tests.cases import rng, seeded


class Net(nn.Module):
    """A convolution, two norms (one with a weight of three axes), a transposed one, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)
        self.bn = nn.BatchNorm2d(3)
        self.ln = nn.LayerNorm([3, 3, 3])
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.ln(self.bn(self.conv(x)))).flatten(1))


@pytest.fixture
def risk() -> EmpiricalRisk:
    with seeded(0):
        model = Net().double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
    X = torch.randn(4, 1, 4, 4, generator=rng(1), dtype=torch.float64)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), model, [(X, torch.tensor([0, 1, 0, 1]))])


def directions(risk: EmpiricalRisk) -> Tensor:
    return torch.randn(risk.space.dim, 2, generator=rng(2), dtype=torch.float64)


def named(risk: EmpiricalRisk, flat: Tensor) -> dict[str, Tensor]:
    return dict(zip(risk.space.names, risk.space.unflatten(flat), strict=True))


def test_unit_and_none(risk: EmpiricalRisk) -> None:
    columns = directions(risk)
    assert normalize(risk, columns, "none") is columns
    unit = normalize(risk, columns, "unit")
    torch.testing.assert_close(unit.norm(dim=0), torch.ones(2).double())
    torch.testing.assert_close(unit * columns.norm(dim=0), columns)


@pytest.mark.parametrize("ignore", ["biasbn", None])
def test_every_filter_gets_the_norm_of_the_filter(risk: EmpiricalRisk, ignore: str | None) -> None:
    columns = directions(risk)
    result = normalize(risk, columns, "filter", ignore)  # type: ignore[arg-type]
    for k in range(2):
        got, given = named(risk, result[:, k]), named(risk, columns[:, k])
        theta = named(risk, risk.theta)
        for name in ("conv.weight", "head.weight"):
            for f in range(len(theta[name])):
                expected = given[name][f] / given[name][f].norm() * theta[name][f].norm()
                torch.testing.assert_close(got[name][f], expected)
        for f in range(2):  # a transposed convolution has its filters on the second axis
            d, w = given["up.weight"][:, f], theta["up.weight"][:, f]
            torch.testing.assert_close(got["up.weight"][:, f], d / d.norm() * w.norm())
        for name in ("conv.bias", "bn.weight", "bn.bias", "ln.weight", "ln.bias", "head.bias"):
            if ignore:
                assert not got[name].any()
            elif name != "ln.weight" and name != "ln.bias":
                torch.testing.assert_close(got[name], given[name].sign() * theta[name].abs())


def test_every_layer_gets_the_norm_of_the_layer(risk: EmpiricalRisk) -> None:
    columns = directions(risk)
    result = normalize(risk, columns, "layer", None)
    theta = named(risk, risk.theta)
    for k in range(2):
        got, given = named(risk, result[:, k]), named(risk, columns[:, k])
        for name, w in theta.items():
            torch.testing.assert_close(got[name], given[name] * (w.norm() / given[name].norm()))
    assert not named(risk, normalize(risk, columns, "layer")[:, 0])["ln.weight"].any()


def test_filters_of_zero_stay_or_become_zero(risk: EmpiricalRisk) -> None:
    columns = directions(risk)
    d, theta = named(risk, columns), named(risk, risk.theta)
    d["conv.weight"][0] = 0
    theta["head.weight"][1] = 0
    moved = risk.at([theta[name] for name in risk.space.names])
    got = named(risk, normalize(moved, risk.space.flatten(list(d.values())), "filter"))
    assert not got["conv.weight"][0].any()
    assert not got["head.weight"][1].any()
    assert got["conv.weight"][1].all()
    assert torch.isfinite(got["head.weight"]).all()


def test_does_not_depend_on_the_scale_of_the_direction(risk: EmpiricalRisk) -> None:
    columns = directions(risk)
    for kind in ("unit", "filter", "layer"):
        torch.testing.assert_close(
            normalize(risk, 1e-3 * columns, kind),  # type: ignore[arg-type]
            normalize(risk, columns, kind),  # type: ignore[arg-type]
        )


def test_what_counts_as_bias_or_norm() -> None:
    assert is_bias_or_norm("a.bias", 2)
    assert is_bias_or_norm("scale", 1)
    assert is_bias_or_norm("temperature", 0)
    assert is_bias_or_norm("ln.weight", 3, nn.LayerNorm([2, 2, 2]))
    assert not is_bias_or_norm("fc.weight", 2, nn.Linear(2, 2))
    assert not is_bias_or_norm("bias_net.weight", 2)


def test_a_plain_callable_has_filters_too() -> None:
    params = {"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]]).double(), "b": torch.ones(2).double()}
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"].T + p["b"],
        nn.MSELoss(),
        params,
        [(torch.eye(2).double(), torch.zeros(2, 2).double())],
    )
    got = normalize(risk, torch.ones(6, 1).double(), "filter")[:, 0]
    root = 0.5**0.5
    expected = [5 * root, 5 * root, root, root, 0, 0]
    torch.testing.assert_close(got, torch.tensor(expected).double())


def test_bad_choices(risk: EmpiricalRisk) -> None:
    with pytest.raises(InputError, match=r"normalization is 'filters'.*\"filter\""):
        normalize(risk, directions(risk), "filters")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ignore is 'bias'"):
        normalize(risk, directions(risk), "filter", "bias")  # type: ignore[arg-type]
