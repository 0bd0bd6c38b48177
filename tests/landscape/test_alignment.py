"""Alignment: which units there are, the best order of them, and the same function afterwards."""

from __future__ import annotations

import copy
import json
from itertools import permutations
from pathlib import Path as File
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.landscape import (
    Alignment,
    Axis,
    Segment,
    align,
    barrier,
    permutation_groups,
    permute,
)
from curvops.landscape.permutation import group_size
from curvops.landscape.weight_matching import match
from tests import cases
from tests.landscape import nets


class Residual(nn.Module):
    """Functional activations, a residual sum, a view, a pooled mean, a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.outer = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.depth = nn.Conv2d(6, 6, 3, groups=6)
        self.act = nn.PReLU(6)
        self.scale = nn.GroupNorm(1, 6)
        self.fc = nn.Linear(6 * 4, 7)
        self.layer_norm = nn.LayerNorm(7)
        self.last = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.tanh(self.inner(x)))
        x = self.scale(self.act(self.depth(x)))
        x = F.max_pool2d(x, 3)
        x = x.view(x.size(0), -1)
        return self.last(F.gelu(self.layer_norm(self.fc(x))))


class Pooled(nn.Module):
    """Channels become features by a mean; a transposed convolution; a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 5, 3)
        self.norm = nn.InstanceNorm2d(5, affine=True)
        self.twice = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(x)))
        x = self.twice(torch.relu(self.twice(x)))
        return self.head(x.mean((2, 3)))


def deep() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 16), nn.Tanh()]
    for _ in range(4):
        layers += [nn.Linear(16, 16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 10))


def made(make: Any, seed: int = 0) -> nn.Module:
    with cases.seeded(seed):
        net: nn.Module = make().eval()
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0)
        for p in net.parameters():
            if p.ndim == 1:  # norms that start at one hide a wrong order
                p.data += 0.3 * torch.randn(p.shape)
    return net


def shuffled(net: nn.Module, seed: int = 9) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy with its hidden units in another order."""
    groups = permutation_groups(net)
    g = cases.rng(seed)
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    orders = {n: torch.randperm(group_size(a, own), generator=g) for n, a in groups.items()}
    other = copy.deepcopy(net)
    state = permute({n: t.detach() for n, t in own.items()}, groups, orders)
    other.load_state_dict(state, strict=False)
    return other, orders


NETS: dict[str, Any] = {
    "mlp": nets.mlp,
    "deep": deep,
    "cnn": nets.cnn,
    "normed": nets.normed,
    "residual": Residual,
    "pooled": Pooled,
}


# Which units there are -----------------------------------------------------------------------


def test_groups_of_a_sequence() -> None:
    found = {n: [tuple(a) for a in axes] for n, axes in permutation_groups(nets.normed()).items()}
    assert found == {
        "0.weight": [
            ("0.weight", 0, 1),
            ("0.bias", 0, 1),
            ("1.weight", 0, 1),
            ("1.bias", 0, 1),
            ("1.running_mean", 0, 1),
            ("1.running_var", 0, 1),
            ("3.weight", 1, 1),
        ],
        "3.weight": [
            ("3.weight", 0, 1),
            ("3.bias", 0, 1),
            ("4.weight", 0, 1),
            ("4.bias", 0, 1),
            ("4.running_mean", 0, 1),
            ("4.running_var", 0, 1),
            ("7.weight", 1, 4),
        ],
    }


def test_a_residual_sum_makes_two_groups_one() -> None:
    found = permutation_groups(Residual())
    assert set(found) == {"stem.weight", "inner.weight", "fc.weight"}
    names = {axis.tensor for axis in found["stem.weight"]}
    assert {"stem.weight", "outer.weight", "depth.weight", "act.weight", "fc.weight"} <= names
    assert Axis("fc.weight", 1, 4) in found["stem.weight"]


def test_inputs_and_outputs_stay_in_order() -> None:
    assert permutation_groups(nn.Sequential(nn.Linear(3, 2))) == {}
    skip = permutation_groups(Wide())
    assert skip == {}  # the sum with the input fixes the hidden units as well


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x + self.inner(x))


@pytest.mark.parametrize("name", list(NETS))
def test_permuting_leaves_the_function(name: str) -> None:
    net = made(NETS[name])
    other, orders = shuffled(net)
    X, _ = nets.images()
    with torch.no_grad():
        torch.testing.assert_close(other(X[:20]), net(X[:20]), atol=1e-5, rtol=1e-4)
    assert orders
    moved = dict(other.named_parameters())
    assert any(not torch.equal(moved[n], p) for n, p in net.named_parameters())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 4)
        self.outer = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x.flatten(1))
        return self.outer(h if h.sum() > 0 else -h)


class Parameterised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 4)
        self.gain = nn.Parameter(torch.ones(4))
        self.outer = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.gain * self.inner(x.flatten(1)))


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.RNN(4, 4)), "'2', a RNN"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), "in 2 groups"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), "GroupNorm"),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2)), "Unflatten"),
        (nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Linear(3, 2)), "GLU"),
        (nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(9, 2)), "6 units become the 9"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))), "computed from"),
        (Branching(), "cannot be traced"),
        (Parameterised(), "the tensor 'gain'"),
    ],
)
def test_what_has_no_rule_is_refused(net: nn.Module, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        permutation_groups(net)
    assert "groups=" in str(caught.value)


# The best order ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["mlp", "deep", "cnn", "normed", "residual"])
def test_a_permuted_copy_comes_back(name: str, seed: int, global_rng_untouched: None) -> None:
    net = made(NETS[name])
    copied, _ = shuffled(net, seed)
    risk = nets.risk_of(net)
    found = align(risk, net, copied, seed=seed)
    assert found.converged
    assert found.distance == 0.0
    assert all(torch.equal(found.point[n], p) for n, p in net.named_parameters())
    back = found.apply(copied)
    assert all(torch.equal(back.state_dict()[n], t) for n, t in net.state_dict().items())


def test_its_barrier_is_gone() -> None:
    for name in ("mlp", "cnn", "normed"):
        net = nets.trained(name, 0)
        copied, _ = shuffled(net)
        risk = nets.risk_of(net)
        before = barrier(risk, Segment(net, copied), 9, refinements=0)
        after = barrier(risk, Segment(net, align(risk, net, copied).point), 9, refinements=0)
        assert before.height > 0.05
        assert after.height < 1e-6


def test_one_layer_is_solved_exactly() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    X = cases.randn(6, 3, seed=0)
    risk = EmpiricalRisk(net, nn.MSELoss(), net, [(X, cases.randn(6, 2, seed=1))])
    for seed in range(5):
        a, b = (cases.randn(risk.space.dim, seed=10 * seed + i) for i in (1, 2))
        found = align(risk, a, b)
        blocks = dict(zip(risk.space.names, risk.space.unflatten(b)))
        groups = permutation_groups(net)
        orders = [{"0.weight": torch.tensor(order)} for order in permutations(range(5))]
        moved = [risk.flat(list(permute(blocks, groups, order).values())) for order in orders]
        best = min(float((a - other).norm()) for other in moved)
        assert found.distance == pytest.approx(best, rel=1e-12)
        assert found.distance <= found.distance_before
        torch.testing.assert_close(risk.at(found.point).loss(), risk.at(b).loss())


def test_independent_nets_come_closer() -> None:
    for name in ("mlp", "cnn", "normed"):
        risk, a, b = nets.pair(name)
        found = align(risk, a, b)
        assert found.distance < 0.95 * found.distance_before
        straight = barrier(risk, Segment(a, b), 9, refinements=0)
        aligned = barrier(risk, Segment(a, found.point), 9, refinements=0)
        assert aligned.height < 0.5 * straight.height
        assert aligned.scan.ends == pytest.approx(straight.scan.ends, rel=1e-3)


def test_more_starts_are_no_worse() -> None:
    net = made(deep)
    risk = nets.risk_of(net)
    other = made(deep, 1)
    one = align(risk, net, other, seed=4)
    many = align(risk, net, other, seed=4, restarts=8)
    assert many.distance <= one.distance
    assert align(risk, net, other, seed=4).distance == one.distance
    hasty = align(risk, net, other, seed=4, max_sweeps=1)
    assert hasty.num_sweeps == 1
    assert not hasty.converged
    assert hasty.distance < hasty.distance_before


def test_a_layer_that_is_used_twice_only_gets_closer() -> None:
    net, other = made(Pooled), made(Pooled, 1)
    risk = nets.risk_of(net)
    for seed in range(4):
        found = align(risk, net, other, seed=seed)
        assert found.distance <= found.distance_before


def test_a_group_on_both_axes_of_a_tensor_only_gets_closer() -> None:
    """There the assignment problem is a linear guess at a quadratic one, and may be worse."""
    groups = {"h": (Axis("W", 0), Axis("W", 1))}
    better = 0
    for seed in range(40):
        a, b = ({"W": cases.randn(5, 5, seed=2 * seed + i)} for i in (0, 1))
        found = match(a, b, groups, 50, cases.rng(seed))
        before = float((a["W"] * b["W"]).sum())
        assert found.similarity >= before
        assert found.converged
        better += found.similarity > before
    assert better > 20


# Formats and groups of one's own -------------------------------------------------------------


def test_any_format() -> None:
    risk, a, b = nets.pair("mlp")
    named = {n: p.detach() for n, p in b.named_parameters()}
    flat = Segment(a, b).ends[1]
    module = align(risk, a, b)
    assert isinstance(module.point, dict)
    assert torch.equal(align(risk, a, flat).point, Segment(a, module.point).ends[1])
    listed = align(risk, a, list(named.values())).point
    assert isinstance(listed, list)
    assert torch.equal(listed[0], module.point["1.weight"])
    assert torch.equal(align(risk, a, named).point["3.weight"], module.point["3.weight"])
    assert torch.equal(module.apply(named)["1.bias"], module.point["1.bias"])


def test_groups_of_a_plain_function() -> None:
    X, y = cases.randn(9, 3, seed=0), cases.randn(9, 1, seed=1)
    params = {"W": cases.randn(4, 3, seed=2), "v": cases.randn(1, 4, seed=3)}
    risk = EmpiricalRisk(
        lambda p, x: torch.tanh(x @ p["W"].T) @ p["v"].T, nn.MSELoss(), params, [(X, y)]
    )
    order = torch.tensor([3, 1, 0, 2])
    moved = {"W": params["W"][order], "v": params["v"][:, order]}
    found = align(risk, params, moved, groups={"hidden": [("W", 0), ("v", 1)]})
    assert found.distance == 0
    assert torch.equal(order[found.permutations["hidden"]], torch.arange(4))
    with pytest.raises(InputError, match="plain callable"):
        align(risk, params, moved)


@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        ({}, InputError, "empty"),
        ({"h": []}, InputError, "no axes"),
        ({"h": ["1.weight"]}, InputError, "expected"),
        ({"h": [("5.weight", 0)]}, InputError, "'5.weight'"),
        ({"h": [("1.weight", 2)]}, InputError, "axis 2"),
        ({"h": [("1.weight", 0, 5)]}, ShapeError, "blocks of 5"),
        ({"h": [("1.weight", 0), ("1.weight", 0)]}, InputError, "again"),
        ({"h": [("1.weight", 0), ("3.weight", 0)]}, ShapeError, "different numbers"),
        ({"h": [("1.weight", 0), ("3.weight", 1)]}, InputError, "changes predictions"),
        ({"h": [("1.weight", 1)]}, InputError, "changes predictions"),
    ],
)
def test_bad_groups(groups: Any, error: type[Exception], match: str) -> None:
    risk, a, b = nets.pair("mlp")
    with pytest.raises(error, match=match):
        align(risk, a, b, groups=groups)


class Transposed(nn.Module):
    """Something that no rule is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mT.flatten(1))


class Reshaped(nn.Module):
    """Shapes that come and go, but every unit stays in one block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x)).reshape(x.shape[0], 4, 4)
        return self.fc(h.contiguous().flatten(1))


class Interleaved(nn.Module):
    """A linear layer whose units are the fastest axis when they are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.second = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x[..., 0, :, :])).flatten(1))


def test_shapes_around_units() -> None:
    with pytest.raises(InputError, match="no rule for getattr"):
        permutation_groups(Transposed())
    X, y = torch.rand(8, 1, 6, 6, generator=cases.rng(0)), torch.zeros(8).long()
    with cases.seeded(0):
        good, wrong = Reshaped().eval(), Interleaved().eval()
    risk = EmpiricalRisk(good, nn.CrossEntropyLoss(), good, [(X, y)])
    assert align(risk, good, good).distance == 0
    with pytest.raises(InputError, match="no rule for getitem"):
        permutation_groups(wrong)
    # What the rules would have said, and what is right where units are the fastest axis: nothing.
    risk = EmpiricalRisk(wrong, nn.CrossEntropyLoss(), wrong, [(X, y)])
    groups = {"first": [("first.weight", 0), ("first.bias", 0), ("second.weight", 1, 6)]}
    with pytest.raises(InputError, match="changes predictions"):
        align(risk, wrong, wrong, groups=groups)


def test_units_must_be_parameters_of_the_risk() -> None:
    _, a, _ = nets.pair("mlp")
    X, y = nets.images()
    part = EmpiricalRisk(a, nn.CrossEntropyLoss(), "1.*", [(X, y)])
    with pytest.raises(InputError, match=r"3\.weight.*no parameters of the risk"):
        align(part, a, a)


def test_bad_input() -> None:
    risk, a, b = nets.pair("mlp")
    with pytest.raises(InputError, match="restarts"):
        align(risk, a, b, restarts=0)
    with pytest.raises(InputError, match="max_sweeps"):
        align(risk, a, b, max_sweeps=0)
    with pytest.raises(ShapeError, match="b has shape"):
        align(risk, a, torch.ones(5))
    with pytest.raises(NonFiniteError, match="a holds"):
        align(risk, torch.full((risk.space.dim,), torch.nan), b)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="no hidden units"):
        align(nets.risk_of(plain), plain, plain)
    huge = {n: p.detach() * 1e30 for n, p in b.named_parameters()}
    with pytest.raises(NonFiniteError, match="predictions of b"):
        align(risk, a, huge)


def test_saves_and_prints(tmp_path: File) -> None:
    risk, a, b = nets.pair("cnn")
    found = align(risk, a, b)
    found.save(tmp_path / "a.npz")
    again = Alignment.load(tmp_path / "a.npz")
    assert again.distance == found.distance
    X, _ = nets.images()
    with torch.no_grad():
        torch.testing.assert_close(again.apply(b)(X), b(X), atol=1e-4, rtol=1e-4)
    assert "hidden units renumbered in 2 layers" in str(found)
    json.dumps(found.to_dict())
