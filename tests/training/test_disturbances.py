"""What a loop may do to a monitor's mini-batches, layers and parameters, and what is said then."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from curvops.errors import InputError
from curvops.training import Alpha, GradientNoise, Monitor
from curvops.training.attached import Attached
from curvops.training.recorder import MonitorWarning

LOSS = nn.CrossEntropyLoss()
WAYS = ("backpack", "functional")


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data(size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return X, torch.randint(3, (size,), generator=generator)


def truth(model: nn.Module, X: Tensor, y: Tensor) -> tuple[float, float]:
    """tr Σ and ‖g‖², by a backward pass for every datum."""
    params = [p for p in model.parameters() if p.requires_grad]
    rows = [
        torch.autograd.grad(LOSS(model(X[n : n + 1]), y[n : n + 1]), params) for n in range(len(X))
    ]
    G = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    return float(G.var(0).sum()), float(G.mean(0).square().sum())


def watched(model: nn.Module, *quantities: Any, lr: float = 0.5, **options: Any) -> Any:
    sgd = torch.optim.SGD((p for p in model.parameters()), lr=lr)
    return sgd, Monitor(model, LOSS, sgd, quantities or [GradientNoise()], **options)


def noise(monitor: Monitor) -> list[tuple[int, Any, Any]]:
    found = [r for r in monitor.records if r.quantity == "gradient_noise"]
    return [(r.step, r.values.get("trace"), r.values.get("squared_norm")) for r in found]


# What is written to ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_tensor_that_is_filled_again_before_the_step_is_told(way: str) -> None:
    model = mlp()
    sgd, monitor = watched(model, individual=way)
    X, y = data()
    for k in range(2):  # accumulated
        X.copy_(data(seed=k)[0])
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
    with pytest.warns(MonitorWarning, match="written to"):
        sgd.step()
    monitor.close()
    record = monitor.latest("gradient_noise")
    assert record is not None
    assert record.values["status"] == "failed"
    assert "written to" in record.values["notes"][0]


@pytest.mark.filterwarnings("ignore::curvops.training.recorder.MonitorWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_step_by_hand_with_a_tensor_that_is_filled_again(way: str) -> None:
    model = mlp()
    monitor = Monitor(model, LOSS, "by hand", [GradientNoise()], individual=way)  # type: ignore[arg-type]
    X, y = data()
    for k in range(3):
        X.copy_(data(seed=k)[0])
        expected = truth(model, X, y)
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
                p.grad = None
    monitor.close()
    first, second, (_, *last) = noise(monitor)
    assert first[1:] == second[1:] == (None, None)
    assert last == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_own_ends_of_a_tensor_that_is_filled_again(way: str) -> None:
    """The model makes a tensor of its own out of X, so that no layer holds what is filled."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x / 2.0)

    model = Scaled()
    sgd, monitor = watched(model, Alpha(end="own"), individual=way)
    X, y = data()
    for k in range(3):
        X.copy_(data(seed=k)[0])
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
        sgd.step()
        sgd.zero_grad()
    statuses = [r.values["status"] for r in monitor.records if r.quantity == "alpha"]
    assert statuses == ["undetermined", "undetermined"]


@pytest.mark.parametrize("way", ["auto", "functional"])
def test_an_output_that_is_written_to_is_not_the_models(way: str) -> None:
    """The numbers are those of loss_func(model(X), y), whatever was differentiated."""
    model, (X, y) = mlp(), data()
    _, monitor = watched(model, individual=way)
    with monitor.step(X, y):
        prediction = model(X)
        prediction /= 10.0
        LOSS(prediction, y).backward()
    monitor.close()
    ((_, trace, square),) = noise(monitor)
    assert (trace, square) == pytest.approx(truth(model, X, y), rel=1e-10)


# Data that have no gradients of their own -----------------------------------------------------


class Centred(nn.Module):
    """Subtracts the mean over the batch: always, or in training mode only."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.first, self.last, self.always = nn.Linear(5, 5), nn.Linear(5, 3), always

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.tanh(h - h.mean(0) if self.always or self.training else h))


@pytest.mark.parametrize("way", ["auto", "functional"])
@pytest.mark.parametrize("zero_head", [False, True])
@pytest.mark.parametrize("always", [False, True])
def test_mixed_data_are_refused(always: bool, zero_head: bool, way: str) -> None:
    model = Centred(always).double()
    if zero_head:
        nn.init.zeros_(model.last.weight)
    _, monitor = watched(model, individual=way)
    with pytest.raises(InputError, match="depends on the other data"):
        monitor.step(*data()).__enter__()


def test_mixed_tokens_are_refused() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.table(x).mean(1)
            return self.last(h - h.mean(0))

    X = torch.randint(9, (8, 6), generator=torch.Generator().manual_seed(0))
    _, monitor = watched(Bag())
    with pytest.raises(InputError, match="depends on the other data"):
        monitor.step(X, data()[1]).__enter__()


def test_probabilities_and_dropout_are_not_taken_for_mixed() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.LayerNorm(4), nn.Softmax(1)).double()
    _, monitor = watched(model)
    X, y = data()
    with monitor.step(X, y):
        LOSS(model(X), y).backward()
    monitor.close()
    assert noise(monitor)[0][1] is not None


def test_batch_normalisation_that_starts_later() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).double()
    model.eval()
    sgd, monitor = watched(model, Alpha(), GradientNoise(), lr=0.1)
    X, y = data()
    for step in range(6):
        model.train(step in (2, 3))
        tells = pytest.warns(MonitorWarning, match="training mode") if step == 2 else nullcontext()
        with tells, monitor.step(X, y):
            LOSS(model(X), y).backward()
        sgd.step()
        sgd.zero_grad()
    monitor.close()
    assert [s for s, trace, _ in noise(monitor) if trace is not None] == [0, 1, 4, 5]
    alphas = {r.step: r.values["status"] for r in monitor.records if r.quantity == "alpha"}
    assert [alphas.pop(step) for step in (1, 2, 3)] == ["failed"] * 3  # 1 has no end
    assert set(alphas) <= {0, 4}
    assert "failed" not in alphas.values()


def test_a_step_without_an_end_is_told_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).double()
    sgd, monitor = watched(model, Alpha(every=5), lr=0.1)
    X, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)
        for step in range(7):
            model.train(1 <= step <= 3)
            for _ in range(2):  # accumulated
                with monitor.step(X, y):
                    LOSS(model(X), y).backward()
            sgd.step()
            sgd.zero_grad()
        monitor.close()
    found = [(r.step, r.values["status"]) for r in monitor.records if r.quantity == "alpha"]
    assert [step for step, _ in found] == [0, 5]
    assert found[0][1] == "failed"
    assert found[1][1] != "failed"


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_are_unfrozen(way: str) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    sgd, monitor = watched(model, Alpha(), GradientNoise(), individual=way)
    X, y = data()
    for step in range(4):
        model[0].requires_grad_(step >= 2)
        tells = pytest.warns(MonitorWarning, match="frozen") if step == 2 else nullcontext()
        expected = truth(model, X, y)
        with tells, monitor.step(X, y):
            LOSS(model(X), y).backward()
        sgd.step()
        sgd.zero_grad()
        if step < 2:
            assert noise(monitor)[step][1:] == pytest.approx(expected, rel=1e-10)
    monitor.close()
    assert [trace for step, trace, _ in noise(monitor) if step > 1] == [None, None]


def test_two_monitors_one_in_the_other() -> None:
    model, (X, y) = mlp(), data()
    sgd, outer = watched(model)
    inner = Monitor(model, LOSS, sgd, [GradientNoise()])
    with (
        pytest.raises(InputError, match="another monitor"),
        outer.step(X, y),
        inner.step(X, y),
    ):
        pass
    for monitor in (outer, inner):  # one after the other they may be used
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
        sgd.zero_grad()


def test_training_that_was_broken_off_may_begin_again() -> None:
    """As a callback of another library does, whose events end with an exception."""
    attached, model = Attached([GradientNoise()], LOSS), mlp()
    sgd, (X, y) = torch.optim.SGD(model.parameters(), lr=0.1), data()
    for _ in range(2):
        attached.start(model, sgd)
        attached.open(X, y)
    monitor = Monitor(model, LOSS, sgd, [GradientNoise()])
    assert attached.monitor is not None
    attached.monitor.close()  # inside of its block
    with monitor.step(X, y):
        LOSS(model(X), y).backward()
    monitor.close()
    assert noise(monitor)[0][1:] == pytest.approx(truth(model, X, y), rel=1e-10)


class Particular(nn.Module):
    """Counts its passes in training mode, and takes no less than five data in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if len(x) < 5:
                raise ValueError("too few data")
            self.calls += 1
        return self.inner(x)


def test_what_a_model_does_in_training_mode_is_the_users_alone() -> None:
    model, (X, y) = Particular(), data()
    sgd, monitor = watched(model)
    for _ in range(3):
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
        sgd.step()
        sgd.zero_grad()
    monitor.close()
    assert (model.calls, monitor.individual) == (3, "backpack")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_parameters_of_half_precision(seed: int, way: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)
        )
    X, y = data(seed=seed)
    exact = truth(model.to(torch.bfloat16).double(), X.bfloat16().double(), y)
    model.to(torch.bfloat16)
    _, monitor = watched(model, individual=way)
    with monitor.step(X.bfloat16(), y):
        LOSS(model(X.bfloat16()), y).backward()
    monitor.close()
    assert noise(monitor)[0][1:] == pytest.approx(exact, rel=5e-2)


def test_a_schedule_is_asked_anew_by_another_monitor() -> None:
    quantity, (X, y), asked = GradientNoise(lambda step: not asked.append(step)), data(), []
    for _ in range(2):
        model = mlp()
        _, monitor = watched(model, quantity)
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
        monitor.close()
    assert asked == [0, 0]


def test_two_data_print() -> None:
    model, (X, y) = mlp(), data(2)
    found = []
    quantity = GradientNoise()
    _, monitor = watched(model, quantity)
    original = quantity.at_batch
    quantity.at_batch = lambda *args: [found.append(m.result) or m for m in original(*args)]
    with monitor.step(X, y):
        LOSS(model(X), y).backward()
    monitor.close()
    assert str(found[0]).endswith("(B = 2)")


# What a weight of zero hides ------------------------------------------------------------------


class Reused(nn.Module):
    """A weight that is used a second time, outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 3)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(torch.tanh(self.first(x)), self.first.weight.T))


def _hooked() -> nn.Module:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    model[0].register_forward_hook(lambda module, inputs, output: output * 3)
    return model


def _normed() -> nn.Module:
    model = mlp()
    nn.init.zeros_(model[2].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that this kind of normalisation is old
        nn.utils.weight_norm(model[0])
    return model


def _pruned() -> nn.Module:
    model = mlp()
    prune.l1_unstructured(model[0], "weight", 0.3)
    return model


@pytest.mark.parametrize("make", [lambda: Reused().double(), _hooked, _normed, _pruned])
def test_layers_that_do_more_than_their_weights_say(make: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    sgd, monitor = watched(model)
    X, y = data()
    expected = []
    for _ in range(4):
        expected.append(truth(model, X, y))
        with monitor.step(X, y):
            LOSS(model(X), y).backward()
        sgd.step()
        sgd.zero_grad()
    monitor.close()
    for (_, *found), right in zip(noise(monitor), expected, strict=True):
        assert found == pytest.approx(right, rel=1e-8)
