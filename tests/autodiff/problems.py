"""Small problems in float64, and operators that keep what products share in a chosen form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from curvops import (
    EFLinearOperator,
    EmpiricalRisk,
    FisherMCLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
)
from curvops.operators.curvature import CurvatureLinearOperator
from tests import cases
from tests.operators.test_models import (
    Attention,
    Checkpointed,
    InPlace,
    OneStep,
    TiedEmbedding,
    TiedLayers,
    Transformer,
    WithUnused,
)

RTOL = 1e-12
"""Largest difference between two forms, relative to the largest entry."""

CLASSES = 3

HESSIAN, GGN = HessianLinearOperator, GGNLinearOperator
EF, FISHER = EFLinearOperator, FisherMCLinearOperator
KINDS: dict[str, type[CurvatureLinearOperator]] = {
    "hessian": HESSIAN,
    "ggn": GGN,
    "ef": EF,
    "fisher": FISHER,
}
OPTIONS: dict[Any, dict[str, Any]] = {FISHER: {"mc_samples": 2, "seed": 3}}
FORMS = ("nothing", "graph", "residuals")


@dataclass(frozen=True)
class Problem:
    """What an operator is built from; the parameters are not the module's own values."""

    model: nn.Module
    loss: nn.Module
    params: Any
    batches: list[tuple[Any, Any]]

    @property
    def args(self) -> tuple[nn.Module, nn.Module, Any, list[tuple[Any, Any]]]:
        """The four positional arguments of every operator."""
        return self.model, self.loss, self.params, self.batches

    def risk(self, **options: Any) -> EmpiricalRisk:
        """The risk, its batches as they are cut."""
        return EmpiricalRisk(*self.args, **(cases.UNMERGED | options))

    def build(self, kind: type[CurvatureLinearOperator] = HESSIAN, **options: Any) -> Any:
        """An operator on the batches as they are cut."""
        return kind(*self.args, **(cases.UNMERGED | OPTIONS.get(kind, {}) | options))


def built(kind: type[CurvatureLinearOperator], risk: EmpiricalRisk, **options: Any) -> Any:
    """An operator of an existing risk."""
    return kind.from_risk(risk, **OPTIONS.get(kind, {}), **options)


def vectors(operator: CurvatureLinearOperator, *columns: int, seed: int = 5) -> Tensor:
    """Random vectors of an operator's dtype."""
    return cases.randn(operator.shape[1], *columns, seed=seed)


def assert_same(actual: Tensor, expected: Tensor, what: str = "", rtol: float = RTOL) -> None:
    """Check equality to rounding."""
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    if expected.numel():
        error = ((actual - expected).abs().max() / expected.abs().max()).item()
        assert error <= rtol, f"{what}: relative error {error:.2e}"


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether two products are far apart, so that a test can tell them."""
    return bool((a - b).abs().max() > 1e-3 * b.abs().max())


@contextmanager
def column_width(operator: CurvatureLinearOperator, columns: Any) -> Iterator[None]:
    """Send columns through an existing (already traced) operator in another way."""
    keeper = operator._keeper
    before = keeper.options
    keeper.options = replace(before, columns=columns)
    try:
        yield
    finally:
        keeper.options = before


# Models ------------------------------------------------------------------------------------


def cnn() -> nn.Module:
    """In-place ReLU, pooling, batch norm in eval mode and a transposed convolution."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(2, 1, 2, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    norm: Any = model[1]
    norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
    norm.running_var.copy_(torch.tensor([1.5, 0.7]))
    return model


class Branches(nn.Module):
    """Every sequence length has layers of its own: each batch uses only half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long = cases.mlp(), cases.mlp()

    def forward(self, x: Tensor) -> Tensor:
        return (self.short if x.shape[1] == 2 else self.long)(x.mean(1))


class Switch(nn.Module):
    """Control flow that depends on the values of the data, in a way of one's choosing."""

    def __init__(self, positive: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.up, self.down = cases.mlp(), cases.mlp()
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x) if self.positive(x) else self.down(x)


def problem(make: Callable[[], nn.Module], X: Tensor, sizes: tuple[int, ...]) -> Problem:
    """A classification problem at perturbed parameters."""
    with cases.seeded(0):
        model = make().double().eval()
    y = cases.randint(CLASSES, sum(sizes), seed=2)
    batches = cases.cut(X, y, sizes)
    return Problem(model, nn.CrossEntropyLoss(), cases.perturbed(model), batches)


def mlp(sizes: tuple[int, ...] = (4, 1, 3), last: Any = nn.Identity) -> Problem:
    """The smallest problem."""
    return problem(lambda: cases.mlp(3, 4, 3, last()), cases.randn(sum(sizes), 3, seed=1), sizes)


def _tied_embedding() -> Problem:
    with cases.seeded(0):
        model = TiedEmbedding().double()
    tokens, targets = cases.randint(5, 5, 3, seed=1), cases.randint(5, 5, 3, seed=2)
    batches = cases.cut(tokens, targets, (3, 2))
    return Problem(model, nn.CrossEntropyLoss(), cases.perturbed(model), batches)


def branches() -> Problem:
    """Two batches of other shapes, with parameters of their own."""
    with cases.seeded(0):
        model = Branches().double()
    batches = [
        (cases.randn(3, 2, 3, seed=1), cases.randint(3, 3, seed=2)),
        (cases.randn(4, 5, 3, seed=3), cases.randint(3, 4, seed=4)),
    ]
    return Problem(model, nn.CrossEntropyLoss(), cases.perturbed(model), batches)


def switch(positive: Callable[[Tensor], bool]) -> Problem:
    """Two batches of one shape that take different ways through the model."""
    X = cases.rand(6, 3, seed=1)
    X[3:] *= -1
    return problem(lambda: Switch(positive), X, (3, 3))


def _frozen() -> Problem:
    """A part of the parameters; the others stay at the module's own values."""
    whole = mlp()
    params = {name: p for name, p in whole.params.items() if name != "0.weight"}
    return replace(whole, params=params)


def _glob() -> Problem:
    return replace(mlp(), params="2.*")


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mlp": mlp,
    "cnn": lambda: problem(cnn, cases.randn(5, 1, 4, 4, seed=1), (3, 2)),
    "in-place": lambda: problem(InPlace, cases.randn(5, 3, seed=1), (3, 2)),
    "sdpa": lambda: problem(lambda: Attention(causal=True), cases.randn(4, 3, 3, seed=1), (2, 2)),
    "transformer": lambda: problem(
        lambda: Transformer(norm_first=False), cases.randn(4, 2, 4, seed=1), (2, 2)
    ),
    "lstm": lambda: problem(lambda: OneStep(nn.LSTM), cases.randn(4, 2, 2, seed=1), (2, 2)),
    "gru": lambda: problem(lambda: OneStep(nn.GRU), cases.randn(4, 2, 2, seed=1), (2, 2)),
    "checkpointed": lambda: problem(
        lambda: Checkpointed(recompute=True), cases.randn(4, 3, seed=1), (2, 2)
    ),
    "tied-layers": lambda: problem(TiedLayers, cases.randn(5, 3, seed=1), (3, 2)),
    "tied-embedding": _tied_embedding,
    "unused": lambda: problem(WithUnused, cases.randn(4, 3, seed=1), (2, 2)),
    "branches": branches,
    "frozen": _frozen,
    "glob": _glob,
}
