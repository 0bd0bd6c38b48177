"""Sums of rank-one terms from layer inputs and output gradients, or ``None`` where they are not."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from curvops import EFLinearOperator, FisherMCLinearOperator
from curvops.autodiff import Linearization
from curvops.autodiff import forms as forms_module
from curvops.autodiff.rank_one import RankOneMap, rank_one_map
from curvops.errors import DifferentiationError
from curvops.operators.curvature import CurvatureLinearOperator
from tests import cases
from tests.autodiff import problems
from tests.autodiff.problems import CLASSES, Problem, vectors
from tests.operators.test_models import (
    CalledTwice,
    Checkpointed,
    MultiHead,
    OneStep,
    PartlyFrozen,
    TiedLayers,
    Transformer,
    WithUnused,
)

RTOL = 1e-10
K = 3


def maps_of(operator: CurvatureLinearOperator, verify: bool = True) -> list[RankOneMap | None]:
    """The map of every batch, at the operator's own point."""
    risk, product = operator.risk, operator._product()
    params = {name: p.detach().requires_grad_() for name, p in risk.params.items()}
    stream, maps = product.extras(), []
    assert product.scores is not None
    with risk._model.at(params) as predict:
        for batch in risk._data:
            lin = Linearization(predict, risk.loss_func, list(params.values()), batch)
            extras = stream(lin)
            scores = partial(_scores, product.scores, extras)
            maps.append(rank_one_map(risk._model, lin, scores, verify=verify))
    return maps


def _scores(scores: Any, extras: Any, lin: Linearization) -> Any:
    return scores(lin, extras)


def product_of(operator: CurvatureLinearOperator, V: Tensor, rtol: float = RTOL) -> Tensor:
    """A V by the maps of all batches, as a block and column by column."""
    risk = operator.risk
    shapes = [p.shape for p in risk.params.values()]
    pieces = V.T.split([s.numel() for s in shapes], dim=1)
    blocks = [t.reshape(-1, *s) for t, s in zip(pieces, shapes, strict=True)]
    total, single = torch.zeros_like(V), torch.zeros_like(V)
    for batch_map in maps_of(operator):
        assert batch_map is not None
        total += _flat(batch_map.many(blocks)).T
        for k in range(V.shape[1]):
            single[:, k] += _flat([t[None] for t in batch_map.one([b[k] for b in blocks])])[0]
    problems.assert_same(single, total, "one and many", rtol)
    return total / risk.normalizer


def _flat(blocks: list[Tensor]) -> Tensor:
    assert not any(t.requires_grad for t in blocks)
    return torch.cat([t.flatten(1) for t in blocks], dim=1)


def assert_right(operator: CurvatureLinearOperator) -> None:
    """Compare with the kept graph of the same operator."""
    V = vectors(operator, K)
    kept = type(operator).from_risk(operator.risk, keep="graph", **_options(operator))
    problems.assert_same(product_of(operator, V), kept @ V, rtol=RTOL)


def _options(operator: Any) -> dict[str, Any]:
    options = {"per": operator._per}
    if isinstance(operator, FisherMCLinearOperator):
        options |= {"mc_samples": operator._mc_samples, "seed": operator._seed}
    return options


def dense(p: Problem) -> Tensor:
    """Σ_n g_n g_nᵀ / Z under mean cross entropy, one datum's backward pass after the other."""
    rows, Z = [], 0
    for X, y in p.batches:
        Z += y.numel()
        for n in range(len(y)):
            params = {name: t.clone().requires_grad_() for name, t in p.params.items()}
            f = functional_call(p.model, params, (X[n : n + 1],))
            loss = F.cross_entropy(f, y[n : n + 1], reduction="sum")
            grads = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    G = torch.stack(rows)
    return G.T @ G / Z


# Models ------------------------------------------------------------------------------------


def conv(*layers: nn.Module, channels: int) -> nn.Module:
    """Convolutions, then a mean over positions and a linear readout."""
    return nn.Sequential(*layers, nn.Flatten(2), Mean(), nn.Linear(channels, CLASSES))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def image(**options: Any) -> nn.Module:
    return conv(
        nn.Conv2d(2, 4, (3, 2), **options),
        nn.Tanh(),
        nn.Conv2d(4, 12, 3, groups=2, bias=False),
        channels=12,
    )


class TiedConvolutions(nn.Module):
    """One kernel with two strides, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 3, stride=2, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.tanh(self.a(x))).mean(-1))


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=x)


class PerToken(nn.Module):
    """A weight shared over positions, written to in place; one prediction per datum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 2), nn.Linear(2, CLASSES)
        self.rectify = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rectify(self.inner(x)).mean(1))


SIZES = (3, 1, 2)


def _on(make: Callable[[], nn.Module], *shape: int) -> Callable[[], Problem]:
    return lambda: problems.problem(make, cases.randn(6, *shape, seed=1), SIZES)


SUPPORTED: dict[str, Callable[[], Problem]] = {
    "mlp": problems.mlp,
    "conv": _on(image, 2, 7, 6),
    "stride-dilation": _on(lambda: image(stride=2, padding=(1, 2), dilation=(2, 1)), 2, 9, 8),
    "groups": _on(lambda: image(groups=2, padding="valid"), 2, 7, 6),
    "same": _on(lambda: image(padding="same", dilation=3), 2, 7, 6),
    "circular": _on(lambda: image(padding=2, padding_mode="circular"), 2, 7, 6),
    "reflect-same": _on(lambda: image(padding="same", padding_mode="reflect"), 2, 7, 6),
    "conv1d": _on(lambda: conv(nn.Conv1d(2, 3, 3, stride=2), channels=3), 2, 9),
    "conv3d": _on(lambda: conv(nn.Conv3d(2, 2, 2, padding=1), channels=2), 2, 3, 2, 3),
    "wide-conv": _on(lambda: conv(nn.Conv2d(4, 8, 3, groups=2), nn.Tanh(), channels=8), 4, 3, 4),
    "tied-layers": _on(TiedLayers, 3),
    "tied-convolutions": _on(TiedConvolutions, 2, 8),
    "called-twice": _on(CalledTwice, 3),
    "per-token": _on(PerToken, 4, 3),
    "checkpointed": _on(lambda: Checkpointed(recompute=True), 3),
    "partly-frozen": _on(PartlyFrozen, 3),
    "unused": _on(WithUnused, 3),
    "keyword": _on(Keyword, 3),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", SUPPORTED)
def test_is_the_sum_of_outer_products_of_gradients(name: str) -> None:
    p = SUPPORTED[name]()
    operator = p.build(EFLinearOperator)
    V = vectors(operator, K)
    product = product_of(operator, V)
    assert_right(operator)
    p.model.recompute = False  # checkpoints: the truth differentiates outside functional_call
    problems.assert_same(product, dense(p) @ V, rtol=RTOL)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "conv", "wide-conv", "tied-layers"])
def test_sampled_labels(name: str, samples: int) -> None:
    p = SUPPORTED[name]()
    assert_right(p.build(FisherMCLinearOperator, mc_samples=samples, seed=4))


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("name", cases.NAMES)
def test_every_loss(name: str, reduction: str) -> None:
    case = cases.make(name, reduction)
    options: dict[str, Any] = dict(cases.UNMERGED, per="datum")
    assert_right(EFLinearOperator(*case.args, **options))
    if name != "huber":
        assert_right(FisherMCLinearOperator(*case.args, mc_samples=2, **options))


def test_predictions_without_a_channel_axis() -> None:
    with cases.seeded(0):
        model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    batches = cases.cut(cases.randn(6, 3, seed=1), cases.randn(6, seed=2), SIZES)
    p = Problem(model, nn.MSELoss(), cases.perturbed(model), batches)
    assert_right(p.build(EFLinearOperator))


@pytest.mark.parametrize("chosen", [["0.bias"], ["2.weight"], ["2.bias", "0.weight"], ["0.*"]])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_part_of_the_parameters_in_another_order(name: str, chosen: list[str]) -> None:
    p = SUPPORTED[name]()
    if name == "conv":
        chosen = [c for c in chosen if c != "2.bias"]
    assert_right(Problem(p.model, p.loss, chosen, p.batches).build(EFLinearOperator))


def test_other_layers_may_be_there_as_long_as_they_are_fixed() -> None:
    p = _on(lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, CLASSES)), 3)()
    assert_right(Problem(p.model, p.loss, ["0.*", "2.*"], p.batches).build(EFLinearOperator))


def test_single_precision_passes_the_check() -> None:
    with cases.seeded(0):
        model = nn.Sequential(image(padding=1)).float()
    X, y = cases.randn(300, 2, 20, 16, seed=1).float(), cases.randint(CLASSES, 300, seed=2)
    operator = EFLinearOperator(model, nn.CrossEntropyLoss(), model, [(X, y)], **cases.UNMERGED)
    V = vectors(operator, K).float()
    problems.assert_same(product_of(operator, V, 1e-5), operator @ V, rtol=1e-5)


# Where it does not hold ------------------------------------------------------------------------


class Functional(nn.Module):
    """A linear layer whose weight is (also) used as a function."""

    def __init__(self, also: bool) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, CLASSES)
        self.also = also

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x) if self.also else x
        return self.head(torch.tanh(F.linear(h, self.inner.weight, self.inner.bias)))


class Penalised(nn.Module):
    """The weight scales the prediction beside being applied."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * (1 + 1e-3 * self.head.weight.square().sum())


class FlattenedSequences(nn.Module):
    """Positions and data on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.head(torch.tanh(h).mean(1))


class PositionsFirst(FlattenedSequences):
    """The data on the second axis of the layer's input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class Scaled(nn.Linear):
    """A subclass that is another map."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _patched() -> nn.Module:
    layer: Any = nn.Linear(3, CLASSES)
    layer.forward = lambda x: F.linear(x, 2 * layer.weight, layer.bias)
    return layer


def _then(*layers: nn.Module, width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), *layers, nn.Linear(width, CLASSES))


UNSUPPORTED: dict[str, Callable[[], Problem]] = {
    "layer-norm": _on(lambda: _then(nn.LayerNorm(4)), 3),
    "batch-norm": _on(lambda: _then(nn.BatchNorm1d(4)), 3),
    "prelu": _on(lambda: _then(nn.PReLU()), 3),
    "embedding": problems.PROBLEMS["tied-embedding"],
    "functional": _on(lambda: Functional(also=False), 3),
    "also-functional": _on(lambda: Functional(also=True), 3),
    "penalised": _on(Penalised, 3),
    "weight-norm": _on(lambda: _then(parametrizations.weight_norm(nn.Linear(4, 4))), 3),
    "lstm": _on(lambda: OneStep(nn.LSTM), 4, 2),
    "multi-head": _on(lambda: MultiHead(need_weights=False), 3, 4),
    "transformer": _on(lambda: Transformer(norm_first=True), 3, 4),
    "transposed-convolution": _on(lambda: conv(nn.ConvTranspose1d(2, 3, 2), channels=3), 2, 5),
    "flattened": _on(FlattenedSequences, 4, 3),
    "positions-first": _on(PositionsFirst, 4, 3),
    "subclass": _on(lambda: nn.Sequential(nn.Linear(3, 4), Scaled(4, CLASSES)), 3),
    "patched": _on(_patched, 3),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_is_none_where_it_does_not_hold(name: str) -> None:
    p = UNSUPPORTED[name]()
    assert maps_of(p.build(EFLinearOperator, per="datum"))[0] is None


def test_is_none_for_as_many_positions_as_data() -> None:
    """Every shape fits, only the values tell that the data are not on the first axis."""
    p = problems.problem(PositionsFirst, cases.randn(4, 4, 3, seed=1), (4,))
    assert maps_of(p.build(EFLinearOperator)) == [None]


def test_is_none_where_data_influence_one_another() -> None:
    p = _on(lambda: _then(nn.BatchNorm1d(4, affine=False)), 3)()
    p.model.train()
    batches = [(X, y) for X, y in p.batches if len(y) > 1]
    operator = Problem(p.model, p.loss, p.params, batches).build(
        EFLinearOperator, check_deterministic=False
    )
    assert maps_of(operator) == [None, None]


def test_the_check_does_not_depend_on_the_scores() -> None:
    """A batch without valid targets, whose scores are all zero, says nothing about the model."""
    p = _on(lambda: Functional(also=True), 3)()
    batches = [(X, torch.full_like(y, -100) if i == 0 else y) for i, (X, y) in enumerate(p.batches)]
    operator = Problem(p.model, p.loss, p.params, batches).build(EFLinearOperator)
    assert maps_of(operator)[0] is None


def test_is_none_for_several_terms_per_datum() -> None:
    case = cases.make("ce-sequence")
    operator = EFLinearOperator(*case.args, **cases.UNMERGED)
    assert maps_of(operator) == [None] * 3
    sampled = FisherMCLinearOperator(*case.args, **cases.UNMERGED)
    assert maps_of(sampled) == [None] * 3


def test_is_none_for_a_callable() -> None:
    p = problems.mlp()
    operator = EFLinearOperator(
        lambda params, X: functional_call(p.model, params, (X,)), p.loss, p.params, p.batches
    )
    assert maps_of(operator) == [None]


def test_is_none_in_mixed_precision() -> None:
    p = problems.mlp()
    params = {name: t.float() for name, t in p.params.items()}
    batches = [(X.float(), y) for X, y in p.batches]
    operator = Problem(p.model.float(), p.loss, params, batches).build(
        EFLinearOperator, autocast=torch.bfloat16
    )
    assert maps_of(operator)[0] is None


def test_is_none_in_half_precision() -> None:
    """There rounding is as large as what a check would have to see."""
    p = _on(lambda: Functional(also=True), 3)()
    params = {name: t.bfloat16() for name, t in p.params.items()}
    batches = [(X.bfloat16(), y) for X, y in p.batches]
    operator = Problem(p.model.bfloat16(), p.loss, params, batches).build(EFLinearOperator)
    assert maps_of(operator)[0] is None


class Discarding(WithUnused):
    """A layer whose output goes nowhere."""

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x[:, :2])
        return super().forward(x)


@pytest.mark.parametrize("model", [WithUnused, Discarding])
def test_a_batch_that_no_parameter_influences(model: type[nn.Module]) -> None:
    p = _on(model, 3)()
    operator = Problem(p.model, p.loss, ["unused.*"], p.batches).build(EFLinearOperator)
    (first, *_) = maps_of(operator)
    assert first is not None
    assert first.is_constant
    assert all(not t.any() for t in first.one([torch.ones(2, 2), torch.ones(2)]))
    assert_right(p.build(EFLinearOperator))
    (other, *_) = maps_of(problems.mlp().build(EFLinearOperator))
    assert other is not None
    assert not other.is_constant


# Where the first batch at the first point says nothing ------------------------------------------


class TiedAutoencoder(nn.Module):
    """A weight that is used again, as a function, below a head that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(3, 4), nn.Linear(3, CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.encoder(x))
        return self.head(torch.tanh(F.linear(h, self.encoder.weight.t())))


class Centred(nn.Module):
    """Data are compared with those of their batch, if they should be."""

    def __init__(self, applies: Callable[[Tensor], bool] = lambda _: True) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.applies = applies

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.head(h - h.mean(0) if self.applies(x) else h)


def _zero_head() -> nn.Module:
    model: Any = Centred()
    nn.init.zeros_(model.head.weight)
    return model


class Branching(nn.Module):
    """The weight is used as a function for some data, or at some parameters."""

    def __init__(self, odd: Callable[[Tensor, Tensor], bool]) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, CLASSES)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        if self.odd(x, self.inner.bias):
            h = torch.tanh(F.linear(h, self.inner.weight))
        return self.head(h)


def at_start(make: Callable[[], nn.Module], sizes: tuple[int, ...]) -> Problem:
    """A problem at the module's own parameters."""
    p = problems.problem(make, cases.randn(sum(sizes), 3, seed=1), sizes)
    return replace(p, params=p.model)


def train(p: Problem, epochs: int = 5) -> None:
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.5)
    for _ in range(epochs):
        for X, y in p.batches:
            optimizer.zero_grad()
            p.loss(p.model(X), y).backward()
            optimizer.step()


LATE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tied-autoencoder": (TiedAutoencoder, (4, 3)),
    "mixing-below-zero-head": (_zero_head, (4, 3)),
    "one-datum-first": (Centred, (1, 4, 3)),
    "mixing-of-one-shape": (lambda: Centred(lambda x: len(x) == 3), (4, 3)),
    "function-for-some-lengths": (lambda: Branching(lambda x, _: len(x) == 3), (4, 3)),
    "function-at-some-values": (lambda: Branching(lambda x, _: bool(x.sum() < 0)), (4, 4)),
}


def late(name: str) -> Problem:
    """A problem whose data are positive in the first batch, and negative in the second."""
    p = at_start(*LATE[name])
    return replace(p, batches=[(X.abs() * (-1) ** i, y) for i, (X, y) in enumerate(p.batches)])


@pytest.mark.parametrize("kind", [EFLinearOperator, FisherMCLinearOperator])
@pytest.mark.parametrize("name", LATE)
def test_auto_never_takes_what_fails_later(
    name: str, kind: type[CurvatureLinearOperator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        forms_module,
        "interleaved_medians",
        lambda tasks, rounds=5: {k: float(k != "layers") for k in tasks},
    )
    p = late(name)
    operator = p.build(kind, compile=False).prepare(100)
    V = vectors(operator, K)
    for _ in range(2):
        truth = p.build(kind, keep="nothing")
        problems.assert_same(operator @ V, truth @ V, rtol=RTOL)
        problems.assert_same(operator.to_dense(), truth.to_dense(), rtol=RTOL)
        train(p)


@pytest.mark.parametrize("name", LATE)
def test_layers_are_refused_where_they_fail_later(name: str) -> None:
    p = late(name)
    operator = p.build(EFLinearOperator, keep="layers")
    for _ in range(2):
        with pytest.raises(DifferentiationError, match="one term per datum"):
            operator @ vectors(operator)


def test_layers_are_refused_at_the_point_where_they_fail() -> None:
    """No batch of the first point, nor one near it, could have told."""
    odd = [False]
    p = at_start(lambda: Branching(lambda *_: odd[0]), (4, 3))
    fixed, auto = p.build(EFLinearOperator, keep="layers"), p.build(EFLinearOperator)
    v = vectors(fixed)
    problems.assert_same(fixed @ v, p.build(EFLinearOperator, keep="nothing") @ v, rtol=RTOL)
    problems.assert_same(auto.prepare(10) @ v, fixed @ v, rtol=RTOL)
    odd[0] = True
    train(p, 1)
    truth = p.build(EFLinearOperator, keep="nothing") @ v
    problems.assert_same(auto @ v, truth, rtol=RTOL)
    with pytest.raises(DifferentiationError, match="one term per datum"):
        fixed @ v


def test_single_data_are_multiplied_without_others() -> None:
    p = problems.mlp((1, 4, 3))
    fixed = p.build(EFLinearOperator, keep="layers")
    problems.assert_same(fixed.to_dense(), dense(p), rtol=RTOL)
    assert fixed.kept == "layers"


class OnlyHere(nn.Module):
    """A model that is not made for other parameters than its own."""

    def __init__(self, fails: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        nn.init.constant_(self.inner.bias, 0.25)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        f = self.head(torch.tanh(self.inner(x)))
        return f if bool((self.inner.bias == 0.25).all()) else self.fails(f)


def _refuse(_: Tensor) -> Tensor:
    raise ValueError("other parameters")


@pytest.mark.parametrize("fails", [_refuse, lambda f: f / 0, lambda f: f.detach()])
@pytest.mark.usefixtures("global_rng_untouched")
def test_the_check_stays_where_the_model_is_defined(fails: Any) -> None:
    p = at_start(lambda: OnlyHere(fails), (4, 3))
    fixed = p.build(EFLinearOperator, keep="layers")
    params = {name: t.detach() for name, t in p.model.named_parameters()}
    problems.assert_same(fixed.to_dense(), dense(replace(p, params=params)), rtol=RTOL)
    assert fixed.kept == "layers"


@pytest.mark.parametrize("fails", [_refuse, lambda f: f / 0, lambda f: f.detach()])
def test_data_are_compared_at_the_parameters_where_others_fail(fails: Any) -> None:
    def fails_or_mixes() -> nn.Module:
        return nn.Sequential(Centred(lambda x: len(x) == 3), OnlyHere(fails))

    p = at_start(fails_or_mixes, (1, 4, 3))
    operator = p.build(EFLinearOperator, keep="layers")
    with pytest.raises(DifferentiationError, match="one term per datum"):
        operator @ vectors(operator)


def test_an_exhausted_memory_is_not_taken_for_a_verdict() -> None:
    def exhaust(_: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    operator = at_start(lambda: OnlyHere(exhaust), (4, 3)).build(EFLinearOperator)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        maps_of(operator)


@pytest.mark.parametrize("name", ["tied-autoencoder", "mixing-below-zero-head"])
def test_single_precision_does_not_hide_it(name: str) -> None:
    p = late(name)
    batches = [(X.float(), y) for X, y in p.batches]
    single = replace(p, model=p.model.float(), params=p.model, batches=batches)
    assert maps_of(single.build(EFLinearOperator))[0] is None


def test_only_the_first_batch_of_a_shape_costs_more() -> None:
    p = problems.mlp((4, 4, 4, 3))
    operator = p.build(EFLinearOperator, keep="layers")
    v, calls = vectors(operator), []
    p.model.register_forward_hook(lambda *_: calls.append(None))
    plain = p.build(EFLinearOperator, keep="graph")
    plain @ v
    base = len(calls)
    calls.clear()
    operator @ v
    assert len(calls) <= base + len(p.batches) + 2


# What it leaves behind --------------------------------------------------------------------------


def _hooks(model: nn.Module) -> list[Any]:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    return [list(getattr(m, table).items()) for m in model.modules() for table in tables]


@pytest.mark.usefixtures("global_rng_untouched")
def test_hooks_of_the_user_work_and_stay() -> None:
    p = SUPPORTED["conv"]()
    p.model[0].register_forward_hook(lambda _, a, out: 3 * out)
    p.model[0].register_forward_pre_hook(lambda _, a: (a[0].square(),))
    p.model[2].register_forward_hook(lambda _, a, out: out.mul_(2))
    before = _hooks(p.model)
    state = {name: t.clone() for name, t in p.model.state_dict().items()}
    operator = p.build(EFLinearOperator)
    V = vectors(operator, K)
    problems.assert_same(product_of(operator, V), dense(p) @ V, rtol=RTOL)
    assert _hooks(p.model) == before
    assert all(torch.equal(t, state[name]) for name, t in p.model.state_dict().items())
    assert all(t.requires_grad and t.grad is None for t in p.model.parameters())


class Interrupted(nn.Module):
    """Stops when it is told to."""

    stop = False

    def forward(self, x: Tensor) -> Tensor:
        if self.stop:
            raise KeyboardInterrupt
        return x


def test_hooks_are_removed_after_an_exception() -> None:
    p = _on(lambda: _then(Interrupted()), 3)()
    operator = p.build(EFLinearOperator)
    before = _hooks(p.model)
    p.model[1].stop = True
    with pytest.raises(KeyboardInterrupt):
        maps_of(operator)
    assert _hooks(p.model) == before


def test_holds_no_graph() -> None:
    operator = SUPPORTED["conv"]().build(EFLinearOperator)
    seen: list[weakref.ref[Any]] = []
    product = operator._product()

    def scores(lin: Linearization, extras: Any) -> Any:
        seen.append(weakref.ref(lin.prediction))
        return product.scores(lin, extras)  # type: ignore[misc]

    operator._product = lambda: replace(product, scores=scores)
    maps = maps_of(operator)
    assert len(seen) == len(maps)
    assert all(ref() is None for ref in seen)


def test_holds_the_smaller_form_and_counts_it() -> None:
    p = _on(lambda: conv(nn.Conv2d(1, 2, 3), channels=2), 1, 9, 9)()
    X, y = p.batches[0]
    p = Problem(p.model, p.loss, ["0.weight"], [(X, y)])
    (batch_map,) = maps_of(p.build(EFLinearOperator))
    assert batch_map is not None
    assert batch_map.num_bytes([]) == len(y) * 18 * 8  # rows: 18 weights a datum

    p = problems.mlp((4,))
    X, y = p.batches[0]
    p = Problem(p.model, p.loss, ["0.weight"], [(X, y)])
    (batch_map,) = maps_of(operator := p.build(EFLinearOperator))
    assert batch_map is not None
    assert batch_map.num_bytes([]) == 4 * (3 + 4) * 8  # factors: inputs and output gradients
    held = next(iter(operator.risk._data)).X
    assert batch_map.num_bytes([held]) == 4 * 4 * 8
