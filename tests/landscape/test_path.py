"""Paths: the formulas, the ends to the last bit, any format, and the loss along them."""

from __future__ import annotations

import copy
import json
import sys
from itertools import pairwise
from pathlib import Path as File
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.errors import DataError, DTypeError, InputError, NonFiniteError, ShapeError
from curvops.landscape import Bezier, PathScan, PolyChain, Segment, scan_path
from curvops.landscape.batch_norm import Renormalized
from tests import cases
from tests.landscape import nets

T = torch.linspace(0, 1, 9, dtype=torch.float64)
KINDS = {"segment": Segment, "polychain": PolyChain, "bezier": Bezier}


def points(num: int, dim: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return list(cases.randn(num, dim, seed=num).to(dtype))


# The formulas --------------------------------------------------------------------------------


def test_segment() -> None:
    a, b = points(2)
    expected = torch.stack([(1 - t) * a + t * b for t in T], dim=1)
    torch.testing.assert_close(Segment(a, b)(T), expected)


def test_polychain_with_one_bend() -> None:
    a, theta, b = points(3)
    path = PolyChain(a, theta, b)
    for t in T.tolist():
        if t <= 0.5:
            expected = 2 * (t * theta + (0.5 - t) * a)
        else:
            expected = 2 * ((t - 0.5) * b + (1 - t) * theta)
        torch.testing.assert_close(path(t), expected)


@pytest.mark.parametrize("bends", [2, 3, 6])
def test_polychain_goes_straight_from_bend_to_bend(bends: int) -> None:
    corners = points(bends + 2)
    path = PolyChain(*corners)
    for j in range(bends + 1):
        for share in (0.0, 0.3, 0.9):
            expected = (1 - share) * corners[j] + share * corners[j + 1]
            torch.testing.assert_close(path((j + share) / (bends + 1)), expected)


def test_bezier_with_one_bend() -> None:
    a, theta, b = points(3)
    path = Bezier(a, theta, b)
    for t in T.tolist():
        expected = (1 - t) ** 2 * a + 2 * t * (1 - t) * theta + t**2 * b
        torch.testing.assert_close(path(t), expected)


@pytest.mark.parametrize("bends", [2, 3, 6])
def test_bezier_of_higher_degree_is_de_casteljaus(bends: int) -> None:
    corners = points(bends + 2)
    path = Bezier(*corners)
    for t in T.tolist():
        row = list(corners)
        while len(row) > 1:
            row = [(1 - t) * p + t * q for p, q in pairwise(row)]
        torch.testing.assert_close(path(t), row[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_ends_are_the_given_points_to_the_last_bit(kind: str, dtype: torch.dtype) -> None:
    given = points(2 if kind == "segment" else 5, 1000, dtype)
    path = KINDS[kind](*given)
    ends = path([0.0, 1.0])
    assert torch.equal(path(0), given[0])
    assert torch.equal(path(1.0), given[-1])
    assert torch.equal(ends, torch.stack([given[0], given[-1]], dim=1))
    assert torch.equal(path.bends, torch.stack(given)[1:-1])


@pytest.mark.parametrize("kind", ["polychain", "bezier"])
def test_between_two_points_bends_are_on_the_segment(kind: str) -> None:
    a, b = points(2)
    path = KINDS[kind].between(a, b, num_bends=3)  # type: ignore[attr-defined]
    torch.testing.assert_close(path.bends, Segment(a, b)([0.25, 0.5, 0.75]).T)
    torch.testing.assert_close(path(T), Segment(a, b)(T))
    assert path.length == pytest.approx(float((a - b).norm()))


def test_lengths() -> None:
    a, theta, b = points(3)
    chain = PolyChain(a, theta, b)
    first, second = float((theta - a).norm()), float((b - theta).norm())
    found = chain.lengths([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = [0.0, first / 2, first, first + second / 2, first + second]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))

    def speed(t: float) -> float:
        return float((2 * (1 - t) * (theta - a) + 2 * t * (b - theta)).norm())

    curve = Bezier(a, theta, b)
    for t in (0.3, 1.0):
        assert float(curve.lengths([t])) == pytest.approx(quad(speed, 0, t)[0], rel=1e-6)
    assert float(Segment(a, b).lengths([-1.0])) == pytest.approx(-float((a - b).norm()))


# Formats -------------------------------------------------------------------------------------


def test_what_comes_in_is_what_goes_out() -> None:
    with cases.seeded(0):
        a, b = nets.mlp(), nets.mlp()
    named = [{n: p.detach() for n, p in net.named_parameters()} for net in (a, b)]
    listed = [list(d.values()) for d in named]
    flat = [torch.cat([p.reshape(-1) for p in blocks]) for blocks in listed]
    middle = 0.5 * flat[0] + 0.5 * flat[1]
    path = Segment(*flat)
    assert torch.equal(path(0.5), middle)  # type: ignore[arg-type]
    assert path([0.1, 0.2]).shape == (len(middle), 2)  # type: ignore[union-attr]
    for given in (listed, named, (a, b)):
        found: Any = Segment(*given)(0.5)
        assert isinstance(found, dict if given is not listed else list)
        blocks = list(found.values()) if isinstance(found, dict) else found
        assert [p.shape for p in blocks] == [p.shape for p in listed[0]]
        assert torch.equal(torch.cat([p.reshape(-1) for p in blocks]), middle)
    several: Any = Segment(a, b)([0.0, 0.5, 1.0])
    assert several["1.weight"].shape == (24, 64, 3)
    mixed: Any = Segment(flat[0], b)(0.5)
    assert torch.equal(mixed, middle)


def test_points_are_copied() -> None:
    with cases.seeded(0):
        net = nets.mlp()
    path = Segment(net, net)
    before = path(0.0)["1.weight"].clone()  # type: ignore[call-overload,index]
    with torch.no_grad():
        net[1].weight.zero_()  # type: ignore[index,union-attr,operator]
    assert torch.equal(path(0.0)["1.weight"], before)  # type: ignore[call-overload,index]


def test_frozen_parameters_are_no_part_of_a_point() -> None:
    with cases.seeded(0):
        net = nets.mlp()
    net[1].requires_grad_(False)  # type: ignore[index]
    assert list(Segment(net, net)(0.0)) == ["3.weight", "3.bias"]


def test_order_of_names_does_not_matter() -> None:
    risk, a, b = nets.pair("mlp")
    reverse = {n: p.detach() for n, p in reversed(list(b.named_parameters()))}
    one = scan_path(risk, Segment(a, b), 5)
    for path in (Segment(a, reverse), Segment(reverse, a)):
        other = scan_path(risk, path, 5)
        assert other.barrier == pytest.approx(one.barrier)


def test_describes_itself() -> None:
    a, theta, b = points(3)
    assert repr(PolyChain(a, theta, b)).startswith("PolyChain(P=7, bends=1, length=")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda a: PolyChain(a), InputError, "two points"),
        (lambda a: Segment(a, a[:3]), ShapeError, r"the end has shape \[3\]; expected \[7\]"),
        (lambda a: PolyChain(a, a[:3], a), ShapeError, "bend 1"),
        (lambda a: Segment(a, [a[:3]]), ShapeError, r"the start has shape \[7\]; expected \[3\]"),
        (lambda a: Segment({"w": a}, {"v": a}), InputError, "missing"),
        (lambda a: Segment(a, a * torch.nan), NonFiniteError, "the end"),
        (lambda a: Segment(a.long(), a.long()), DTypeError, "int64"),
        (lambda a: Segment(torch.zeros(0), torch.zeros(0)), ShapeError, "P > 0"),
        (lambda a: Segment([], []), InputError, "empty"),
        (lambda a: Segment(torch.zeros(2, 3), torch.zeros(2, 3)), ShapeError, "flat"),
        (lambda a: Segment(3.0, a), InputError, "float"),
        (lambda a: Segment([a, 3.0], [a, a]), InputError, "float"),
        (lambda a: Segment(nn.ReLU(), nn.ReLU()), InputError, "without trainable"),
        (lambda a: Segment({"w": a}, {"w": torch.stack([a, a], 1)}), ShapeError, "2 columns"),
        (lambda a: PolyChain.between(a, a, 0), InputError, "num_bends"),
        (lambda a: PolyChain.between(a, a, True), InputError, "num_bends"),
        (lambda a: PolyChain(a, a, a).with_bends(a), ShapeError, "rows"),
        (lambda a: Segment(a, a)(torch.zeros(2, 2)), ShapeError, "t has shape"),
        (lambda a: Segment(a, a)([0.0, float("nan")]), NonFiniteError, "t holds"),
    ],
)
def test_bad_points(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make(torch.ones(7))


# The loss along a path -----------------------------------------------------------------------


def test_losses_are_those_of_the_points(global_rng_untouched: None) -> None:
    risk, a, b = nets.pair("mlp")
    bend = cases.randn(risk.space.dim, seed=3).float()
    path = PolyChain(a, 0.1 * bend, b)
    scan = scan_path(risk, path, [0.9, 0.2, 0.5], metrics="accuracy")
    torch.testing.assert_close(scan.times, torch.tensor([0, 0.2, 0.5, 0.9, 1]).double())
    X, y = nets.images()
    for t, loss, accuracy in zip(scan.times, scan.losses, scan.metrics["accuracy"]):
        with torch.no_grad():
            out = torch.func.functional_call(a, path(float(t)), X)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(out, y)), rel=1e-5)
        assert float(accuracy) == pytest.approx(float((out.argmax(1) == y).float().mean()))
    assert scan.ends == (float(scan.losses[0]), float(scan.losses[-1]))
    assert scan.num_losses == 5
    assert not scan.renormalized


def test_in_float64_through_the_whole_net() -> None:
    risk, a, b = nets.pair("mlp")
    wide = scan_path(risk, Segment(a, b), 5, dtype=torch.float64)
    assert wide.dtype == torch.float64
    exact = scan_path(risk.to(torch.float64), Segment(a, b), 5)
    assert torch.equal(wide.losses, exact.losses)


def test_barrier_is_the_excess_over_the_line_between_the_ends() -> None:
    t = torch.tensor([-0.5, 0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    losses = torch.tensor([90.0, 1.0, 3.0, 2.0, 3.0], dtype=torch.float64)
    scan = PathScan("segment", t, t, losses, {}, False, torch.float64, 5, 0.0)
    torch.testing.assert_close(scan.excess, torch.tensor([90.0, 0, 1.5, 0, 0]).double())
    assert scan.barrier == 1.5  # where the path is continued does not count
    assert "barrier 1.5" in str(scan)


def test_what_is_not_finite_is_kept() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x * torch.log(p["w"]),
        nn.L1Loss(),
        {"w": torch.tensor([1.0])},
        [(torch.ones(1), torch.zeros(1))],
    )
    scan = scan_path(risk, Segment(torch.tensor([1.0]), torch.tensor([-1.0])), 5)
    assert scan.losses.isnan().tolist() == [False, False, False, True, True]
    assert bool(scan.losses[2].isinf())
    assert scan.barrier != scan.barrier
    assert "3 not finite" in str(scan)


def test_saves_loads_and_converts(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    risk, a, b = nets.pair("mlp")
    scan = scan_path(risk, Segment(a, b), 5, metrics="accuracy")
    scan.save(tmp_path / "scan.npz")
    again = PathScan.load(tmp_path / "scan.npz")
    assert torch.equal(again.losses, scan.losses)
    assert again.barrier == scan.barrier
    plain = json.loads(json.dumps(scan.to_dict()))
    assert plain["losses"] == scan.losses.tolist()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    table = scan.to_pandas()
    assert list(table) == ["t", "distance", "loss", "excess", "accuracy"]
    assert table["loss"] == scan.losses.tolist()


def test_a_path_of_another_space_is_refused() -> None:
    risk, a, _ = nets.pair("mlp")
    with pytest.raises(ShapeError, match="the path"):
        scan_path(risk, Segment(torch.zeros(5), torch.ones(5)))
    with pytest.raises(InputError, match="the path has the wrong names"):
        scan_path(risk, Segment({"w": torch.zeros(5)}, {"w": torch.ones(5)}))
    with pytest.raises(InputError, match="ts is 1"):
        scan_path(risk, Segment(a, a), 1)
    with pytest.raises(InputError, match="metric"):
        scan_path(risk, Segment(a, a), 3, metrics="precision")


# Batch normalisation -------------------------------------------------------------------------


def test_statistics_belong_to_the_point(global_rng_untouched: None) -> None:
    risk, a, b = nets.pair("normed")
    before = copy.deepcopy(a.state_dict())
    path = Segment(a, b)
    scan = scan_path(risk, path, [0.3])
    assert scan.renormalized
    X, y = nets.images()
    for t, loss in zip(scan.times.tolist(), scan.losses):
        net = copy.deepcopy(a)
        net.load_state_dict({**a.state_dict(), **path(t)})  # type: ignore[dict-item]
        # torch's own way, batches of the same size as ours
        torch.optim.swa_utils.update_bn(list(X.split(400)), net)
        net.eval()
        with torch.no_grad():
            expected = nn.functional.cross_entropy(net(X), y)
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    after = a.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m.training for m in a.modules())


def test_batches_count_by_their_size() -> None:
    _, a, _ = nets.pair("normed")
    X, y = nets.images()
    ragged = [(X[:900], y[:900]), (X[900:], y[900:])]
    risk = EmpiricalRisk(a, nn.CrossEntropyLoss(), a, ragged, merge_batches=False)
    own = Renormalized(risk).at(risk.theta).model
    layer = own[1]  # type: ignore[index]
    with torch.no_grad():
        outs = [a[0](part) for part, _ in ragged]  # type: ignore[index,operator]
    means = torch.stack([o.mean((0, 2, 3)) for o in outs])
    variances = torch.stack([o.var((0, 2, 3)) for o in outs])
    weights = torch.tensor([0.75, 0.25])
    torch.testing.assert_close(layer.running_mean, weights @ means)
    torch.testing.assert_close(layer.running_var, weights @ variances)


def test_the_modules_own_statistics_on_request() -> None:
    risk, a, b = nets.pair("normed")
    path = Segment(a, b)
    scan = scan_path(risk, path, 3, batch_norm=False)
    torch.testing.assert_close(scan.losses.float(), risk.losses(path.points(scan.times)))
    assert not scan.renormalized
    assert abs(scan.barrier - scan_path(risk, path, 3).barrier) > 0.1 * scan.barrier


def test_a_batch_of_one_value_has_no_variance() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    data = [(torch.ones(1, 2), torch.ones(1, 3)), (torch.ones(3, 2), torch.ones(3, 3))]
    risk = EmpiricalRisk(model, nn.MSELoss(), model, data, merge_batches=False)
    with pytest.raises(DataError, match="single value"):
        scan_path(risk, Segment(model, model), 3)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    risk, a, b = nets.pair("mlp")
    scan_path(risk, Segment(a, b), 3, progress=True)
    assert "point" in capsys.readouterr().err
