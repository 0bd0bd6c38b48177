"""Trained paths: the gradient of a step, what training reaches, and what it leaves alone."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path as File
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curvops import EmpiricalRisk, datasets
from curvops.errors import DataError, InputError, NonFiniteError, ShapeError
from curvops.landscape import (
    BentPath,
    Bezier,
    Connection,
    PathFit,
    PolyChain,
    Segment,
    annealed,
    barrier,
    connect,
    fit_path,
)
from tests import cases
from tests.landscape import nets

KINDS: dict[str, type[BentPath]] = {"polychain": PolyChain, "bezier": Bezier}
ADAM = partial(torch.optim.Adam, lr=1e-2)
SGD = partial(torch.optim.SGD, lr=0.1)


# What it reaches -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "normed"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_barriers_fall_below_a_quarter_of_the_segments(kind: str, name: str) -> None:
    risk, a, b = nets.pair(name)
    straight = barrier(risk, Segment(a, b), 13, refinements=1)
    fit = fit_path(risk, KINDS[kind].between(a, b), ADAM, 20)
    bent = barrier(risk, fit.path, 13, refinements=1)
    assert bent.height < straight.height / 4
    for t, net in ((0.0, a), (1.0, b)):
        end: Any = fit.path(t)
        assert all(torch.equal(end[n], p) for n, p in net.named_parameters())
    # Without one pass over the data for the statistics the ends are the nets themselves.
    if name != "normed":
        assert bent.scan.ends == pytest.approx(
            tuple(float(risk.at(Segment(a, b).ends[i]).loss()) for i in (0, 1)), rel=1e-6
        )


def test_more_bends() -> None:
    risk, a, b = nets.pair("mlp")
    straight = barrier(risk, Segment(a, b), 13, refinements=0)
    for kind in KINDS.values():
        fit = fit_path(risk, kind.between(a, b, 3), ADAM, 15)
        assert len(fit.path.bends) == 3
        assert barrier(risk, fit.path, 13, refinements=0).height < straight.height / 4


# One step ------------------------------------------------------------------------------------


def quadratic() -> tuple[EmpiricalRisk, Tensor, Tensor]:
    X = cases.randn(20, 4, seed=0)
    y = cases.randn(20, 2, seed=1)
    params = {"w": cases.randn(2, 4, seed=2)}
    data = [(X[:13], y[:13]), (X[13:], y[13:])]
    return EmpiricalRisk(lambda p, x: x @ p["w"].T, nn.MSELoss(), params, data), X, y


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_step_is_the_gradient_at_a_drawn_t(kind: str, decay: float) -> None:
    """The whole data in one mini-batch, so that the only thing drawn is t."""
    risk, X, y = quadratic()
    risk.weight_decay = decay
    corners = cases.randn(4, 8, seed=5)
    path = KINDS[kind](*corners)
    fit = fit_path(risk, path, SGD, 1, batch_size=20, schedule=None, seed=3)
    generator = torch.Generator().manual_seed(3)
    torch.randperm(20, generator=generator)
    t = torch.rand(1, generator=generator, dtype=torch.float64)
    bends = corners[1:-1].clone().requires_grad_()
    w = KINDS[kind](*corners).coefficients(t)[0] @ torch.cat([corners[:1], bends, corners[-1:]])
    loss = ((X @ w.reshape(2, 4).T - y) ** 2).mean() + decay / 2 * w @ w
    (gradient,) = torch.autograd.grad(loss, bends)
    torch.testing.assert_close(fit.path.bends, (bends - 0.1 * gradient).detach())
    assert float(fit.losses[0]) == pytest.approx((loss - decay / 2 * w @ w).item())


def test_mini_batches_estimate_the_risk_without_bias() -> None:
    """With an epoch of steps so small that nothing moves, their mean is the gradient."""
    X, y = nets.images()
    weight = torch.linspace(0.5, 2, 10)
    net = nets.trained("mlp", 0)
    for reduction in ("mean", "sum"):
        loss = nn.CrossEntropyLoss(weight=weight, reduction=reduction)
        risk = EmpiricalRisk(net, loss, net, [(X[:700], y[:700]), (X[700:], y[700:])])
        theta = risk.theta
        path = PolyChain(theta, theta, theta)
        rate = 1e-6 / float(risk.gradient().norm())
        seen: list[float] = []

        class Recorder(torch.optim.SGD):
            def step(self, closure: Any = None, seen: list[float] = seen) -> None:  # type: ignore[override]
                seen.append(self.param_groups[0]["lr"])
                super().step(closure)

        fit = fit_path(
            risk, path, lambda p, r=rate: Recorder(p, lr=r), 1, batch_size=100, schedule=None
        )
        assert seen == [rate] * 12
        assert float(fit.losses[0]) == pytest.approx(float(risk.loss()), rel=1e-4)


def test_rates_follow_the_schedule() -> None:
    risk, *_ = quadratic()
    seen: list[float] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append(self.param_groups[0]["lr"])

    path = PolyChain.between(torch.zeros(8), torch.ones(8))
    fit_path(risk, path, lambda p: Recorder(p, lr=2.0), 4, batch_size=5, schedule=lambda s: 1 - s)
    assert len(seen) == 16
    assert seen[0] == 2.0
    assert seen[4] == pytest.approx(1.5)
    assert seen[4:] == pytest.approx([2 * (1 - s / 16) for s in range(4, 16)])
    assert annealed(0.3) == 1
    assert annealed(0.95) == pytest.approx(0.01)


# Data ----------------------------------------------------------------------------------------


def test_a_loader_instead_of_a_risk() -> None:
    risk, a, b = nets.pair("mlp")
    loader = DataLoader(TensorDataset(*nets.images()), batch_size=64, shuffle=True)
    path = PolyChain.between(a, b)
    options: dict[str, Any] = {"model": a, "loss": nn.CrossEntropyLoss()}
    fit = fit_path(loader, path, ADAM, 12, **options)
    straight = barrier(risk, Segment(a, b), 13, refinements=0)
    assert barrier(risk, fit.path, 13, refinements=0).height < straight.height / 4
    assert fit.num_gradients == 12 * 19
    again = fit_path(loader, path, ADAM, 12, **options)
    assert torch.equal(again.losses, fit.losses)  # the loader's own shuffling is seeded, too


def test_a_loader_is_scaled_batch_by_batch() -> None:
    _, X, y = quadratic()
    params = {"w": torch.zeros(2, 4, dtype=torch.float64)}
    path = PolyChain(params, params, params)

    def model(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return x @ p["w"].T

    for reduction, scale in (("mean", 1.0), ("sum", 40.0)):
        loss = nn.MSELoss(reduction=reduction)
        fit = fit_path([(X, y)], path, SGD, 1, model=model, loss=loss)
        assert float(fit.losses[0]) == pytest.approx(scale * float((y**2).mean()))


def test_data_that_are_read_again_are_cut_too() -> None:
    X, y = nets.images()
    net = nets.trained("mlp", 0)
    risk = EmpiricalRisk(
        net, nn.CrossEntropyLoss(), net, datasets.batches(X.clone(), y, 400), cache_data=0
    )
    fit = fit_path(risk, PolyChain.between(net, nets.trained("mlp", 1)), ADAM, 2, batch_size=100)
    assert fit.num_gradients == 24


def test_batches_that_cannot_be_cut_stay_whole() -> None:
    adjacency = torch.eye(5)
    X = [{"x": torch.ones(5, 2), "scale": torch.tensor(i + 1.0)} for i in range(3)]
    data = [(x, adjacency[:, :1]) for x in X]
    model = nn.Linear(2, 1)
    risk = EmpiricalRisk(
        model, nn.MSELoss(), model, data, forward=lambda m, x: x["scale"] * m(x["x"])
    )
    fit = fit_path(risk, PolyChain.between(torch.zeros(3), torch.ones(3)), ADAM, 2, batch_size=2)
    assert fit.num_gradients == 6


# What it leaves alone ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn", "normed"])
def test_the_module_and_the_generators_are_untouched(name: str, global_rng_untouched: None) -> None:
    risk, a, b = nets.pair(name)
    before = copy.deepcopy(a.state_dict())
    fit_path(risk, PolyChain.between(a, b), ADAM, 1)
    assert all(torch.equal(before[n], t) for n, t in a.state_dict().items())
    assert not any(m.training for m in a.modules())
    assert all(p.requires_grad and p.grad is None for p in a.parameters())
    assert torch.equal(risk.theta, Segment(a, b).ends[0])


def test_the_same_seed_gives_the_same_bits() -> None:
    with cases.seeded(0):
        net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 1)).train()
    data = [(cases.randn(30, 4, seed=0).float(), cases.randn(30, 1, seed=1).float())]
    risk = EmpiricalRisk(net, nn.MSELoss(), net, data, check_deterministic=False)
    path = Bezier.between(torch.zeros(31), torch.ones(31))
    one, two, other = (fit_path(risk, path, ADAM, 3, batch_size=8, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.path.bends, two.path.bends)
    assert not torch.equal(one.path.bends, other.path.bends)
    # Where all points and all data are the same, dropout alone tells seeds apart.
    same = [(torch.ones(8, 4), torch.ones(8, 1))]
    alike = EmpiricalRisk(net, nn.MSELoss(), net, same, check_deterministic=False)
    still = PolyChain(*torch.ones(3, 31))
    first = [float(fit_path(alike, still, ADAM, 1, seed=s).losses[0]) for s in (1, 1, 2)]
    assert first[0] == first[1] != first[2]
    generator = torch.Generator().manual_seed(7)
    drawn = fit_path(risk, path, ADAM, 1, seed=generator)
    assert drawn.seed != fit_path(risk, path, ADAM, 1, seed=generator).seed


# Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "list", "dict"])
def test_saves_loads_and_converts(
    layout: str, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    risk, a, b = nets.pair("mlp")
    ends: list[Any] = [{n: p.detach() for n, p in net.named_parameters()} for net in (a, b)]
    if layout == "list":
        ends = [list(end.values()) for end in ends]
    if layout == "flat":
        ends = list(Segment(a, b).control)
    fit = fit_path(risk, Bezier.between(*ends), ADAM, 2)
    assert type(fit.points[1]) is type(ends[0])
    fit.save(tmp_path / "fit.npz")
    again = PathFit.load(tmp_path / "fit.npz")
    assert isinstance(again.path, Bezier)
    assert torch.equal(again.path.control, fit.path.control)
    assert torch.equal(again.losses, fit.losses)
    assert barrier(risk, again.path, 5).height == barrier(risk, fit.path, 5).height
    assert str(fit).startswith("bezier with 1 bends: mean loss")
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    assert fit.to_pandas()["epoch"] == [1, 2]


def test_connect(tmp_path: File) -> None:
    risk, a, b = nets.pair("cnn")
    options: dict[str, Any] = {"epochs": 8, "optimizer": ADAM, "ts": 9, "metrics": "accuracy"}
    plain = connect(risk, a, b, "bezier", **options)
    aligned = connect(risk, a, b, aligned=True, **options)
    assert plain.alignment is None
    assert aligned.alignment is not None
    assert plain.fitted.barrier < plain.segment.barrier
    assert aligned.segment.barrier < plain.segment.barrier / 2
    assert aligned.segment.ends == pytest.approx(plain.segment.ends, rel=1e-4)
    assert list(plain.fitted.metrics) == ["accuracy"]
    aligned.save(tmp_path / "c.npz")
    again = Connection.load(tmp_path / "c.npz")
    assert again.fitted.barrier == aligned.fitted.barrier
    assert "renumbered" in str(again)
    with pytest.raises(InputError, match="spline"):
        connect(risk, a, b, "spline")  # type: ignore[arg-type]


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    risk, *_ = quadratic()
    fit_path(risk, PolyChain.between(torch.zeros(8), torch.ones(8)), epochs=2, progress=True)
    assert "fit polychain" in capsys.readouterr().err


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"path": Segment(torch.zeros(8), torch.ones(8))}, InputError, "without bends"),
        ({"path": PolyChain(torch.zeros(8), torch.ones(8))}, InputError, "without bends"),
        ({"path": torch.zeros(8)}, InputError, "path is Tensor"),
        ({"path": PolyChain(*torch.zeros(3, 5))}, ShapeError, "the path"),
        ({"epochs": 0}, InputError, "epochs"),
        ({"epochs": True}, InputError, "epochs"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"schedule": 0.1}, InputError, "schedule"),
        ({"seed": -1}, InputError, "seed"),
        ({"optimizer": lambda p: p}, InputError, "optimizer returned list"),
        ({"model": nn.Linear(4, 2)}, InputError, "belong to a loader"),
        ({"risk": 3}, InputError, "int"),
        ({"risk": [(torch.ones(1), torch.ones(1))]}, InputError, "model= and loss="),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], match: str) -> None:
    risk, *_ = quadratic()
    path = PolyChain.between(torch.zeros(8), torch.ones(8))
    arguments: dict[str, Any] = {"risk": risk, "path": path, "epochs": 1, **change}
    with pytest.raises(error, match=match):
        fit_path(**arguments)


def test_bad_loaders() -> None:
    net = nn.Linear(2, 1)
    path = PolyChain.between(torch.zeros(3), torch.ones(3))
    options: dict[str, Any] = {"model": net, "loss": nn.MSELoss()}
    pair = (torch.ones(4, 2), torch.ones(4, 1))
    with pytest.raises(DataError, match="one-shot"):
        fit_path(iter([pair]), path, epochs=2, **options)
    with pytest.raises(DataError, match="no batch"):
        fit_path([], path, epochs=2, **options)
    with pytest.raises(DataError, match="expected a pair"):
        fit_path([torch.ones(3)], path, epochs=2, **options)


def test_a_loss_that_explodes() -> None:
    risk, *_ = quadratic()
    path = PolyChain.between(torch.zeros(8), torch.ones(8))
    with pytest.raises(NonFiniteError, match="learning rate"):
        fit_path(risk, path, partial(torch.optim.SGD, lr=1e300), 30, batch_size=4)
