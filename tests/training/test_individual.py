"""Individual gradients: every layer, both ways, against autograd datum by datum; memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backpack import extend
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from curvops.errors import InputError
from curvops.losses import as_loss
from curvops.training.individual import Batch, Individual, Request, sampled_rows
from curvops.training.layers import ConvLayer, Windows
from curvops.training.source import Source
from tests.cases import rand, randint, randn, seeded

B, CLASSES = 6, 3


class Flat(nn.Module):
    """A view that keeps the data apart."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Middle(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class First(nn.Module):
    """The sequence that a recurrent layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


BACKPACK: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (
        lambda: net(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4, bias=False), nn.Linear(4, CLASSES)),
        lambda: randn(B, 5, seed=0),
    ),
    "in place": (
        lambda: net(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, CLASSES)),
        lambda: randn(B, 5, seed=0),
    ),
    "one layer": (lambda: nn.Linear(5, CLASSES), lambda: randn(B, 5, seed=0)),
    "wide": (
        lambda: net(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, CLASSES)),
        lambda: randn(B, 40, seed=0),
    ),
    "sequence": (
        lambda: net(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 30), Middle(), nn.Linear(30, CLASSES)),
        lambda: randn(B, 2, 4, seed=0),
    ),
    "long sequence": (
        lambda: net(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), Middle(), nn.Linear(3, CLASSES)),
        lambda: randn(B, 11, 4, seed=0),
    ),
    "conv1d": (
        lambda: net(nn.Conv1d(2, 3, 3, dilation=2), nn.Tanh(), Flat(), nn.Linear(12, CLASSES)),
        lambda: randn(B, 2, 8, seed=0),
    ),
    "conv2d": (
        lambda: net(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), groups=2, bias=False), nn.ReLU(),
            Flat(), nn.Linear(24, CLASSES),
        ),
        lambda: randn(B, 2, 6, 12, seed=0)[..., :8],
    ),
    "many channels": (
        lambda: net(nn.Conv2d(16, 24, 3), nn.Tanh(), Flat(), nn.Linear(24, CLASSES)),
        lambda: randn(B, 16, 3, 3, seed=0),
    ),
    "conv3d": (
        lambda: net(nn.Conv3d(1, 2, 2, padding=1), nn.Tanh(), Flat(), nn.Linear(128, CLASSES)),
        lambda: randn(B, 1, 3, 3, 3, seed=0),
    ),
    "transposed": (
        lambda: net(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.Tanh(), Flat(), nn.Linear(75, 3)),
        lambda: randn(B, 2, 2, 2, seed=0),
    ),
    "batch norm": (
        lambda: net(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES)).eval(),
        lambda: randn(B, 5, seed=0),
    ),
    "embedding": (
        lambda: net(nn.Embedding(7, 4), Middle(), nn.Linear(4, CLASSES)),
        lambda: randint(7, B, 5, seed=0),
    ),
    "lstm": (
        lambda: net(First(nn.LSTM(3, 4, batch_first=True)), Middle(), nn.Linear(4, CLASSES)),
        lambda: randn(B, 5, 3, seed=0),
    ),
    "rnn": (
        lambda: net(First(nn.RNN(3, 4, batch_first=True)), Middle(), nn.Linear(4, CLASSES)),
        lambda: randn(B, 5, 3, seed=0),
    ),
}  # fmt: skip


class Tied(nn.Module):
    """One layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Shared(nn.Module):
    """A weight that is also used outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.table(x).mean(1) @ self.table.weight.T)[:, :CLASSES]


class SequenceFirst(nn.Module):
    """The data on the second axis of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class Mixing(nn.Module):
    """Positions of all data on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tanh(self.inner(x.reshape(-1, 4)))
        return self.head(rows).reshape(len(x), -1, CLASSES).mean(1)


class Attention(nn.Module):
    """A transformer layer between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.up(x)).mean(1))


class Scaled(nn.Module):
    """A parameter that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.scale = nn.Linear(5, CLASSES), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(x)


FUNCTIONAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str]] = {
    "tied": (Tied, lambda: randn(B, 5, seed=0), "called more than once"),
    "shared": (Shared, lambda: randint(7, B, 5, seed=0), "used outside"),
    "sequence first": (SequenceFirst, lambda: randn(B, 4, 4, seed=0), "another axis"),
    "mixing": (Mixing, lambda: randn(B, 2, 4, seed=0), "another axis"),
    "transformer": (Attention, lambda: randn(B, 5, 4, seed=0), "BackPACK does not know"),
    "scaled": (Scaled, lambda: randn(B, 5, seed=0), "Scaled"),
    "layer norm": (
        lambda: net(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)),
        lambda: randn(B, 5, seed=0),
        "LayerNorm",
    ),
    "circular": (
        lambda: net(
            nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), Flat(), nn.Linear(12, 3)
        ),
        lambda: randn(B, 2, 4, seed=0),
        "circular",
    ),
    "gru": (
        lambda: net(First(nn.GRU(3, 4, batch_first=True)), Middle(), nn.Linear(4, CLASSES)),
        lambda: randn(B, 5, 3, seed=0),
        "GRU",
    ),
}


def build(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    with seeded(3):
        return make().to(dtype)


def one_by_one(model: nn.Module, loss: Any, X: Any, y: Tensor) -> Tensor:
    """The gradients [B, P] by autograd, from batches of one."""
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for n in range(len(y)):
        value = loss(model(X[n : n + 1]), y[n : n + 1])
        found = torch.autograd.grad(value, params, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)


def passes(
    source: Source, X: Any, y: Any, run: Callable[[], Any], start: Any, directions: Any = ()
) -> Individual:
    """What a source sees of the passes that ``run`` makes."""
    source.begin(len(y), True, directions)
    run()
    source.end()
    seen = source.seen(X, y, lambda: start)
    assert seen.individual is not None
    source.last = seen.note  # type: ignore[attr-defined]
    return seen.individual


def watched(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    loss: Any,
    way: str = "auto",
    scale: float = 1.0,
    directions: Any = (),
) -> tuple[Individual, Source]:
    """What a source sees of one ordinary backward pass."""
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    source = Source(model, as_loss(loss), params, way)
    source.check(X, y)
    start = [p.detach().clone() for p in params.values()]
    seen = passes(source, X, y, lambda: (scale * loss(model(X), y)).backward(), start, directions)
    return seen, source


def assert_equal_to_autograd(
    found: Individual, G: Tensor, losses: Tensor, rtol: float = 1e-9
) -> None:
    """Every statistic of individual gradients, from the gradients themselves."""
    # ``G`` holds the un-normalised gradients of the data.
    shapes = SHAPES[0]
    flat = randn(G.shape[1], seed=11).to(G)
    blocks = [b.reshape(s) for b, s in zip(flat.split([s.numel() for s in shapes]), shapes)]
    everything = [None] * len(shapes)
    stats = found.measure(Request((blocks,), noise=True, moments=everything))

    def close(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a.to(b), b, rtol=rtol, atol=rtol * float(b.abs().max()))

    close(found.totals, losses.double())
    close(stats.projections[0], (G @ flat).double())
    assert stats.squared_norms is not None
    assert stats.inner is not None
    close(stats.squared_norms, G.square().sum(1).double())
    close(stats.inner, (G @ G.sum(0)).double())
    close(torch.cat([s.reshape(-1) for s in stats.sums]), G.sum(0))
    close(torch.cat([s.reshape(-1) for s in stats.squares]), G.square().sum(0))
    close(torch.cat([s.reshape(-1) for s in found.sums()]), G.sum(0))
    rows = sampled_rows(shapes, 20, seed=1)
    some = found.measure(Request(moments=rows))
    for i, chosen in enumerate(rows):
        whole = stats.squares[i] if chosen is None else stats.squares[i][chosen]
        close(some.squares[i], whole)
        whole = stats.sums[i] if chosen is None else stats.sums[i][chosen]
        close(some.sums[i], whole)


SHAPES: list[list[torch.Size]] = [[]]


@pytest.mark.parametrize("name", list(BACKPACK))
def test_layers_say_what_autograd_says(name: str) -> None:
    make, inputs = BACKPACK[name]
    model, X, y = build(make), inputs(), randint(CLASSES, B, seed=5)
    loss = nn.CrossEntropyLoss()
    SHAPES[0] = [p.shape for p in model.parameters()]
    G = one_by_one(model, loss, X, y)
    losses = torch.stack([loss(model(X[n : n + 1]), y[n : n + 1]) for n in range(B)]).detach()
    model.zero_grad()
    found, source = watched(model, X, y, loss, "backpack", scale=0.25)
    assert source.way == "backpack", source.note
    assert_equal_to_autograd(found, G, losses)
    assert found.normalizer == B
    plain = torch.cat([p.grad.reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(plain, G.mean(0) / 4)  # the user's own gradient is what it was


@pytest.mark.parametrize("name", ["mlp", "conv2d", "lstm", "embedding"])
def test_both_ways_agree(name: str) -> None:
    make, inputs = BACKPACK[name]
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model, X, y = build(make, dtype), inputs(), randint(CLASSES, B, seed=5)
        X = X.to(dtype) if X.is_floating_point() else X
        first, _ = watched(model, X, y, nn.CrossEntropyLoss(), "backpack")
        second, _ = watched(model, X, y, nn.CrossEntropyLoss(), "functional")
        request = Request(noise=True)
        a, b = first.measure(request), second.measure(request)
        torch.testing.assert_close(a.squared_norms, b.squared_norms, rtol=rtol, atol=0.0)
        torch.testing.assert_close(a.inner, b.inner, rtol=10 * rtol, atol=1e-6)


@pytest.mark.parametrize("name", list(FUNCTIONAL))
def test_other_models_fall_back_by_themselves(name: str) -> None:
    make, inputs, why = FUNCTIONAL[name]
    model, X, y = build(make), inputs(), randint(CLASSES, B, seed=5)
    loss = nn.CrossEntropyLoss()
    SHAPES[0] = [p.shape for p in model.parameters()]
    G = one_by_one(model, loss, X, y)
    losses = torch.stack([loss(model(X[n : n + 1]), y[n : n + 1]) for n in range(B)]).detach()
    found, source = watched(model, X, y, loss)
    assert source.way == "functional"
    assert why in source.note
    assert_equal_to_autograd(found, G, losses)
    with pytest.raises(InputError, match='individual="auto"'):
        watched(model, X, y, loss, "backpack")


@pytest.mark.parametrize("way", ["backpack", "functional"])
@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).double()), "class"),
        (nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"), "class"),
        (nn.CrossEntropyLoss(ignore_index=1), "class"),
        (nn.MSELoss(), "value"),
        (nn.BCEWithLogitsLoss(), "value"),
    ],
)
def test_normalisers(loss: Any, target: str, way: str) -> None:
    """Scaled to the batch, individual losses and gradients average to those of torch."""
    model = build(BACKPACK["mlp"][0])
    X = randn(B, 5, seed=0)
    y = randint(CLASSES, B, seed=5) if target == "class" else rand(B, CLASSES, seed=5)
    found, _ = watched(model, X, y, loss, way)
    batch = Batch((found,))
    whole = loss(model(X), y)
    assert float(batch.losses.mean()) == pytest.approx(whole.item())
    gradient = torch.autograd.grad(whole, list(model.parameters()))
    slope = sum((g * d).sum() for g, d in zip(gradient, gradient))
    assert float(batch.project(gradient).mean()) == pytest.approx(float(slope))


def test_a_custom_loss_and_its_normaliser() -> None:
    def loss(f: Tensor, y: Tensor) -> Tensor:
        return (f.logsumexp(1) - f.gather(1, y.unsqueeze(1)).squeeze(1)).mean()

    model, X, y = build(BACKPACK["mlp"][0]), randn(B, 5, seed=0), randint(CLASSES, B, seed=5)
    params = dict(model.named_parameters())
    for way in ("backpack", "functional"):
        source = Source(model, as_loss(loss, "mean"), params, way)  # type: ignore[arg-type]
        source.check(X, y)
        run = lambda: loss(model(X), y).backward()  # noqa: E731
        found = passes(source, X, y, run, list(params.values()))
        reference, _ = watched(model, X, y, nn.CrossEntropyLoss(), "functional")
        torch.testing.assert_close(found.totals, reference.totals)
        a, b = (i.measure(Request(noise=True)) for i in (found, reference))
        torch.testing.assert_close(a.squared_norms, b.squared_norms)


def test_what_was_differentiated_must_be_the_loss() -> None:
    model, X, y = build(BACKPACK["mlp"][0]), randn(B, 5, seed=0), randint(CLASSES, B, seed=5)
    params = dict(model.named_parameters())
    source = Source(model, as_loss(nn.CrossEntropyLoss()), params)
    source.check(X, y)
    run = lambda: (model(X) ** 2).mean().backward()  # noqa: E731
    found = passes(source, X, y, run, [p.detach().clone() for p in params.values()])
    assert "not loss_func" in source.last  # type: ignore[attr-defined]
    assert source.way == "backpack"  # the next block may do better
    reference, _ = watched(model, X, y, nn.CrossEntropyLoss(), "functional")
    a, b = (i.measure(Request(noise=True)) for i in (found, reference))
    torch.testing.assert_close(a.squared_norms, b.squared_norms)


def test_frozen_parameters_are_left_out() -> None:
    model = build(BACKPACK["mlp"][0])
    model[0].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    X, y = randn(B, 5, seed=0), randint(CLASSES, B, seed=5)
    loss = nn.CrossEntropyLoss()
    SHAPES[0] = [p.shape for p in model.parameters() if p.requires_grad]
    G = one_by_one(model, loss, X, y)
    losses = torch.stack([loss(model(X[n : n + 1]), y[n : n + 1]) for n in range(B)]).detach()
    for way in ("backpack", "functional"):
        assert_equal_to_autograd(watched(model, X, y, loss, way)[0], G, losses)


def test_extended_by_the_user_already() -> None:
    X, y = randn(B, 5, seed=0), randint(CLASSES, B, seed=5)
    extended, plain = extend(build(BACKPACK["mlp"][0])), build(BACKPACK["mlp"][0])
    hooks = {name: len(m._forward_hooks) for name, m in extended.named_modules()}
    a, source = watched(extended, X.requires_grad_(), y, nn.CrossEntropyLoss(), "backpack")
    b, _ = watched(plain, X.detach(), y, nn.CrossEntropyLoss(), "backpack")
    assert source.way == "backpack"
    request = Request(noise=True)
    torch.testing.assert_close(a.measure(request).inner, b.measure(request).inner)
    assert {name: len(m._forward_hooks) for name, m in extended.named_modules()} == hooks


def test_hooks_and_attributes_are_gone_afterwards() -> None:
    for name in ("mlp", "conv2d", "lstm", "batch norm"):
        make, inputs = BACKPACK[name]
        model = build(make)
        before = {n: set(m.__dict__) for n, m in model.named_modules()}
        watched(model, inputs(), randint(CLASSES, B, seed=5), nn.CrossEntropyLoss(), "backpack")
        for n, m in model.named_modules():
            assert not m._forward_hooks
            assert not m._backward_hooks
            assert not m._forward_pre_hooks
            assert set(m.__dict__) == before[n]
        for p in model.parameters():
            assert not hasattr(p, "grad_batch")
            assert not p._backward_hooks


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that is made, and what is alive at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_of_the_size_of_all_individual_gradients() -> None:
    """MLP 196-128-64-10 at B = 32: B times the largest layer would be 800 000 numbers."""
    with seeded(0):
        model = net(
            nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    dim = sum(p.numel() for p in model.parameters())
    X, y = torch.rand(32, 196), randint(10, 32, seed=1)
    source = Source(
        model, as_loss(nn.CrossEntropyLoss()), dict(model.named_parameters()), "backpack"
    )
    source.check(X, y)
    direction = [torch.ones_like(p) for p in model.parameters()]
    with Largest() as seen:
        run = lambda: nn.functional.cross_entropy(model(X), y).backward()  # noqa: E731
        one = passes(source, X, y, run, direction, [direction])
        one.measure(Request((direction,), noise=True, moments=[None] * 6))
        one.project(direction)
    assert seen.numel <= dim  # no more than a weight gradient; [B, P] has 32 times as much


def test_rows_are_chosen_in_proportion() -> None:
    shapes = [torch.Size([512, 784]), torch.Size([512]), torch.Size([10, 64]), torch.Size([])]
    rows = sampled_rows(shapes, 1 << 14, seed=0)
    assert rows[0] is not None
    assert 15 <= len(rows[0]) <= 25
    assert len(set(rows[0].tolist())) == len(rows[0])
    assert rows[3] is None
    assert sampled_rows(shapes, None, seed=0) == [None] * 4
    again = sampled_rows(shapes, 1 << 14, seed=0)
    assert torch.equal(rows[0], again[0])  # type: ignore[arg-type]


def test_windows_of_many_sizes_do_not_pile_up() -> None:
    windows, conv = Windows(), nn.Conv2d(1, 2, 3, padding=1)
    for size in range(4, 80):
        x = torch.arange(size * size, dtype=torch.float32).reshape(1, 1, size, size)
        expected = nn.functional.unfold(x, 3, padding=1)
        for _ in range(2):  # the second time from the tensors of the first
            torch.testing.assert_close(windows(conv, x), expected)
    assert len(windows._tensors) <= 33
    large = torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(windows(conv, large), nn.functional.unfold(large, 3, padding=1))
    assert all(unfolded.numel() <= 1 << 19 for _, unfolded in windows._tensors.values())


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(8, 16, 3, stride=2, padding=1), (8, 11)),
        (nn.Conv2d(16, 8, 3, padding=(1, 0), bias=False), (16, 6, 7)),
        (nn.Conv2d(16, 32, (3, 2), dilation=2, groups=2), (16, 7, 6)),
        (nn.Conv2d(5, 5, 3, groups=5), (5, 5, 6)),
        (nn.Conv3d(8, 8, 2), (8, 3, 4, 3)),
        (nn.Conv2d(3, 8, 3), (3, 5, 5)),
        (nn.Conv2d(1, 12, 3), (1, 5, 6)),
        (nn.Conv1d(2, 10, 3, groups=2), (2, 9)),
    ],
    ids=["1d", "2d", "groups", "depthwise", "3d", "few channels", "turned", "turned groups"],
)
def test_gradients_of_convolutions_in_single_precision(conv: nn.Module, shape: tuple[int, ...]):
    """Single precision takes kernels of its own where channels come in eights."""
    x = randn(B, *shape, seed=1).float()
    delta = randn(*conv(x).shape, seed=2).float()
    names = [name for name, _ in conv.named_parameters()]
    layer = ConvLayer({name: i for i, name in enumerate(names)}, conv, x, delta)
    found, double = layer.gradients(), copy.deepcopy(conv).double()
    for i, name in enumerate(names):
        expected = []
        for x_n, delta_n in zip(x.double(), delta.double(), strict=True):
            inner = (double(x_n.unsqueeze(0)) * delta_n).sum()
            expected.append(torch.autograd.grad(inner, dict(double.named_parameters())[name])[0])
        exact = torch.stack(expected)
        error = (found[i].reshape(exact.shape).double() - exact).abs().max()
        assert float(error) < 1e-5 * float(exact.abs().max())
