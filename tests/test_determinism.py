"""What changes is refused; what is not ours is left as it was, also after a failure."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from curvops import (
    EFLinearOperator,
    EmpiricalRisk,
    FisherMCLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
)
from curvops.errors import (
    CurvopsError,
    DataError,
    DeterminismError,
    DeviceError,
    DTypeError,
    InputError,
    NonFiniteError,
    ShapeError,
)
from tests import cases


def _batches(n: int = 8) -> list[tuple[Tensor, Tensor]]:
    X, y = cases.randn(n, 3, seed=1), cases.randint(3, n, seed=2)
    return cases.cut(X, y) if n == 8 else [(X, y)]


def _model() -> nn.Module:
    with cases.seeded(0):
        return cases.mlp().double()


# Data: one-shot, changing, empty, malformed ------------------------------------------------


def _generator() -> Iterator[tuple[Tensor, Tensor]]:
    yield from _batches()


@pytest.mark.parametrize(
    "make",
    [
        _generator,
        lambda: iter(_batches()),
        lambda: iter(DataLoader(TensorDataset(*_batches(5)[0]), batch_size=2)),
        lambda: map(tuple, _batches()),
        lambda: zip(*zip(*_batches(), strict=True), strict=True),
    ],
    ids=["generator", "iterator", "loader-iterator", "map", "zip"],
)
def test_one_shot_data_are_refused_when_the_risk_is_built(make: Callable[[], Any]) -> None:
    model, data = _model(), make()
    with pytest.raises(DataError, match=r"list\("):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data)
    assert len(list(data)) > 0, "the refused iterator was consumed"


class _Reiterable:
    """A source that yields something else in every pass."""

    def __init__(self, change: Callable[[int, int, Tensor], Tensor | None]) -> None:
        self.passes, self.change = 0, change

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        for i, (X, y) in enumerate(_batches()):
            changed = self.change(self.passes, i, X.clone())
            if changed is not None:
                yield changed, y


def _exhaust(risk: EmpiricalRisk) -> None:
    for _ in range(3):
        risk.loss()


def test_augmentation_beyond_the_cache_is_refused_naming_the_batch() -> None:
    model = _model()
    noisy = _Reiterable(lambda turn, i, X: X + 1e-3 * turn * (i == 1))
    with pytest.raises(DeterminismError, match=r"batch 1\b"):
        _exhaust(EmpiricalRisk(model, nn.CrossEntropyLoss(), model, noisy, cache_data=0))


def test_one_changed_bit_is_seen() -> None:
    model = _model()

    def flip(turn: int, i: int, X: Tensor) -> Tensor:
        if turn > 2 and i == 2:
            X[-1, -1] = torch.nextafter(X[-1, -1], torch.tensor(9.0, dtype=X.dtype))
        return X

    data = _Reiterable(flip)
    with pytest.raises(DeterminismError, match=r"batch 2\b"):
        _exhaust(EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, cache_data=0))


@pytest.mark.parametrize("lost", [0, 2])
def test_a_source_that_loses_a_batch_is_refused(lost: int) -> None:
    model = _model()
    data = _Reiterable(lambda turn, i, X: None if turn > 1 and i == lost else X)
    with pytest.raises((DeterminismError, DataError), match="batch"):
        _exhaust(EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, cache_data=0))


def test_a_source_that_grows_is_refused() -> None:
    model = _model()
    data = _Reiterable(lambda turn, i, X: None if turn == 1 and i == 2 else X)
    with pytest.raises((DeterminismError, DataError), match="batch"):
        _exhaust(EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, cache_data=0))


@pytest.mark.parametrize("cache", [0, "8B"])
def test_a_shuffling_loader_beyond_the_cache_is_refused_naming_the_sampler(cache: Any) -> None:
    model = _model()
    loader = DataLoader(
        TensorDataset(*_batches(50)[0]), batch_size=8, shuffle=True, generator=cases.rng(0)
    )
    with pytest.raises(DeterminismError, match=r"(?s)RandomSampler") as caught:
        _exhaust(EmpiricalRisk(model, nn.CrossEntropyLoss(), model, loader, cache_data=cache))
    assert "batch" in str(caught.value)


def test_a_shuffling_loader_within_the_cache_is_read_once() -> None:
    model = _model()
    X, y = _batches(50)[0]

    class Counting(Dataset):
        reads = 0

        def __len__(self) -> int:
            return 50

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            Counting.reads += 1
            return X[i], y[i]

    loader = DataLoader(Counting(), batch_size=8, shuffle=True, generator=cases.rng(0))
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), model, loader)
    v = cases.randn(operator.shape[1], seed=3)
    first = operator @ v
    assert torch.equal(first, operator @ v)
    assert Counting.reads == 50
    expected = HessianLinearOperator(model, nn.CrossEntropyLoss(), model, [(X, y)]) @ v
    cases.assert_matches(first, expected)


class _Rereadable:
    """New tensors of the same values in every pass; a list would be kept as it is."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for X, y in self.batches:
            yield X.clone(), y.clone()


@pytest.mark.parametrize("merge", [False, "auto"])
@pytest.mark.parametrize("name", ["ce-weight-mask", "mse-sequence"])
def test_fixed_data_beyond_the_cache_are_read_for_every_pass(name: str, merge: Any) -> None:
    case = cases.make(name)
    source = _Rereadable(case.batches)
    problem = (case.model, case.loss, case.params, source)
    risk = EmpiricalRisk(*problem, cache_data=0, merge_batches=merge)
    passes = source.passes
    for turn in (1, 2):
        cases.assert_matches(risk.loss(), case.truth.loss())
        assert source.passes >= passes + turn
    cases.assert_matches(risk.gradient(), case.truth.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), case.truth.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), case.truth.ggn())
    before = source.passes
    GGNLinearOperator.from_risk(risk) @ case.vectors(7)
    assert source.passes - before <= 2  # the columns share a pass


def test_the_budget_is_counted() -> None:
    """8 data of 3 doubles and a long are 256 bytes."""
    for budget, reread in ((255, True), (256, False), ("1KiB", False)):
        model, source = _model(), _Rereadable(_batches())
        risk = EmpiricalRisk(
            model, nn.CrossEntropyLoss(), model, source, cache_data=budget, **cases.UNMERGED
        )
        passes = source.passes
        risk.loss()
        assert (source.passes > passes) is reread, budget


@pytest.mark.parametrize("budget", [-1, "many", "1 parsec", None])
def test_an_impossible_budget(budget: Any) -> None:
    model = _model()
    with pytest.raises(InputError, match="cache_data"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, _batches(), cache_data=budget)


@pytest.mark.parametrize("merge", [False, "auto"])
def test_data_written_to_after_the_risk_was_built(merge: Any) -> None:
    """The answer for the data as they were, or an error that names the batch; nothing between."""
    model, batches = _model(), _batches()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches, merge_batches=merge)
    before = risk.loss()
    batches[1][0].mul_(3)
    try:
        after = risk.loss()
    except DeterminismError as error:
        assert "batch" in str(error)  # noqa: PT017
    else:
        assert torch.equal(before, after)


class _Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        X, y = _batches(5)[0]
        yield from zip(X, y, strict=True)


@pytest.mark.parametrize(
    "data",
    [
        _batches(),
        tuple(_batches()),
        DataLoader(TensorDataset(*_batches(5)[0]), batch_size=2),
        DataLoader(_Stream(), batch_size=2),
        [list(batch) for batch in _batches()],
        dict(enumerate(_batches())).values(),
        _Reiterable(lambda turn, i, X: X),
    ],
    ids=["list", "tuple", "loader", "stream-loader", "lists", "values", "own"],
)
@pytest.mark.parametrize("cache", [0, "1GiB"])
def test_sources_that_drop_in(data: Any, cache: Any) -> None:
    model = _model()
    pairs = [(X, y) for X, y in data]
    X, y = torch.cat([X for X, _ in pairs]), torch.cat([y for _, y in pairs])
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, cache_data=cache)
    assert risk.num_data == len(y)
    cases.assert_matches(risk.loss(), F.cross_entropy(model(X), y).detach())


def test_a_loader_with_workers() -> None:
    model = _model()
    X, y = _batches(5)[0]
    loader = DataLoader(TensorDataset(X, y), batch_size=2, num_workers=1)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, loader)
    cases.assert_matches(risk.loss(), F.cross_entropy(model(X), y).detach())


def test_the_operators_signature_drops_in() -> None:
    """``(model, loss, params, data, progressbar=, check_deterministic=, num_data=, ...)``."""
    case = cases.make("ce")
    operator = GGNLinearOperator(
        case.model,
        case.loss,
        list(case.params.values()),
        case.batches,
        progressbar=False,
        check_deterministic=True,
        num_data=8,
        batch_size_fn=len,
    )
    cases.assert_matches(operator @ case.vectors(2), case.truth.ggn() @ case.vectors(2))


EMPTY_OR_MALFORMED: dict[str, tuple[Any, str]] = {
    "nothing": ([], "empty|no batch"),
    "no rows": ([(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))], "empty|no dat|0"),
    "not pairs": ([torch.zeros(4, 3)], "batch 0"),
    "triples": ([(torch.zeros(2, 3),) * 3], "batch 0"),
    "strings": ([("a", "b")], "batch"),
    "not iterable": (3, "int"),
    "lengths differ": ([(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))], "batch 0|2.*3"),
}


@pytest.mark.parametrize("name", EMPTY_OR_MALFORMED)
def test_empty_and_malformed_data(name: str) -> None:
    data, message = EMPTY_OR_MALFORMED[name]
    model = _model().float()
    with pytest.raises(DataError, match=rf"(?i){message}"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data).loss()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["X", "y"])
def test_data_that_are_not_finite(place: str, bad: float) -> None:
    with cases.seeded(0):
        model = cases.mlp(3, 4, 2).double()
    X, y = cases.randn(8, 3, seed=1), cases.randn(8, 2, seed=2)
    (X if place == "X" else y)[4, 1] = bad
    batches = cases.cut(X, y)
    with pytest.raises(NonFiniteError, match="batch 1") as caught:
        EmpiricalRisk(model, nn.MSELoss(), model, batches)
    assert place in str(caught.value)
    with pytest.raises(NonFiniteError):
        EmpiricalRisk(model, nn.MSELoss(), model, batches, cache_data=0)


def test_data_that_are_not_finite_are_taken_as_they_are_on_request() -> None:
    model, batches = _model(), [(X, X.clone()) for X, _ in _batches()]
    batches[1][1][0, 0] = torch.nan
    risk = EmpiricalRisk(
        model, nn.MSELoss(), model, batches, check_finite=False, check_deterministic=False
    )
    assert torch.isnan(risk.loss())


def test_nan_deep_in_a_nested_batch_is_named() -> None:
    class FromDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp()

        def forward(self, batch: dict[str, Any]) -> Tensor:
            return self.net(batch["image"] + batch["extra"][0])

    model = FromDict().double()
    extra = cases.randn(8, 3, seed=2)
    extra[7, 0] = torch.nan
    X = {"image": cases.randn(8, 3, seed=1), "extra": (extra,)}
    batches = cases.cut(X, cases.randint(3, 8, seed=3))
    with pytest.raises(NonFiniteError, match="batch 2") as caught:
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches)
    assert "extra" in str(caught.value)


def test_all_targets_masked() -> None:
    """Nothing to average over: an error, not a NaN. A sum over nothing is zero."""
    model = _model()
    batches = [(X, torch.full_like(y, -100)) for X, y in _batches()]
    with pytest.raises(DataError, match="valid"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches)
    total = EmpiricalRisk(model, nn.CrossEntropyLoss(reduction="sum"), model, batches)
    assert total.loss() == 0
    assert torch.equal(total.gradient(), torch.zeros_like(total.theta))


# Models that answer differently, or couple their data --------------------------------------


class Named(nn.Module):
    """``wobble`` sits where an error message has to find it."""

    def __init__(self, wobble: nn.Module) -> None:
        super().__init__()
        self.before, self.wobble, self.after = nn.Linear(3, 4), wobble, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.wobble(torch.tanh(self.before(x))))


WOBBLY = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha-dropout": lambda: nn.AlphaDropout(0.3),
    "batch-norm": lambda: nn.BatchNorm1d(4),
    "batch-norm-without-statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
}


@pytest.mark.parametrize("kind", WOBBLY)
def test_modules_in_train_mode_are_refused_by_name(kind: str, global_rng_untouched: None) -> None:
    with cases.seeded(0):
        model = Named(WOBBLY[kind]()).double().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DeterminismError, match=r"wobble") as caught:
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, _batches())
    assert ".eval()" in str(caught.value)
    assert model.training
    assert model.wobble.training
    _assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("kind", ["dropout", "alpha-dropout", "batch-norm"])
def test_the_same_modules_in_eval_mode_are_fine(kind: str) -> None:
    with cases.seeded(0):
        model = Named(WOBBLY[kind]()).double().eval()
    before = copy.deepcopy(model.state_dict())
    X = torch.cat([X for X, _ in _batches()])
    y = torch.cat([y for _, y in _batches()])
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, _batches(), **cases.UNMERGED)
    cases.assert_matches(risk.loss(), F.cross_entropy(model(X), y).detach())
    _assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("kind", ["dropout", "batch-norm"])
def test_unchecked_modules_in_train_mode_do_not_change_either(
    kind: str, global_rng_untouched: None
) -> None:
    """Whoever turns the check off gets a doubtful number, not a changed model."""
    with cases.seeded(0):
        model = Named(WOBBLY[kind]()).double().train()
    before = copy.deepcopy(model.state_dict())
    risk = EmpiricalRisk(
        model, nn.CrossEntropyLoss(), model, _batches(5), check_deterministic=False
    )
    risk.loss()
    risk.gradient()
    HessianLinearOperator.from_risk(risk) @ risk.theta
    list(risk.per_sample_losses())
    _assert_same_state(model.state_dict(), before)


def test_only_the_guilty_module_needs_eval() -> None:
    """A model in train mode whose dropout is in eval mode is deterministic."""
    model = Named(nn.Dropout(0.5)).double().train()
    model.wobble.eval()
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), model, _batches())
    assert torch.isfinite(operator @ cases.randn(operator.shape[1], seed=1)).all()
    assert model.training
    assert not model.wobble.training


def test_randomness_without_a_module_to_blame() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(F.dropout(x, 0.5, training=True))

    model = Functional().double()
    with pytest.raises(DeterminismError, match=r"(?i)random|determin|differ"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, _batches())


def test_randomness_from_numpy() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.noise = cases.mlp(), np.random.default_rng(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.noise.random()

    model = Noisy().double()
    with pytest.raises(DeterminismError, match=r"(?i)random|determin|differ"):
        EmpiricalRisk(model, nn.MSELoss(), model, [(X, X) for X, _ in _batches()])


def test_a_counting_model_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = cases.mlp(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.net(x) * (1 + 1e-6 * self.calls)

    model = Counting().double()
    with pytest.raises(DeterminismError, match=r"(?i)determin|differ"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, _batches())


def test_the_check_can_be_left_out_and_costs_two_passes_at_most() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.rows = cases.mlp(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.rows += len(x)
            return self.net(x)

    counts = {}
    for check in (True, False):
        model = Counting().double()
        EmpiricalRisk(
            model,
            nn.CrossEntropyLoss(),
            model,
            _batches(),
            check_deterministic=check,
            **cases.UNMERGED,
        )
        counts[check] = model.rows
    assert 0 < counts[True] - counts[False] <= 16


def test_batches_that_are_views_of_one_tensor_are_merged() -> None:
    """What the tensor holds beside a batch is not what the batch needs."""
    X, y = torch.zeros(4096, 1024).double(), torch.zeros(4096, 1).double()
    data = list(zip(X.split(16), y.split(16), strict=True))
    model = nn.Sequential(nn.Linear(1024, 1)).double()
    assert EmpiricalRisk(model, nn.MSELoss(), model, data).num_batches == 8


@pytest.mark.parametrize("coupled", ["softmax over data", "mean over data"])
def test_models_that_couple_their_data_are_never_merged(coupled: str) -> None:
    """The forward pass depends on who shares the batch: the user's cut has to stay."""

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp()

        def forward(self, x: Tensor) -> Tensor:
            f = self.net(x)
            return f.softmax(0) if coupled == "softmax over data" else f - f.mean(0)

    with cases.seeded(0):
        model, loss = Coupled().double(), nn.CrossEntropyLoss(reduction="sum")
    expected = sum(loss(model(X), y) for X, y in _batches()).detach()
    whole = loss(
        model(torch.cat([X for X, _ in _batches()])), torch.cat([y for _, y in _batches()])
    )
    assert abs(whole - expected) > 1e-3
    try:
        risk = EmpiricalRisk(model, loss, model, _batches(), merge_batches="auto")
    except DeterminismError as refusal:
        assert "couple" in str(refusal) or "batch" in str(refusal)  # noqa: PT017
    else:
        cases.assert_matches(risk.loss(), expected)


# Nothing of the user's is changed ----------------------------------------------------------


class Boom(Exception):
    """Raised by the user's model."""


class Guarded(nn.Module):
    """A model with buffers, hooks, frozen parameters and mixed modes, that fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(1.5))
        self.raises: BaseException | None = None
        self.calls_left = 0
        self.hook_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.raises is not None:
            if self.calls_left == 0:
                raise self.raises
            self.calls_left -= 1
        return self.last(self.drop(self.norm(torch.tanh(self.first(x))))) * self.scale


def _count_call(module: Guarded, args: Any, output: Any) -> None:
    module.hook_calls += 1


def _guarded() -> Guarded:
    with cases.seeded(0):
        model = Guarded().double().train()
    model.norm.eval()
    model.drop.eval()
    model.first.bias.requires_grad_(False)
    model.register_forward_hook(_count_call)
    model.last.register_full_backward_hook(lambda *_: None)
    model.last.weight.grad = torch.ones_like(model.last.weight)
    return model


def _assert_same_state(after: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that must be as before, in a form that compares."""
    cuda = torch.backends.cuda
    kind, keys, *rest = np.random.get_state()
    return {
        "values": {n: t.detach().clone().tolist() for n, t in model.state_dict().items()},
        "identity": [id(t) for t in (*model.parameters(), *model.buffers())],
        "storage": [t.data_ptr() for t in (*model.parameters(), *model.buffers())],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "mode": {n: m.training for n, m in model.named_modules()},
        "hooks": {
            n: [
                list(m._forward_hooks),
                list(m._forward_pre_hooks),
                list(m._backward_hooks),
                list(m._backward_pre_hooks),
            ]
            for n, m in model.named_modules()
        },
        "tensor hooks": [bool(p._backward_hooks) for p in model.parameters()],
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": (kind, keys.tolist(), *rest),
        "python rng": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "attention": (
            torch.backends.mha.get_fastpath_enabled(),
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
    }


def _assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = _snapshot(model)
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"changed: {changed}"


def _everything(model: nn.Module, **options: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each public way through the core, as (name, call)."""
    loss, data = nn.CrossEntropyLoss(), _batches()
    risk = EmpiricalRisk(model, loss, model, data, **options)
    v = cases.randn(risk.space.dim, 2, seed=1)
    yield "building", lambda: EmpiricalRisk(model, loss, model, data, **options)
    yield "loss", risk.loss
    yield "losses", lambda: risk.losses(v)
    yield "gradient", risk.gradient
    yield "gradients", lambda: risk.gradients(v)
    yield "per-sample losses", risk.per_sample_losses
    yield "per-sample gradients", lambda: list(risk.per_sample_gradients())
    yield "predictions", lambda: list(risk.predictions())
    yield "at", lambda: risk.at(v[:, 0]).gradient()
    for kind in (
        HessianLinearOperator,
        GGNLinearOperator,
        EFLinearOperator,
        FisherMCLinearOperator,
    ):
        operator = kind.from_risk(risk)
        yield kind.__name__, lambda operator=operator: operator @ v
    jacobian = JacobianLinearOperator.from_risk(risk)
    u = cases.randn(jacobian.shape[0], seed=2)
    yield "jacobian", lambda: jacobian @ v
    yield "transposed jacobian", lambda: jacobian.T @ u
    yield "exact diagonal", lambda: GGNDiagonalLinearOperator.from_risk(risk).diagonal
    yield "mc diagonal", lambda: GGNDiagonalLinearOperator.from_risk(risk, mode="mc").diagonal


PATHS = [name for name, _ in _everything(_guarded())]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_changes(path: str) -> None:
    model = _guarded()
    call = dict(_everything(model, **cases.UNMERGED))[path]
    before = _snapshot(model)
    call()
    _assert_unchanged(model, before)


@pytest.mark.parametrize("failure", [Boom(), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_changes_when_the_model_fails(path: str, failure: BaseException) -> None:
    """In the first call of the model within the path, and in the second where there is one."""
    model = _guarded()
    call = dict(_everything(model, **cases.UNMERGED))[path]
    before = _snapshot(model)
    for calls_left in (0, 1):
        model.raises, model.calls_left = failure, calls_left
        with pytest.raises(type(failure)):
            call()
        model.raises, model.calls_left = None, 0
        _assert_unchanged(model, before)
    call()  # and it goes on as if nothing had happened
    _assert_unchanged(model, before)


@pytest.mark.parametrize("failure", [Boom(), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
def test_nothing_changes_when_the_data_fail(failure: BaseException) -> None:
    class Source:
        healthy = True

        def __iter__(self) -> Iterator[Any]:
            for i, (X, y) in enumerate(_batches()):
                if i == 1 and not Source.healthy:
                    raise failure
                yield X.clone(), y.clone()

    model = _guarded()
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), model, Source(), cache_data=0, **cases.UNMERGED
    )
    v = cases.randn(operator.shape[1], seed=1)
    expected = operator @ v
    before = _snapshot(model)
    Source.healthy = False
    with pytest.raises(type(failure)):
        operator @ v
    _assert_unchanged(model, before)
    Source.healthy = True
    assert torch.equal(operator @ v, expected)
    _assert_unchanged(model, before)


def test_a_failed_product_does_not_spoil_the_next() -> None:
    model = _guarded()
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), model, _batches(), **cases.UNMERGED
    )
    v = cases.randn(operator.shape[1], seed=1)
    expected = operator @ v
    model.raises, model.calls_left = KeyboardInterrupt(), 2
    with pytest.raises(KeyboardInterrupt):
        operator @ v
    model.raises = None
    assert torch.equal(operator @ v, expected)


def test_an_abandoned_stream_leaves_nothing_behind() -> None:
    model = _guarded()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, _batches(), **cases.UNMERGED)
    before = _snapshot(model)
    for stream in (risk.per_sample_gradients(), risk.predictions()):
        next(stream)
        _assert_unchanged(model, before)  # while it is suspended
        stream.close()
        _assert_unchanged(model, before)


def test_the_users_hooks_run() -> None:
    model = _guarded()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, _batches(), **cases.UNMERGED)
    calls = model.hook_calls
    risk.gradient()
    assert model.hook_calls > calls


def test_modules_that_draw_random_numbers_in_eval_mode_leave_the_generator_alone(
    global_rng_untouched: None,
) -> None:
    """A forward pass that reseeds itself is deterministic, and none of our business."""

    class Reseeding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp()

        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(0)
            return self.net(x + torch.randn(3, dtype=x.dtype))

    with cases.seeded(0):
        model = Reseeding().double()
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), model, _batches(), **cases.UNMERGED
    )
    product = operator @ cases.randn(operator.shape[1], seed=1)
    assert bool(product.isfinite().all())


def test_shuffling_loaders_do_not_move_the_global_generator(global_rng_untouched: None) -> None:
    """A loader draws its order (or its base seed) from torch's global generator."""
    model = _model()
    for shuffle, cache in ((True, "1GiB"), (False, 0)):
        loader = DataLoader(TensorDataset(*_batches(20)[0]), batch_size=4, shuffle=shuffle)
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, loader, cache_data=cache)
        assert bool(risk.loss().isfinite())
        assert bool(risk.gradient().isfinite().all())


# Vectors -----------------------------------------------------------------------------------

KINDS = [HessianLinearOperator, GGNLinearOperator, EFLinearOperator, FisherMCLinearOperator]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_vectors_are_refused_before_the_data_are_read(kind: Any) -> None:
    case = cases.make("ce")

    class Source:
        passes = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            Source.passes += 1
            return iter(case.batches)

    operator = kind(case.model, case.loss, case.params, Source(), cache_data=0)
    P = operator.shape[1]
    x = torch.zeros(P, dtype=torch.float64)
    blocks = [torch.zeros_like(p) for p in case.params.values()]
    named = dict(zip(case.params, blocks, strict=True))
    bad: list[tuple[Any, type[Exception], str]] = [
        (torch.zeros(P + 1, dtype=torch.float64), ShapeError, str(P)),
        (torch.zeros(P, 2, 2, dtype=torch.float64), ShapeError, str(P)),
        (torch.zeros((), dtype=torch.float64), ShapeError, str(P)),
        (x.long(), DTypeError, "int64"),
        (x.bool(), DTypeError, "bool"),
        (x * 1j, DTypeError, "complex"),
        (x + torch.nan, NonFiniteError, str(P)),
        (x + torch.inf, NonFiniteError, str(P)),
        (x.to("meta"), DeviceError, "meta"),
        (blocks[:-1], ShapeError, "4"),
        ([blocks[0].T, *blocks[1:]], ShapeError, r"0\.weight"),
        ([blocks[0].long(), *blocks[1:]], DTypeError, r"0\.weight"),
        ({**named, "extra": x}, InputError, "extra"),
        ({n: b for n, b in named.items() if n != "2.bias"}, InputError, r"2\.bias"),
        ("vector", InputError, "str"),
        (3.0, InputError, "float"),
        ([1.0, 2.0], InputError, "float"),
    ]
    passes = Source.passes
    for vector, error, message in bad:
        with pytest.raises(error, match=message) as caught:
            operator @ vector
        assert isinstance(caught.value, CurvopsError)
    assert Source.passes == passes


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_another_real_dtype_are_cast(kind: Any) -> None:
    case = cases.make("ce", "mean", torch.float32)
    operator = kind(*case.args)
    x = cases.randn(case.dim, seed=3)
    assert (operator @ x).dtype == torch.float32
    assert torch.equal(operator @ x, operator @ x.float())
    half = x.to(torch.bfloat16)
    assert torch.equal(operator @ half, operator @ half.float())


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_not_written_to_and_answers_have_no_history(kind: Any) -> None:
    case = cases.make("ce")
    operator = kind(*case.args)
    x = cases.randn(case.dim, seed=3).requires_grad_()
    before = x.detach().clone()
    y = operator @ x
    assert not y.requires_grad
    assert x.grad is None
    assert torch.equal(x, before)
    y.zero_()
    assert torch.equal(x, before)
    assert (operator @ x).abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_became_nan_do_not_give_a_silent_answer(kind: Any) -> None:
    """Updated in place to NaN after the operator was built: NaN or an error, never a number."""
    case = cases.make("ce")
    operator = kind(*case.args)
    case.params["2.bias"].fill_(torch.nan)
    try:
        product = operator @ case.vectors(1)
    except NonFiniteError as error:
        assert "2.bias" in str(error)  # noqa: PT017
    else:
        assert torch.isnan(product).any()
