"""The loop: undisturbed to the bit, whatever its optimizer; what belongs to which step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops.errors import InputError, NonFiniteError
from curvops.training import (
    TIC,
    Alpha,
    EarlyStopping,
    ExactAlpha,
    GradientNoise,
    HessianTrace,
    Monitor,
    MonitorWarning,
    Quantity,
    Sharpness,
    SubspaceOverlap,
    fit_step,
)
from tests.cases import randint, randn, seeded

Data = list[tuple[Tensor, Tensor]]


def mlp(dropout: float = 0.0) -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(8, 3)
        ).double()


def batches(count: int, size: int = 7, seed: int = 1) -> Data:
    X, y = randn(count * size, 6, seed=seed), randint(3, count * size, seed=seed + 1)
    return list(zip(X.split(size), y.split(size), strict=True))


class Branches(nn.Module):
    """Several layers read and write the same tensor, so that the order of sums matters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.arms = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return self.head(h + sum(torch.tanh(arm(h)) for arm in self.arms))


class Custom:
    """An optimizer that torch does not know: sign descent on ``.data``."""

    def __init__(self, params: Any, lr: float) -> None:
        self.params, self.lr = list(params), lr

    def step(self) -> None:
        for p in self.params:
            p.data.add_(p.grad.sign(), alpha=-self.lr)

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "custom": lambda p: Custom(p, 0.01),
}


def everything() -> list[Quantity]:
    return [
        Alpha(),
        ExactAlpha(every=2),
        GradientNoise(),
        EarlyStopping(every=2),
        Sharpness(every=3, k=2),
        SubspaceOverlap(every=3, k=2),
        HessianTrace(every=4, num_probes=2),
        TIC(every=4),
    ]


def train(
    model: nn.Module,
    optimizer: Any,
    data: Data,
    monitor: Monitor | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    schedule: Any = None,
) -> list[Tensor]:
    """A loop as people write it; return the losses."""
    loss_func, losses = nn.CrossEntropyLoss(), []
    for i, (X, y) in enumerate(data):
        if monitor is None:
            loss = loss_func(model(X), y)
            (loss / accumulate).backward()
        else:
            with monitor.step(X, y):
                loss = loss_func(model(X), y)
                (loss / accumulate).backward()
        losses.append(loss.detach())
        if (i + 1) % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            optimizer.zero_grad()
    return losses


def watched(
    model: nn.Module, optimizer: Any, quantities: list[Quantity] | None = None, **options: Any
) -> Monitor:
    chosen = [Alpha(), GradientNoise()] if quantities is None else quantities
    return Monitor(model, nn.CrossEntropyLoss(), optimizer, chosen, **options)


# --------------------------------------------------------------------- undisturbed


@pytest.fixture
def no_trace() -> Callable[[nn.Module], None]:
    """Check that a model has no hook and no attribute that it did not have."""

    def check(model: nn.Module) -> None:
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._backward_hooks
            assert not {"input0", "output", "_backpack_extend"} & set(module.__dict__)

    return check


@pytest.mark.parametrize("way", ["backpack", "functional"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_trains_bit_for_bit_as_without(
    name: str, way: str, no_trace: Callable[[nn.Module], None]
) -> None:
    """Dropout on, gradients clipped and accumulated, the global random state followed."""
    results = []
    for monitored in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = mlp(dropout=0.3)
            optimizer = OPTIMIZERS[name](model.parameters())
            monitor = (
                watched(model, optimizer, everything(), individual=way, probe_size=10)
                if monitored
                else None
            )
            losses = train(model, optimizer, batches(12), monitor, accumulate=2, clip=0.5)
            if monitor is not None:
                monitor.close()
                no_trace(model)
                assert monitor.individual == way
                assert len(monitor.run.quantities) == 9
            results.append((model.state_dict(), losses, torch.get_rng_state()))
    (plain, losses, state), (seen, seen_losses, seen_state) = results
    assert all(torch.equal(plain[key], seen[key]) for key in plain)
    assert all(torch.equal(a, b) for a, b in zip(losses, seen_losses, strict=True))
    assert torch.equal(state, seen_state)


def test_the_order_of_sums_in_a_branching_model_is_kept() -> None:
    results = []
    for monitored in (False, True):
        with seeded(2):
            model = Branches()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        data = [(X.float(), y) for X, y in batches(10)]
        train(model, optimizer, data, watched(model, optimizer) if monitored else None)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_modes_and_flags_and_random_states_stay(global_rng_untouched: None) -> None:
    model = mlp(dropout=0.3)
    model[0].eval()
    model[3].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    modes = [m.training for m in model.modules()]
    model.eval()  # no masks are drawn by the loop itself
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode and not isinstance(module, nn.Dropout)
    modes = [m.training for m in model.modules()]
    train(model, optimizer, batches(4), watched(model, optimizer, everything(), probe_size=7))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]


def test_an_exception_in_the_block_leaves_nothing(no_trace: Callable[[nn.Module], None]) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer)
    (X, y), *rest = batches(3)
    with pytest.raises(TypeError), monitor.step(X, y):
        model.forward(model(X), None)  # type: ignore[call-arg]
    no_trace(model)
    train(model, optimizer, rest, monitor)
    assert [r.step for r in monitor.records if r.quantity == "gradient_noise"] == [0, 1]


# --------------------------------------------------------------------- what is measured


def reference_alphas(
    model: nn.Module, optimizer: Any, data: Data, accumulate: int = 1
) -> list[float]:
    """α by the definition: individual gradients in a loop, steps from the parameters."""
    loss_func = nn.CrossEntropyLoss()
    params = list(model.parameters())
    groups = [data[i : i + accumulate] for i in range(0, len(data), accumulate)]
    points, sides = [], []
    for group in groups:
        X, y = torch.cat([b[0] for b in group]), torch.cat([b[1] for b in group])
        losses, gradients = [], []
        for n in range(len(y)):
            value = loss_func(model(X[n : n + 1]), y[n : n + 1])
            grads = torch.autograd.grad(value, params)
            losses.append(value.detach())
            gradients.append(torch.cat([g.reshape(-1) for g in grads]))
        sides.append((torch.stack(losses), torch.stack(gradients)))
        points.append(torch.cat([p.detach().reshape(-1) for p in params]).clone())
        for a, b in group:
            (loss_func(model(a), b) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
    alphas = []
    for i in range(len(groups) - 1):
        d = points[i + 1] - points[i]
        t = float(d.norm())
        (f0, g0), (f1, g1) = sides[i], sides[i + 1]
        s0, s1 = g0 @ d / t, g1 @ d / t
        variances = [float(x.var()) for x in (f0, f1, s0, s1)]  # batches are equally large
        phi = torch.tensor(
            [[1, 0, 0], [1, t, t * t], [0, 1, 0], [0, 1, 2 * t]], dtype=torch.float64
        )
        weight = torch.diag(1 / torch.tensor(variances, dtype=torch.float64))
        y = torch.tensor([float(x.mean()) for x in (f0, f1, s0, s1)], dtype=torch.float64)
        w = torch.linalg.solve(phi.T @ weight @ phi, phi.T @ weight @ y)
        alphas.append(float(t / (-w[1] / (2 * w[2])) - 1))
    return alphas


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("way", ["backpack", "functional"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("alone", [False, True])
def test_alpha_is_its_definition(name: str, way: str, accumulate: int, alone: bool) -> None:
    data = batches(6 * accumulate)
    first, second = mlp(), mlp()
    expected = reference_alphas(first, OPTIMIZERS[name](first.parameters()), data, accumulate)
    optimizer = OPTIMIZERS[name](second.parameters())
    quantities = [Alpha()] if alone else None
    monitor = watched(second, optimizer, quantities, individual=way)
    train(second, optimizer, data, monitor, accumulate)
    monitor.close()  # an optimizer that torch does not know does not say that it is about to step
    steps, alphas = monitor.run.series("alpha", "alpha")
    assert steps == list(range(5))
    assert alphas == pytest.approx(expected, rel=1e-7)


def test_variances_of_alpha_are_those_of_means() -> None:
    """A mean over B data has the variance of one datum, unbiased, divided by B."""
    model, data = mlp(), batches(2)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer, [Alpha()])
    for X, y in data:
        losses.append(nn.functional.cross_entropy(model(X), y, reduction="none").detach())
        with monitor.step(X, y):
            nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = monitor.latest("alpha").values["variances"]
    assert found[:2] == pytest.approx([float(f.var()) / len(f) for f in losses], rel=1e-10)


@pytest.mark.parametrize("way", ["backpack", "functional"])
def test_alpha_at_the_end_of_ones_own_batch(way: str) -> None:
    model, (X, y) = mlp(), batches(1)[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    monitor = watched(model, optimizer, [Alpha(end="own")], individual=way)
    others = watched(mlp(), None, [Alpha()], individual=way)
    copy = others._source._called  # the same model, trained on one batch alone
    for _ in range(2):
        with monitor.step(X, y):
            nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    plain = torch.optim.SGD(copy.parameters(), 0.5)
    for _ in range(3):
        with others.step(X, y):
            nn.functional.cross_entropy(copy(X), y).backward()
        plain.step()
        plain.zero_grad()
    own, following = (m.run.series("alpha", "alpha")[1] for m in (monitor, others))
    assert own[0] == pytest.approx(following[0], rel=1e-9)
    with pytest.raises(InputError, match='"next" or "own"'):
        Alpha(end="last")  # type: ignore[arg-type]


def test_schedules_and_zero_steps() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: i % 2)  # 0, 0.2, 0, ...
    monitor = watched(model, optimizer)
    train(model, optimizer, batches(5), monitor, schedule=schedule)
    _, statuses = monitor.run.series("alpha", "status")
    _, alphas = monitor.run.series("alpha", "alpha")
    assert statuses[0] == statuses[2] == "zero_step"
    assert alphas[0] == -1.0
    assert statuses[1] != "zero_step"
    assert monitor.run.series("step", "learning_rate")[1] == [0.0, 0.2, 0.0, 0.2, 0.0]


def test_one_datum_is_undetermined_and_never_nan() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer, [Alpha(), GradientNoise(), EarlyStopping(every=1)])
    train(model, optimizer, batches(4, size=1), monitor)
    for record in monitor.records:
        if record.quantity != "step":
            assert record.values["status"] == "undetermined"
        assert not any(isinstance(v, float) and math.isnan(v) for v in record.values.values())


def test_nan_in_the_data_is_undetermined_and_never_nan() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer, [Alpha(), GradientNoise(), EarlyStopping(every=1)])
    data = [(X.clone().fill_(math.nan), y) for X, y in batches(3)]
    train(model, optimizer, data, monitor)
    assert {record.quantity for record in monitor.records} > {"alpha", "gradient_noise"}
    for record in monitor.records:
        if record.quantity != "step":
            assert record.values["status"] == "undetermined"
        assert not any(isinstance(v, float) and math.isnan(v) for v in record.values.values())


def test_the_scale_of_the_users_loss_is_undone() -> None:
    found = []
    for scale in (1.0, 2.0**16, -0.125):
        model, (X, y) = mlp(), batches(1)[0]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        monitor = watched(model, optimizer, [GradientNoise()], individual="backpack")
        with monitor.step(X, y) as step:
            (scale * nn.functional.cross_entropy(model(X), y)).backward()
        optimizer.step()
        assert step.loss == pytest.approx(float(nn.functional.cross_entropy(mlp()(X), y).detach()))
        found.append(monitor.latest("gradient_noise").values["trace"])  # type: ignore[union-attr]
    assert found[1:] == pytest.approx([found[0]] * 2)


def test_mixed_precision_with_a_scaler_that_skips_a_step() -> None:
    """A step that is not made is no accumulation: its gradients are gone."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer)
    (X, y), (X2, y2), (X3, y3) = batches(3)
    for a, b, makes_step in ((X, y, False), (X2, y2, True), (X3, y3, True)):
        with monitor.step(a, b):
            nn.functional.cross_entropy(model(a), b).backward()
        if makes_step:
            optimizer.step()
        optimizer.zero_grad()
    sizes = monitor.run.series("gradient_noise", "batch_size")
    assert sizes == ([0, 1, 2], [7, 7, 7])
    steps, statuses = monitor.run.series("alpha", "status")
    assert (steps[0], statuses[0]) == (0, "zero_step")


def test_autocast_to_bfloat16() -> None:
    model, (X, y) = mlp().float(), batches(1)[0]
    X = X.float()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer, [GradientNoise()], individual="backpack")
    with monitor.step(X, y), torch.autocast("cpu", torch.bfloat16):
        nn.functional.cross_entropy(model(X), y).backward()
    optimizer.step()
    plain = watched(copy := mlp().float(), None, [GradientNoise()])
    with plain.step(X, y):
        nn.functional.cross_entropy(copy(X), y).backward()
    plain.close()
    a, b = (m.latest("gradient_noise").values["trace"] for m in (monitor, plain))  # type: ignore[union-attr]
    assert a == pytest.approx(b, rel=0.05)


def test_lbfgs_evaluates_within_its_step() -> None:
    model, data = mlp(), batches(1, size=20)
    (X, y), loss_func = data[0], nn.CrossEntropyLoss()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    monitor = watched(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with monitor.step(X, y):
            loss: Tensor = loss_func(model(X), y)
            loss.backward()
        return loss

    optimizer.step(closure)
    monitor.close()
    assert monitor.run.series("alpha", "alpha")[0] == [0, 1, 2]
    assert len(monitor.run.series("step", "loss")[0]) == 4


def test_dropout_in_the_functional_way_is_noise_of_the_data() -> None:
    model, (X, y) = mlp(dropout=0.5), batches(1, size=64)[0]
    found = []
    for individual in ("backpack", "functional"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            monitor = watched(model, None, [GradientNoise()], individual=individual)
            with monitor.step(X, y):
                nn.functional.cross_entropy(model(X), y).backward()
            monitor.close()
        model.zero_grad()
        found.append(monitor.latest("gradient_noise").values["trace"])  # type: ignore[union-attr]
    assert found[0] == pytest.approx(found[1], rel=0.5)
    assert found[0] != found[1]


def test_a_transformer_with_dropout_falls_back() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(6, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
            self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks(self.up(x)).mean(1))

    with seeded(0):
        model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    monitor = watched(model, optimizer, everything(), probe_size=7)
    data = [(X.float().unsqueeze(1).expand(-1, 4, -1), y) for X, y in batches(3)]
    with torch.random.fork_rng(devices=[]):
        train(model, optimizer, data, monitor)
    assert monitor.individual == "functional"
    assert "BackPACK does not know" in monitor.notes[0]
    assert set(monitor.run.quantities) >= {"alpha", "gradient_noise", "sharpness", "tic"}
    assert monitor.run.series("gradient_noise", "notes")[1][0] == list(monitor.notes)


def test_every_and_functions_of_the_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    quantities: list[Quantity] = [Alpha(every=3), GradientNoise(every=lambda step: step == 4)]
    monitor = watched(model, optimizer, quantities)
    train(model, optimizer, batches(8), monitor)
    assert monitor.run.series("alpha", "alpha")[0] == [0, 3, 6]
    assert monitor.run.series("gradient_noise", "trace")[0] == [4]
    assert monitor.run.series("step", "loss")[0] == list(range(8))


def test_inputs_that_are_overwritten_are_noticed() -> None:
    model, buffer = mlp(), torch.empty(7, 6, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for individual in ("backpack", "functional"):
        monitor = watched(model, optimizer, [Alpha()], individual=individual)
        for X, y in batches(3):
            buffer.copy_(X)
            with monitor.step(buffer, y):
                nn.functional.cross_entropy(model(buffer), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        record = monitor.latest("alpha")
        assert record is not None
        assert record.values["status"] == "undetermined"
        assert "written to" in record.values["notes"][0]


def test_backward_makes_both_passes() -> None:
    first, second = mlp(), mlp()
    plain, other = (torch.optim.SGD(m.parameters(), 0.1) for m in (first, second))
    losses = train(first, plain, batches(4))
    monitor = watched(second, other)
    found = []
    for X, y in batches(4):
        found.append(monitor.backward(X, y))
        other.step()
        other.zero_grad()
    assert torch.equal(torch.stack(found), torch.stack(losses))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert len(monitor.run.series("alpha", "alpha")[0]) == 3


def test_forward_for_models_of_another_kind() -> None:
    class Dictionary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(inputs)}

    model = Dictionary()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(
        model, optimizer, everything(), forward=lambda m, X: m(**X)["logits"], probe_size=7
    )
    for X, y in batches(3):
        monitor.backward({"inputs": X}, y)
        optimizer.step()
        optimizer.zero_grad()
    assert monitor.individual == "functional"
    plain = watched(other := mlp(), sgd := torch.optim.SGD(other.parameters(), 0.1))
    train(other, sgd, batches(3), plain)
    a, b = (m.run.series("alpha", "alpha")[1] for m in (monitor, plain))
    assert a == pytest.approx(b, rel=1e-8)


# --------------------------------------------------------------------- bad input, failures


def test_impossible_arguments() -> None:
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match="parentheses"):
        watched(model, sgd, [Alpha])  # type: ignore[list-item]
    with pytest.raises(InputError, match="more than once"):
        watched(model, sgd, [Alpha(), Alpha(every=2)])
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        watched(lambda x: x, sgd)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no parameter"):
        watched(nn.ReLU(), sgd)
    with pytest.raises(InputError, match="individual"):
        watched(model, sgd, individual="both")
    with pytest.raises(InputError, match="every"):
        Alpha(every=0)
    with pytest.raises(InputError, match="probe_size"):
        watched(model, sgd, probe_size=0)
    with pytest.raises(InputError, match="keep"):
        watched(model, sgd, keep=-1)
    with pytest.raises(InputError, match="coordinates"):
        GradientNoise(coordinates=0)
    with pytest.raises(InputError, match="averages or sums"):
        Monitor(model, lambda f, y: f.sum(), sgd, [Alpha()])


def test_batch_norm_in_training_mode_is_refused_before_any_step() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    X, y = batches(1)[0]
    with (
        pytest.raises(InputError, match=r"BatchNorm1d '1' .*GroupNorm"),
        watched(model, sgd).step(X, y),
    ):
        pass
    monitor = watched(model, sgd, [Sharpness(every=1)], probe_size=7)  # needs no such gradients
    before = model.state_dict()["1.running_mean"].clone()
    with monitor.step(X, y):
        pass
    assert monitor.latest("sharpness") is not None
    assert torch.equal(model.state_dict()["1.running_mean"], before)


def test_blocks_are_neither_nested_nor_opened_after_the_end() -> None:
    model = mlp()
    monitor = watched(model, torch.optim.SGD(model.parameters(), 0.1))
    X, y = batches(1)[0]
    with monitor.step(X, y), pytest.raises(InputError, match="nested"), monitor.step(X, y):
        pass
    monitor.close()
    monitor.close()
    with pytest.raises(InputError, match="closed"), monitor.step(X, y):
        pass


def test_divergence_is_recorded_and_training_goes_on() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(
        model, optimizer, [Alpha(), GradientNoise(), Sharpness(every=1)], probe_size=7
    )
    data = batches(4)
    train(model, optimizer, data[:1], monitor)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.warns(MonitorWarning, match="sharpness failed"):
        train(model, optimizer, data[1:], monitor)
    assert monitor.latest("alpha").values["status"] == "undetermined"  # type: ignore[union-attr]
    assert monitor.latest("sharpness").values["status"] == "failed"  # type: ignore[union-attr]


def test_a_first_failure_is_an_error() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    monitor = watched(model, None, [Sharpness(every=1)], probe_size=7)
    X, y = batches(1)[0]
    with pytest.raises(NonFiniteError), monitor.step(X, y):
        pass


def test_memory_of_records_can_be_bounded() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer, keep=5)
    train(model, optimizer, batches(6), monitor)
    assert len(monitor.records) == 5
    assert monitor.records[-1].step == 5


def test_warns_about_nothing_under_an_ordinary_loop() -> None:
    model = mlp().float()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, [(X.float(), y) for X, y in batches(3)], watched(model, optimizer))


def test_fit_of_the_monitor_is_the_public_one() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = watched(model, optimizer, [Alpha()])
    train(model, optimizer, batches(2), monitor)
    values = monitor.latest("alpha").values  # type: ignore[union-attr]
    again = fit_step(values["losses"], values["slopes"], values["length"], values["variances"])
    assert again.alpha == pytest.approx(values["alpha"])
