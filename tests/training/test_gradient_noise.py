"""Gradient noise: its definitions on individual gradients, its errors, its degenerate cases."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvops.training import EarlyStopping, GradientNoise, Monitor
from curvops.training.gradient_noise import SignalToNoise, noise_of
from curvops.training.mean_variance import variance_of_mean
from curvops.training.quantity import Setting
from tests.cases import randint, randn, seeded

B = 24


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    with seeded(1):
        model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    with torch.no_grad():
        model[0].bias[:4] = -100.0  # units that no datum reaches
    return model, randn(B, 6, seed=1), randint(3, B, seed=2)


def individual(model: nn.Module, X: Tensor, y: Tensor) -> Tensor:
    rows = []
    for n in range(len(y)):
        loss = nn.functional.cross_entropy(model(X[n : n + 1]), y[n : n + 1])
        rows.append(
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
        )
    return torch.stack(rows)


def measure(model: nn.Module, X: Tensor, y: Tensor, *quantities: Any, **options: Any) -> Any:
    monitor = Monitor(model, nn.CrossEntropyLoss(), None, quantities, **options)
    with monitor.step(X, y):
        nn.functional.cross_entropy(model(X), y).backward()
    monitor.close()
    model.zero_grad()
    return monitor


@pytest.mark.parametrize("way", ["backpack", "functional"])
def test_every_number_by_its_definition(way: str) -> None:
    model, X, y = problem()
    monitor = measure(
        model, X, y, GradientNoise(coordinates=None), EarlyStopping(every=1), individual=way
    )
    found = monitor.latest("gradient_noise").values
    G = individual(model, X, y)
    g = G.mean(0)
    square, centred = float(g @ g), G - g
    covariance = centred.T @ centred / (B - 1)
    trace = float(covariance.trace())
    assert found["squared_norm"] == pytest.approx(square)
    assert found["trace"] == pytest.approx(trace)
    assert found["noise_scale"] == pytest.approx(trace / square)
    assert found["signal"] == pytest.approx(square - trace / B)
    assert found["norm_test"] == pytest.approx(math.sqrt(trace / (B * square)))
    inner = G @ g
    assert found["inner_product_test"] == pytest.approx(math.sqrt(float(inner.var()) / B) / square)
    rest = G - (inner / square).unsqueeze(1) * g
    orthogonal = math.sqrt(float(rest.square().sum()) / ((B - 1) * B * square))
    assert found["orthogonality_test"] == pytest.approx(orthogonal)
    variance = covariance.diagonal()
    alive = variance > 1e-20
    ratio = (g[alive] ** 2 / variance[alive]).mean()
    assert int(alive.sum()) == len(g) - 4 * (6 + 1 + 3)  # dead parameters do not count
    assert found["signal_to_noise"] == pytest.approx(float(ratio))
    assert found["signal_to_noise_stderr"] == 0.0
    stop = monitor.latest("early_stopping").values
    assert stop["evidence"] == pytest.approx(1 - B * float(ratio))
    assert stop["stop"] == (stop["evidence"] > 0)


def test_the_errors_are_those_of_leaving_each_datum_out() -> None:
    G = randn(B, 50, seed=3) + 0.5
    found = noise_of(G.square().sum(1), G @ G.mean(0))
    traces, scales = [], []
    for n in range(B):
        rest = torch.cat([G[:n], G[n + 1 :]])
        trace = float(rest.var(0).sum())
        traces.append(trace)
        scales.append(trace / float(rest.mean(0).square().sum()))
    for name, values in (("trace_stderr", traces), ("noise_scale_stderr", scales)):
        expected = math.sqrt((B - 1) * float(np.var(values)))
        assert found[name] == pytest.approx(expected, rel=1e-9)


def test_the_error_of_the_trace_holds_over_batches() -> None:
    values, claims = [], []
    for seed in range(300):
        G = randn(B, 50, seed=seed) * torch.linspace(0.1, 2, 50).double() + 0.1
        found = noise_of(G.square().sum(1), G @ G.mean(0))
        values.append(found["trace"])
        claims.append(found["trace_stderr"])
    truth = float((torch.linspace(0.1, 2, 50).double() ** 2).sum())
    assert np.mean(values) == pytest.approx(truth, rel=0.02)
    assert np.mean(claims) == pytest.approx(np.std(values), rel=0.1)
    within = np.abs(np.array(values) - truth) <= 1.96 * np.array(claims)
    assert within.mean() >= 0.9


def test_a_sample_of_parameters_has_the_error_it_claims() -> None:
    shapes = [torch.Size([200, 20]), torch.Size([200]), torch.Size([10, 200])]
    sums = [
        randn(*s, seed=i) * 5 + randn(s[0], *[1] * (len(s) - 1), seed=i)
        for i, s in enumerate(shapes)
    ]
    squares = [(1 + s.abs()) * 4 for s in sums]
    whole, _ = SignalToNoise(shapes, [None] * 3, 1e-16)(sums, squares, 32)
    assert whole is not None
    misses, claims = [], []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.randperm(200, generator=generator)[:20].sort().values] * 2 + [None]
        at = [s if r is None else s[r] for s, r in zip(sums, rows)]
        of = [s if r is None else s[r] for s, r in zip(squares, rows)]
        ratio = SignalToNoise(shapes, rows, 1e-16)
        value, error = ratio(at, of, 32)
        assert ratio(sums, squares, 32) == (value, error)  # picks its rows out of all
        assert value is not None
        misses.append(value - whole)
        claims.append(error)
    assert np.mean(misses) == pytest.approx(0.0, abs=3 * np.std(misses) / math.sqrt(200))
    assert np.mean(claims) == pytest.approx(np.std(misses), rel=0.25)


def test_the_error_of_a_sample_by_its_formula() -> None:
    """Rows are clusters: M²(1 − m/M)s²/m of each tensor, s² that of the ratio's residuals."""
    size, shapes = 16, [torch.Size([12, 3]), torch.Size([9]), torch.Size([4, 2])]
    rows = [torch.tensor([0, 2, 5, 6, 11]), torch.tensor([1, 4, 8]), None]
    sums = [randn(*shape, seed=i) * 3 for i, shape in enumerate(shapes)]
    squares = [s.square() / size + (1 + s.abs()) for s in sums]
    squares[0][2, 1] = sums[0][2, 1] ** 2 / size  # a parameter without noise is left out
    total = weight = variance = 0.0
    for s, q, chosen in zip(sums, squares, rows, strict=True):
        noise = (q - s.square() / size) / (size - 1)
        noisy = noise > 1e-12
        ratio = torch.where(noisy, (s / size).square() / noise, 0.0).reshape(len(s), -1).sum(1)
        count = noisy.reshape(len(s), -1).sum(1).double()
        at = torch.arange(len(s)) if chosen is None else chosen
        M, m = len(s), len(at)
        total += float(ratio[at].sum()) * M / m
        weight += float(count[at].sum()) * M / m
        rest = ratio[at] - ratio[at].sum() / count[at].sum() * count[at]
        variance += M**2 * (1 - m / M) * float(rest.var()) / m
    value, error = SignalToNoise(shapes, rows, 1e-16)(sums, squares, size)
    assert value == pytest.approx(total / weight, rel=1e-12)
    assert error == pytest.approx(math.sqrt(variance) / weight, rel=1e-12)


def test_default_sample_of_a_large_layer_is_near_the_whole() -> None:
    with seeded(0):
        model = nn.Sequential(nn.Linear(100, 400), nn.Tanh(), nn.Linear(400, 3)).double()
    X, y = randn(B, 100, seed=1), randint(3, B, seed=2)
    some = measure(model, X, y, GradientNoise(coordinates=4000)).latest("gradient_noise").values
    whole = measure(model, X, y, GradientNoise(coordinates=None)).latest("gradient_noise").values
    error = some["signal_to_noise_stderr"]
    assert 0 < error < 0.1 * whole["signal_to_noise"]
    assert abs(some["signal_to_noise"] - whole["signal_to_noise"]) < 4 * error
    assert some["trace"] == whole["trace"]


def test_identical_data_have_no_noise() -> None:
    model, X, y = problem()
    X, y = X[:1].expand(B, -1), y[:1].expand(B)
    found = measure(model, X, y, GradientNoise()).latest("gradient_noise").values
    assert found["trace"] == pytest.approx(0.0, abs=1e-12)
    assert found["signal_to_noise"] is None
    assert found["status"] == "ok"


def test_a_zero_gradient_is_a_status() -> None:
    model, X, _ = problem()
    with torch.no_grad():
        target = model(X)
    monitor = Monitor(model, nn.MSELoss(), None, [GradientNoise()])
    with monitor.step(X, target):
        nn.functional.mse_loss(model(X), target).backward()
    monitor.close()
    found = monitor.latest("gradient_noise").values  # type: ignore[union-attr]
    assert found["status"] == "zero_gradient"
    assert found["noise_scale"] is None


def test_two_data_have_a_trace_but_no_error() -> None:
    G = randn(2, 5, seed=0)
    found = noise_of(G.square().sum(1), G @ G.mean(0))
    assert found["trace"] == pytest.approx(float(G.var(0).sum()))
    assert found["trace_stderr"] is None


def test_prints() -> None:
    model, X, y = problem()
    captured: list[Any] = []

    class Spy(GradientNoise):
        def at_batch(self, *arguments: Any) -> Any:
            captured.extend(super().at_batch(*arguments))
            return captured

    measure(model, X, y, Spy())
    assert "noise scale" in str(captured[0].result)
    assert f"(B = {B})" in str(captured[0].result)


def diverging(
    quantities: list[Any], dtype: torch.dtype, steps: int = 400, **options: Any
) -> Monitor:
    """Gradient descent whose loss leaves the range of the dtype, one step at a time."""
    with seeded(0):
        model = nn.Linear(5, 1).to(dtype)
    X, y = randn(32, 5, seed=1).to(dtype), randn(32, 1, seed=2).to(dtype)
    sgd = torch.optim.SGD(model.parameters(), lr=20.0)
    monitor = Monitor(model, nn.MSELoss(), sgd, quantities, **options)
    for _ in range(steps):
        monitor.backward(X, y)
        sgd.step()
        sgd.zero_grad()
    monitor.close()
    assert not all(p.isfinite().all() for p in model.parameters())
    return monitor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_run_that_diverges_goes_on(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantities = [GradientNoise(), EarlyStopping(every=1)]
        run = diverging(quantities, dtype, individual="functional").run
    numbers = ("squared_norm", "trace", "trace_stderr", "noise_scale", "norm_test")
    found = {"ok": 0, "undetermined": 0}
    for record in run.records:
        if record.quantity == "gradient_noise":
            found[record.values["status"]] += 1
            missing = [record.values[name] is None for name in numbers]
            assert not any(missing) if record.values["status"] == "ok" else any(missing)
        if record.quantity == "early_stopping":
            assert (record.values["evidence"] is None) == (record.values["status"] != "ok")
    assert min(found.values()) > 5


@pytest.mark.parametrize("scale", [2.0**-500, 2.0**250, 2.0**500])
def test_noise_scales_with_the_gradient(scale: float) -> None:
    """Squares of ‖g‖² leave the range of floats; nothing but the trace has a unit."""
    G = randn(B, 50, seed=3) + 0.5
    square, inner = G.square().sum(1), G @ G.mean(0)
    one, other = noise_of(square, inner), noise_of(square * scale**2, inner * scale**2)
    for name in ("noise_scale", "noise_scale_stderr", "norm_test", "inner_product_test"):
        assert other[name] == one[name]
    for name in ("squared_norm", "trace", "trace_stderr", "signal"):
        assert other[name] == one[name] * scale**2


def test_the_variance_of_what_has_diverged_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert variance_of_mean(np.array([1e200, -1e200])) == math.inf
        assert math.isnan(variance_of_mean(np.array([1.0, math.inf])))


class WithEmpty(nn.Module):
    """A layer, and a parameter that may have no elements."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        self.first = None if shape is None else nn.Parameter(torch.empty(shape).double())
        with seeded(1):
            self.layer = nn.Linear(6, 3).double()

    def forward(self, X: Tensor) -> Tensor:
        empty = 0.0 if self.first is None else self.first.sum()
        return self.layer(X) + empty


@pytest.mark.parametrize("shape", [(0,), (3, 0), (50, 0)])
@pytest.mark.parametrize("coordinates", [None, 10])
def test_parameters_without_elements_are_left_out(
    shape: tuple[int, ...], coordinates: int | None
) -> None:
    X, y = randn(B, 6, seed=1), randint(3, B, seed=2)
    found = []
    for model in (WithEmpty(None), WithEmpty(shape)):
        quantities = GradientNoise(coordinates=coordinates), EarlyStopping(every=1)
        monitor = measure(model, X, y, *quantities, individual="functional")
        found.append([
            {k: v for k, v in monitor.latest(q.name).values.items() if k != "seconds"}
            for q in quantities
        ])  # fmt: skip
    assert found[0] == found[1]
    assert found[1][0]["signal_to_noise"] > 0


def test_the_sample_is_that_of_the_model_without_empty_parameters() -> None:
    shapes = [torch.Size(s) for s in ((50, 0), (200, 20), (0,), (200,))]
    rows = []
    for some in (shapes, [s for s in shapes if s.numel()]):
        quantity = GradientNoise(coordinates=100)
        quantity.bind(Setting([str(i) for i in range(len(some))], some, 1e-16, seed=3))
        moments = quantity.request(0).moments
        assert moments is not None
        rows.append([r.tolist() for r in moments if r is not None])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
