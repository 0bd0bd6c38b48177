"""Every loss: many ragged batches equal one big batch, to 1e-10 in float64.

The truth is torch's own loss on the concatenated data. ``merge_batches=False`` keeps the cut,
so that each batch is weighted by what its loss averages over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops import EmpiricalRisk, GGNLinearOperator, HessianLinearOperator
from curvops.errors import DifferentiationError, InputError
from tests import cases, truth

WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
T = 4


class Net(nn.Module):
    """A small tanh network whose output is what the loss expects."""

    def __init__(self, kind: str, out_dim: int = 3) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3)
        self.outer = nn.Linear(3, out_dim)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        f = self.outer(torch.tanh(self.inner(x)))
        match self.kind:
            case "logits":
                return f
            case "positions":  # [N, T, C] -> [N, C, T]
                return f.transpose(1, 2)
            case "log-probabilities":
                return f.log_softmax(-1)
            case "log-probabilities-positions":
                return f.log_softmax(-1).transpose(1, 2)
            case "probabilities":
                return f.sigmoid()
            case "positive":
                return f.exp()
        raise AssertionError(self.kind)


@dataclass(frozen=True)
class Spec:
    """A loss and the data it wants."""

    name: str
    loss: Callable[..., Any]  # reduction -> loss
    y: Any
    kind: str = "logits"
    out_dim: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    y_is_tuple: bool = False
    vector: bool = False  # data with positions [N, T, ...] or not

    def __str__(self) -> str:
        return self.name


def _indices(*shape: int, masked: int | None = None) -> Tensor:
    """Class indices; if masked, some are the ignored one, in datum 4 (a batch) all are."""
    y = cases.randint(3, *shape, seed=2)
    if masked is not None:
        y[0], y[4], y[6] = masked, masked, masked
        if y.ndim > 1:
            y[0, 1:] = cases.randint(3, T - 1, seed=3)
    return y


def _probabilities(*shape: int) -> Tensor:
    return cases.randn(*shape, seed=2).softmax(1)


def _cross_entropies() -> list[Spec]:
    specs = []
    switches = itertools.product([False, True], [None, -100, 1], [0.0, 0.2], [False, True])
    for weighted, ignored, smoothing, positions in switches:
        keywords: dict[str, Any] = {"label_smoothing": smoothing}
        if weighted:
            keywords["weight"] = WEIGHT
        if ignored is not None:
            keywords["ignore_index"] = ignored
        shape = (8, T) if positions else (8,)
        specs.append(
            Spec(
                f"ce-weight={weighted}-ignore={ignored}-smooth={smoothing}-T={positions}",
                partial(nn.CrossEntropyLoss, **keywords),
                _indices(*shape, masked=ignored),
                "positions" if positions else "logits",
                vector=positions,
            )
        )
    for weighted, smoothing, positions in itertools.product([False, True], [0.0, 0.2], [0, 1]):
        shape = (8, 3, T) if positions else (8, 3)
        specs.append(
            Spec(
                f"ce-probabilities-weight={weighted}-smooth={smoothing}-T={bool(positions)}",
                partial(
                    nn.CrossEntropyLoss,
                    weight=WEIGHT if weighted else None,
                    label_smoothing=smoothing,
                ),
                _probabilities(*shape),
                "positions" if positions else "logits",
                vector=bool(positions),
            )
        )
    return specs


def _negative_log_likelihoods() -> list[Spec]:
    return [
        Spec(
            f"nll-weight={weighted}-ignore={ignored}-T={positions}",
            partial(
                nn.NLLLoss,
                weight=WEIGHT if weighted else None,
                ignore_index=-100 if ignored is None else ignored,
            ),
            _indices(*((8, T) if positions else (8,)), masked=ignored),
            "log-probabilities-positions" if positions else "log-probabilities",
            vector=positions,
        )
        for weighted, ignored, positions in itertools.product(
            [False, True], [None, 1], [False, True]
        )
    ]


REAL = cases.randn(8, 3, seed=2)
REAL_POSITIONS = cases.randn(8, T, 3, seed=2)
BINARY = cases.randint(2, 8, 3, seed=2).double()
SOFT = cases.rand(8, 3, seed=2)
COUNTS = cases.randint(5, 8, 3, seed=2).double()
CE_INDICES = _indices(8)

ELEMENTWISE = [
    Spec("mse", nn.MSELoss, REAL),
    Spec("mse-positions", nn.MSELoss, REAL_POSITIONS, vector=True),
    Spec("bce-logits", nn.BCEWithLogitsLoss, BINARY),
    Spec("bce-logits-soft", nn.BCEWithLogitsLoss, SOFT),
    Spec("bce-logits-pos-weight", partial(nn.BCEWithLogitsLoss, pos_weight=WEIGHT), BINARY),
    Spec("bce-logits-weight", partial(nn.BCEWithLogitsLoss, weight=WEIGHT), BINARY),
    Spec(
        "bce-logits-weight-pos-weight",
        partial(nn.BCEWithLogitsLoss, weight=WEIGHT, pos_weight=WEIGHT.flip(0)),
        SOFT,
    ),
    Spec("bce", nn.BCELoss, BINARY, "probabilities"),
    Spec("bce-weight", partial(nn.BCELoss, weight=WEIGHT), SOFT, "probabilities"),
    Spec("l1", nn.L1Loss, REAL),
    Spec("smooth-l1", partial(nn.SmoothL1Loss, beta=0.7), REAL),
    Spec("huber", partial(nn.HuberLoss, delta=0.7), REAL),
    Spec("poisson", nn.PoissonNLLLoss, COUNTS),
    Spec("poisson-full", partial(nn.PoissonNLLLoss, full=True), COUNTS),
    Spec("poisson-rate", partial(nn.PoissonNLLLoss, log_input=False), COUNTS, "positive"),
    Spec(
        "gaussian",
        nn.GaussianNLLLoss,
        (REAL, cases.rand(8, 3, seed=3) + 0.1),
        y_is_tuple=True,
    ),
    Spec(
        "gaussian-full",
        partial(nn.GaussianNLLLoss, full=True),
        (REAL, cases.rand(8, 1, seed=3) + 0.1),
        y_is_tuple=True,
    ),
    Spec("kl", nn.KLDivLoss, _probabilities(8, 3), "log-probabilities"),
    Spec(
        "kl-log-target",
        partial(nn.KLDivLoss, log_target=True),
        _probabilities(8, 3).log(),
        "log-probabilities",
    ),
]

OTHER_MODULES = [
    Spec("soft-margin", nn.SoftMarginLoss, 2 * BINARY - 1),
    Spec("multi-label-soft-margin", nn.MultiLabelSoftMarginLoss, BINARY),
]


def _function(fn: Callable[..., Tensor], **keywords: Any) -> Callable[..., Any]:
    """A plain function; ``reduction`` is bound only where it is not the default."""

    def make(reduction: str) -> Callable[..., Tensor]:
        if reduction != "mean":
            return partial(fn, reduction=reduction, **keywords)
        return partial(fn, **keywords) if keywords else fn

    return make


FUNCTIONS = [
    Spec("F.cross_entropy", _function(F.cross_entropy), CE_INDICES),
    Spec("F.mse_loss", _function(F.mse_loss), REAL),
    Spec("F.huber_loss", _function(F.huber_loss), REAL),
    Spec("F.soft_margin_loss", _function(F.soft_margin_loss), 2 * BINARY - 1),
    Spec("F.cross_entropy-smooth", _function(F.cross_entropy, label_smoothing=0.1), CE_INDICES),
    Spec(
        "F.cross_entropy-weight-normalizer",
        _function(F.cross_entropy, weight=WEIGHT),
        CE_INDICES,
        options={"normalizer": lambda prediction, y: WEIGHT[y].sum()},
    ),
    Spec(
        "F.cross_entropy-positions-normalizer",
        _function(F.cross_entropy),
        _indices(8, T, masked=-100),
        "positions",
        options={"normalizer": lambda prediction, y: (y != -100).sum()},
        vector=True,
    ),
]

FUNCTIONS_THAT_AVERAGE_OTHERWISE = [
    # Averages over something else than the batch: right only if the library recognises them.
    Spec("partial-weight", _function(F.cross_entropy, weight=WEIGHT), CE_INDICES),
    Spec("mask", _function(F.cross_entropy), _indices(8, masked=-100)),
    Spec(
        "positions",
        _function(F.cross_entropy),
        _indices(8, T, masked=-100),
        "positions",
        vector=True,
    ),
    Spec(
        "bce-pos-weight",
        _function(F.binary_cross_entropy_with_logits, pos_weight=WEIGHT),
        BINARY,
    ),
]

MODULES = [*_cross_entropies(), *_negative_log_likelihoods(), *ELEMENTWISE, *OTHER_MODULES]


def _check(spec: Spec, reduction: str, **options: Any) -> None:
    with cases.seeded(0):
        model = Net(spec.kind, spec.out_dim).double()
    X = cases.randn(8, T, 2, seed=1) if spec.vector else cases.randn(8, 2, seed=1)
    batches = cases.cut(X, spec.y)
    params, loss = cases.perturbed(model), spec.loss(reduction=reduction)

    dense = truth.Dense(
        truth.module_predict(model), loss, params, batches, y_is_tuple=spec.y_is_tuple
    )
    problem = (model, loss, params, batches)
    options = {**cases.UNMERGED, **spec.options, **options}
    if not isinstance(loss, nn.Module):
        options["reduction"] = reduction

    risk = EmpiricalRisk(*problem, **options)
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())
    # some losses have no forward-mode derivative, all of them a double backward
    hessian = dense.hessian_by_double_backward()
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), hessian)
    if spec.name.startswith("nll"):
        # linear in the prediction: the GGN is zero, and the library says so
        with pytest.warns(UserWarning, match="NLLLoss"):
            ggn = GGNLinearOperator(*problem, **options).to_dense()
        assert torch.equal(ggn, torch.zeros_like(ggn))
    else:
        ggn = GGNLinearOperator.from_risk(risk).to_dense()
    cases.assert_matches(ggn, dense.ggn())


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("spec", MODULES, ids=str)
def test_many_batches_equal_one(spec: Spec, reduction: str) -> None:
    _check(spec, reduction)


@pytest.mark.parametrize("spec", [s for s in ELEMENTWISE if s.name.startswith("kl")], ids=str)
def test_kl_divergence_by_batch(spec: Spec) -> None:
    _check(spec, "batchmean")


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("spec", FUNCTIONS, ids=str)
def test_plain_functions(spec: Spec, reduction: str) -> None:
    _check(spec, reduction)


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("spec", FUNCTIONS_THAT_AVERAGE_OTHERWISE, ids=str)
def test_plain_functions_that_average_otherwise(spec: Spec, reduction: str) -> None:
    _check(spec, reduction)


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_a_loss_without_a_second_derivative(reduction: str) -> None:
    """torch cannot differentiate ``MultiMarginLoss`` twice: risk and gradient are right anyway."""
    with cases.seeded(0):
        model = Net("logits").double()
    loss, params = nn.MultiMarginLoss(reduction=reduction), cases.perturbed(model)
    batches = cases.cut(cases.randn(8, 2, seed=1), CE_INDICES)
    dense = truth.Dense(truth.module_predict(model), loss, params, batches)
    risk = EmpiricalRisk(model, loss, params, batches, **cases.UNMERGED)
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())
    for kind in (HessianLinearOperator, GGNLinearOperator):
        with pytest.raises(DifferentiationError, match="multi_margin_loss"):
            kind.from_risk(risk).to_dense()


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("name", ["ce-weight-mask", "ce-sequence", "mse", "bce-pos-weight"])
def test_merged_batches_give_the_same(name: str, reduction: str) -> None:
    case = cases.make(name, reduction)
    risk = EmpiricalRisk(*case.args, merge_batches="auto")
    cases.assert_matches(risk.loss(), case.truth.loss())
    cases.assert_matches(risk.gradient(), case.truth.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), case.truth.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), case.truth.ggn())


@pytest.mark.parametrize("merge", [False, "auto"])
@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_sequences_of_different_lengths_equal_padded_ones(merge: Any, reduction: str) -> None:
    """Batches of T = 2, 4, 3 equal one batch of T = 4 whose padding is ignored."""
    with cases.seeded(0):
        model = Net("positions").double()
    params = cases.perturbed(model)
    loss = nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1, reduction=reduction)
    X, y = cases.randn(8, 4, 2, seed=1), cases.randint(3, 8, 4, seed=2)
    lengths = (2, 4, 3)
    padded = cases.cut(X, y.clone())
    ragged = []
    for (x, target), length in zip(padded, lengths, strict=True):
        ragged.append((x[:, :length].clone(), target[:, :length].clone()))
        target[:, length:] = -100
    dense = truth.Dense(truth.module_predict(model), loss, params, padded)
    risk = EmpiricalRisk(model, loss, params, ragged, merge_batches=merge)
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


NORMALIZERS = {
    # 8 data, 3 outputs, worked out by hand
    "mse": 24,
    "mse-positions": 8 * T * 3,
    "bce-logits-weight-pos-weight": 24,
    "kl": 24,
    "gaussian": 24,
    "ce-probabilities-weight=True-smooth=0.2-T=True": 8 * T,
    "ce-probabilities-weight=False-smooth=0.0-T=False": 8,
    "ce-weight=False-ignore=None-smooth=0.2-T=True": 8 * T,
    "ce-weight=False-ignore=-100-smooth=0.0-T=False": 5,
    "nll-weight=False-ignore=None-T=True": 8 * T,
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizer(name: str) -> None:
    spec = next(s for s in MODULES if s.name == name)
    with cases.seeded(0):
        model = Net(spec.kind).double()
    X = cases.randn(8, T, 2, seed=1) if spec.vector else cases.randn(8, 2, seed=1)
    batches = cases.cut(X, spec.y)
    mean = EmpiricalRisk(model, spec.loss(reduction="mean"), model, batches)
    expected = NORMALIZERS[name]
    if "ignore=-100" in name:
        expected = int((spec.y != -100).sum())
        assert expected < 8
    assert float(mean.normalizer) == pytest.approx(expected, rel=1e-12)
    total = EmpiricalRisk(model, spec.loss(reduction="sum"), model, batches)
    assert float(total.normalizer) == 1.0


def test_weighted_normalizer_is_the_sum_of_the_weights_of_valid_targets() -> None:
    case = cases.make("ce-sequence", "mean")
    valid = torch.cat([y for _, y in case.batches])
    expected = WEIGHT[valid[valid != 1]].sum().item()
    assert EmpiricalRisk(*case.args).normalizer == pytest.approx(expected, rel=1e-12)


def test_kl_batchmean_normalizer_is_the_number_of_data() -> None:
    with cases.seeded(0):
        model = Net("log-probabilities").double()
    batches = cases.cut(cases.randn(8, 2, seed=1), _probabilities(8, 3))
    risk = EmpiricalRisk(model, nn.KLDivLoss(reduction="batchmean"), model, batches)
    assert float(risk.normalizer) == 8.0


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(reduction="none"), partial(F.cross_entropy, reduction="none")],
    ids=["module", "partial"],
)
def test_reduction_none_is_refused(loss: Any) -> None:
    case = cases.make("ce")
    with pytest.raises(InputError, match=r"(?s)none.*(mean|sum)"):
        EmpiricalRisk(case.model, loss, case.params, case.batches)


@pytest.mark.parametrize("reduction", ["none", "average", 3])
def test_bad_reduction_argument_is_refused(reduction: Any) -> None:
    case = cases.make("ce")
    with pytest.raises(InputError, match=str(reduction)):
        EmpiricalRisk(case.model, F.cross_entropy, case.params, case.batches, reduction=reduction)


def test_callable_without_reduction_must_be_told() -> None:
    case = cases.make("mse")

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).pow(2).mean()

    with pytest.raises(InputError, match="reduction"):
        EmpiricalRisk(case.model, loss, case.params, case.batches)


def test_vector_valued_loss_is_refused() -> None:
    case = cases.make("mse")

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).pow(2).mean(1)

    with pytest.raises(InputError, match=r"(?i)scalar|shape"):
        EmpiricalRisk(case.model, loss, case.params, case.batches, reduction="mean").loss()


def test_own_loss_module_with_reduction_attribute() -> None:
    class Quartic(nn.Module):
        def __init__(self, reduction: str) -> None:
            super().__init__()
            self.reduction = reduction

        def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
            each = (prediction - y).pow(4).sum(1)
            return each.mean() if self.reduction == "mean" else each.sum()

    for reduction in cases.REDUCTIONS:
        case = cases.make("mse")
        loss = Quartic(reduction)
        dense = truth.Dense(truth.module_predict(case.model), loss, case.params, case.batches)
        problem = (case.model, loss, case.params, case.batches)
        risk = EmpiricalRisk(*problem, **cases.UNMERGED)
        cases.assert_matches(risk.loss(), dense.loss())
        cases.assert_matches(risk.gradient(), dense.gradient())
        cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
        cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


def test_a_subclass_with_a_forward_of_its_own_is_not_mistaken_for_its_base() -> None:
    class Focal(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            each = F.cross_entropy(input, target, reduction="none")
            each = (1 - torch.exp(-each)).pow(2) * each
            return each.mean() if self.reduction == "mean" else each.sum()

    for reduction in cases.REDUCTIONS:
        case = cases.make("ce")
        loss = Focal(reduction=reduction)
        dense = truth.Dense(truth.module_predict(case.model), loss, case.params, case.batches)
        problem = (case.model, loss, case.params, case.batches)
        risk = EmpiricalRisk(*problem, **cases.UNMERGED)
        cases.assert_matches(risk.loss(), dense.loss())
        cases.assert_matches(risk.gradient(), dense.gradient())
        cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
        cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_torch_would_broadcast_are_refused() -> None:
    """``[N, 1]`` against ``[N]`` is N^2 pairs to torch: a mistake that warns at most."""
    with cases.seeded(0):
        model = cases.mlp(3, 4, 1).double()
    batches = cases.cut(cases.randn(8, 3, seed=1), cases.randn(8, seed=2))
    with pytest.raises(InputError, match=r"\[4, 1\].*\[4\]"):
        EmpiricalRisk(model, nn.MSELoss(), model, batches).loss()
