"""Individual gradients from the data again, against autograd in a loop over the data."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvops.autodiff import FunctionalModel
from curvops.losses import as_loss
from curvops.rng import PrivateRNG
from curvops.training import Alpha, GradientNoise, Monitor, functional
from curvops.training.functional import FromData
from curvops.training.individual import Batch, Request
from tests.cases import randint, randn, seeded

LOSS = nn.CrossEntropyLoss()
HIDDEN = 6


def from_data(
    model: nn.Module, X: Any, y: Tensor, rng: PrivateRNG | None = None, **options: Any
) -> FromData:
    params = {name: p.detach() for name, p in model.named_parameters()}
    return FromData(
        FunctionalModel(model, tuple(params)), as_loss(LOSS), params, X, y, len(y), rng, **options
    )


def flat(blocks: Sequence[Tensor]) -> Tensor:
    return torch.cat([b.reshape(-1) for b in blocks])


def truth(model: nn.Module, data: Sequence[Any], y: Tensor) -> Tensor:
    """Return the gradients [B, P] of the losses of single data, as a user would get them."""
    rows = []
    for n, x in enumerate(data):
        loss = LOSS(model(x), y[n : n + 1])
        rows.append(flat(torch.autograd.grad(loss, list(model.parameters()))))
    return torch.stack(rows)


def direction(model: nn.Module) -> list[Tensor]:
    return [randn(*p.shape, seed=i) for i, p in enumerate(model.parameters())]


def check(data: FromData, G: Tensor, d: Sequence[Tensor]) -> None:
    """Hold every answer against the gradients, alone and accumulated with itself."""
    found = data.measure(Request((d,), noise=True))
    assert found.squared_norms is not None
    assert found.inner is not None
    torch.testing.assert_close(torch.cat(list(data.gradients())), G)
    torch.testing.assert_close(found.squared_norms, (G * G).sum(1))
    torch.testing.assert_close(found.inner, G @ G.sum(0))
    torch.testing.assert_close(found.projections[0], G @ flat(d))
    torch.testing.assert_close(flat(data.sums()), G.sum(0))
    torch.testing.assert_close(data.project(d), G @ flat(d))
    twice = Batch((data, data)).measure(Request(noise=True))
    assert twice.inner is not None
    torch.testing.assert_close(twice.inner, torch.cat([2 * G @ G.sum(0)] * 2))


@pytest.fixture(params=["one chunk", "chunks of 3"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def apply(model: nn.Module) -> None:
        if request.param != "one chunk":
            dim = sum(p.numel() for p in model.parameters())
            monkeypatch.setattr(functional, "CHUNK_NUMEL", 3 * dim)

    return apply


# ------------------------------------------------------------------------------- random layers


class Dropping(nn.Module):
    """Dropout before the last layer, whose gradient tells the masks."""

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        with seeded(0):
            self.first = nn.Linear(4, HIDDEN).double()
            self.last = nn.Linear(HIDDEN, 3).double()
        self.branches = branches
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.mask is not None:
            return self.last(h * self.mask)
        if self.branches and float(h.detach().sum()) == 0.0:  # no vmap: a number of the data
            return self.last(h)
        return self.last(nn.functional.dropout(h, 0.5))


@pytest.mark.parametrize("branches", [False, True], ids=["vmap", "one by one"])
def test_one_draw_answers_all_questions(chunks: Callable[..., None], branches: bool) -> None:
    model, X, y = Dropping(branches), randn(8, 4, seed=0), randint(3, 8, seed=1)
    chunks(model)
    data = from_data(model, X, y, PrivateRNG(3))
    G = torch.cat(list(data.gradients()))
    last = G[:, -3 * HIDDEN - 3 : -3].reshape(8, 3, HIDDEN)
    masks = 2.0 * (last != 0).any(1).double()
    assert len(masks.unique(dim=0)) > 4

    expected, losses = [], []
    for n in range(8):
        model.mask = masks[n]
        expected.append(truth(model, [X[n : n + 1]], y[n : n + 1]))
        losses.append(LOSS(model(X[n : n + 1]), y[n : n + 1]).detach())
    model.mask = None
    check(data, torch.cat(expected), direction(model))
    torch.testing.assert_close(data.totals, torch.stack(losses))
    again = data.at({name: p.detach() for name, p in model.named_parameters()})
    check(again, torch.cat(expected), direction(model))
    torch.testing.assert_close(again.totals, torch.stack(losses))


def test_every_mini_batch_has_a_draw_of_its_own() -> None:
    model, X, y, rng = Dropping(), randn(8, 4, seed=0), randint(3, 8, seed=1), PrivateRNG(3)
    first, second = (from_data(model, X, y, rng).sums() for _ in range(2))
    assert not torch.allclose(flat(first), flat(second))


@pytest.mark.parametrize("branches", [False, True], ids=["vmap", "one by one"])
def test_global_generators_are_left_alone(branches: bool) -> None:
    model, X, y = Dropping(branches), randn(8, 4, seed=0), randint(3, 8, seed=1)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    data = from_data(model, X, y, PrivateRNG(3))
    data.measure(Request((direction(model),), noise=True))
    data.project(direction(model))
    assert len(data.totals) == 8
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state()), random.getstate())


# ------------------------------------------------------- what is kept from being differentiated


class Frozen(nn.Module):
    """A part that no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.first, self.last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.no_grad():
            c = h * h - h
        return self.last(h + c)


class Hooked(Frozen):
    """A gradient that is turned on its way."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if h.requires_grad:
            h.register_hook(lambda g: -0.3 * g)
        return self.last(h)


class Once(torch.autograd.Function):
    """A square whose gradient is not differentiable, and says so or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, silent: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.silent = silent
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if not ctx.silent and torch.is_grad_enabled():
            raise RuntimeError("no second derivative")
        return 2.0 * x.detach() * g.detach(), None


class Fused(Frozen):
    """A kernel without a second derivative."""

    def __init__(self, silent: bool) -> None:
        super().__init__()
        self.silent = silent

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Once.apply(self.first(x), self.silent))


MODELS = [Frozen, Hooked, lambda: Fused(silent=False), lambda: Fused(silent=True)]


@pytest.mark.parametrize("make", MODELS, ids=["no_grad", "hook", "no second", "silent"])
def test_products_are_those_of_the_users_gradients(
    chunks: Callable[..., None], make: Callable[[], nn.Module]
) -> None:
    model, X, y = make(), randn(8, 4, seed=0), randint(3, 8, seed=1)
    chunks(model)
    check(from_data(model, X, y), truth(model, X.split(1), y), direction(model))


def test_alpha_takes_the_slope_that_the_user_descends() -> None:
    model, X, y = Frozen(), randn(8, 4, seed=0), randint(3, 8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    monitor = Monitor(model, LOSS, optimizer, [Alpha()], individual="functional")
    found: list[Tensor] = []
    before = flat([p.detach().clone() for p in model.parameters()])
    for _ in range(2):
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
        found.append(truth(model, X.split(1), y).mean(0))
        if len(found) == 1:
            optimizer.step()
            step = flat([p.detach() for p in model.parameters()]) - before
        optimizer.zero_grad()
    monitor.close()
    record = monitor.latest("alpha")
    assert record is not None
    slopes = [float(g @ step / step.norm()) for g in found]
    assert record.values["slopes"] == pytest.approx(slopes, rel=1e-10)


# --------------------------------------------------------------- tensors that all data share


class Shared(nn.Module):
    """A context that all data see."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.first, self.last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, X: tuple[Tensor, Tensor]) -> Tensor:
        x, c = X
        return self.last(torch.tanh(self.first(x * c.mean(0))))


def test_what_is_shared_is_no_data_whatever_the_chunk(chunks: Callable[..., None]) -> None:
    model, X, c, y = Shared(), randn(7, 4, seed=0), randn(3, 4, seed=2), randint(3, 7, seed=1)
    chunks(model)
    G = truth(model, [(x, c) for x in X.split(1)], y)
    data = from_data(model, (X, c), y)
    check(data, G, direction(model))
    data._vectorised_until = 0
    torch.testing.assert_close(torch.cat(list(data.gradients())), G)


def test_a_few_data_of_a_batch_remember_what_it_shares() -> None:
    model, X, c, y = Shared(), randn(7, 4, seed=0), randn(3, 4, seed=2), randint(3, 7, seed=1)
    holds = functional.holds_data(((X, c), y), 7)
    assert holds == (True, False, True)
    few = from_data(model, (X[:3], c), y[:3], holds=holds)
    G = truth(model, [(x, c) for x in X[:3].split(1)], y)
    check(few, G, direction(model))
    check(few.at(few._params), G, direction(model))


# ------------------------------------------------------------------------- compiled modules


# Dynamo looks at .grad of what the user's own forward pass gives it, and hides the warning.
TORCHS_OWN = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@TORCHS_OWN
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_part(chunks: Callable[..., None]) -> None:
    with seeded(0):
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    X, y = randn(8, 5, seed=0), randint(3, 8, seed=1)
    chunks(model)
    G, d = truth(model, X.split(1), y), direction(model)
    model[2] = torch.compile(model[2], backend="eager")  # type: ignore[assignment]
    check(from_data(model, X, y), G, d)


@TORCHS_OWN
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_part_in_the_loop() -> None:
    values = []
    for compiled in (False, True):
        with seeded(0):
            model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        if compiled:
            model[2] = torch.compile(model[2], backend="eager")  # type: ignore[assignment]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        monitor = Monitor(
            model, LOSS, optimizer, [Alpha(), GradientNoise()], individual="functional"
        )
        for seed in range(3):
            monitor.backward(randn(8, 5, seed=seed), randint(3, 8, seed=seed))
            optimizer.step()
            optimizer.zero_grad()
        monitor.close()
        run = monitor.run
        values.append([*run.series("alpha", "alpha")[1], *run.series("gradient_noise", "trace")[1]])
    assert len(values[0]) == 5
    assert values[1] == pytest.approx(values[0], rel=1e-9)


def test_an_error_of_the_model_is_raised() -> None:
    class Broken(Frozen):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("mine")

    data = from_data(Broken(), randn(8, 4, seed=0), randint(3, 8, seed=1))
    with pytest.raises(KeyError, match="mine"):
        data.project(direction(Broken()))
    with pytest.raises(KeyError, match="mine"):
        data.sums()
