"""Cases: model x loss x params (perturbed) x ragged batches x reduction x dtype.

The parameters of a case are never the module's own values: an operator that evaluates the
module where it should evaluate what it was given is caught by every test. Batches are ragged,
and one batch of the masked cases has no valid target at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from tests import truth

SIZES = (4, 1, 3)
"""Ragged batch sizes; 8 data in all."""

UNMERGED: dict[str, Any] = {"merge_batches": False}
"""Keep the cut into batches as it is, so that the weights of batches are really exercised."""

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
"""Largest error allowed, relative to the largest entry of the truth."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise modules from ``seed`` without moving the global RNG."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=rng(seed), dtype=torch.float64)


def randint(high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(high, shape, generator=rng(seed))


def perturbed(module: nn.Module, seed: int = 99, scale: float = 0.3) -> dict[str, Tensor]:
    """Trainable parameters by name, moved away from the module's own values."""
    g = rng(seed)
    return {
        name: p.detach() + scale * torch.randn(p.shape, generator=g, dtype=p.dtype)
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def cut(X: Any, y: Any, sizes: tuple[int, ...] = SIZES) -> list[tuple[Any, Any]]:
    """Cut tensors (or nestings of them) into batches of the given sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        (_rows(X, start, start + n), _rows(y, start, start + n))
        for start, n in zip(starts, sizes, strict=True)
    ]


def _rows(tree: Any, start: int, stop: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[start:stop]
    if isinstance(tree, Mapping):
        return {key: _rows(value, start, stop) for key, value in tree.items()}
    return type(tree)(_rows(value, start, stop) for value in tree)


def assert_matches(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Check dtype, shape, and the error relative to the largest entry of the truth."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    error = (actual.to(torch.float64) - expected).abs().max().item() if actual.numel() else 0.0
    scale = expected.abs().max().item() if expected.numel() else 0.0
    bound = TOLERANCE[dtype] * scale + 1e-13
    assert error <= bound, f"error {error:.3e} > {bound:.3e} (largest entry {scale:.3e})"


class PerPosition(nn.Module):
    """``[N, T, D] -> [N, C, T]`` (or ``[N, T, C]``), each position on its own."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, *, channels_last: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(in_dim, hidden)
        self.outer = nn.Linear(hidden, out_dim)
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        f = self.outer(torch.tanh(self.inner(x)))
        return f if self.channels_last else f.transpose(1, 2)


def mlp(in_dim: int = 3, hidden: int = 4, out_dim: int = 3, *last: nn.Module) -> nn.Module:
    """A tanh network with one hidden layer; ``last`` are modules behind it."""
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.Tanh(), nn.Linear(hidden, out_dim), *last)


@dataclass(frozen=True)
class Case:
    """One problem, and its dense truth."""

    name: str
    model: nn.Module
    loss: nn.Module
    params: dict[str, Tensor]
    batches: list[tuple[Any, Any]]
    reduction: str
    dtype: torch.dtype = torch.float64

    @property
    def args(self) -> tuple[nn.Module, nn.Module, dict[str, Tensor], list[tuple[Any, Any]]]:
        """The four positional arguments of every operator."""
        return self.model, self.loss, self.params, self.batches

    @property
    def dim(self) -> int:
        return sum(p.numel() for p in self.params.values())

    @property
    def num_data(self) -> int:
        return sum(len(y) for _, y in self.batches)

    def to(self, dtype: torch.dtype) -> Case:
        """The same problem in another dtype; the truth stays in float64."""
        return replace(
            self,
            model=self.model.to(dtype),
            loss=self.loss.to(dtype),
            params={name: p.to(dtype) for name, p in self.params.items()},
            batches=[(truth.to(X, dtype), truth.to(y, dtype)) for X, y in self.batches],
            dtype=dtype,
        )

    @cached_property
    def truth(self) -> truth.Dense:
        """Float64 truth at the (already rounded) parameters and data of this case."""
        # cast copies: the case keeps its own dtype
        model, loss = _double(self.model), _double(self.loss)
        return truth.Dense(truth.module_predict(model), loss, self.params, self.batches)

    def vectors(self, columns: int, seed: int = 5) -> Tensor:
        """Random flat vectors ``[P, columns]`` in the dtype of the case."""
        return randn(self.dim, columns, seed=seed).to(self.dtype)


def _double(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module).to(torch.float64)


def _classification(loss: Callable[..., nn.Module], masked: bool, reduction: str) -> Case:
    with seeded(0):
        model = mlp().double()
    y = randint(3, 8, seed=2)
    if masked:  # the batch of one datum has no valid target
        y[0], y[4] = -100, -100
    batches = cut(randn(8, 3, seed=1), y)
    return Case("", model, loss(reduction=reduction), perturbed(model), batches, reduction)


def _sequence(reduction: str) -> Case:
    with seeded(0):
        model = PerPosition(3, 3, 3, channels_last=False).double()
    y = randint(3, 8, 4, seed=2)
    y[0, 1:], y[4], y[6, 0] = 1, 1, 1  # class 1 is ignored; datum 4 is the batch of one
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(
        weight=weight, ignore_index=1, label_smoothing=0.1, reduction=reduction
    )
    return Case("", model, loss, perturbed(model), cut(randn(8, 4, 3, seed=1), y), reduction)


def _regression(loss: Callable[..., nn.Module], reduction: str) -> Case:
    with seeded(0):
        model = mlp(3, 4, 2).double()
    batches = cut(randn(8, 3, seed=1), randn(8, 2, seed=2))
    return Case("", model, loss(reduction=reduction), perturbed(model), batches, reduction)


def _binary(reduction: str) -> Case:
    with seeded(0):
        model = mlp(3, 4, 2).double()
    y = randint(2, 8, 2, seed=2).double()
    pos_weight = torch.tensor([2.0, 0.5], dtype=torch.float64)
    loss = nn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction=reduction)
    return Case("", model, loss, perturbed(model), cut(randn(8, 3, seed=1), y), reduction)


def _sequence_regression(reduction: str) -> Case:
    with seeded(0):
        model = PerPosition(3, 3, 2, channels_last=True).double()
    batches = cut(randn(8, 3, 3, seed=1), randn(8, 3, 2, seed=2))
    return Case("", model, nn.MSELoss(reduction=reduction), perturbed(model), batches, reduction)


def _convolution(reduction: str) -> Case:
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
        ).double()
    batches = cut(randn(8, 1, 5, 5, seed=1), randint(3, 8, seed=2))
    loss = nn.CrossEntropyLoss(reduction=reduction)
    return Case("", model, loss, perturbed(model), batches, reduction)


def _weight() -> Tensor:
    return torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)


_MAKERS: dict[str, Callable[[str], Case]] = {
    "ce": partial(_classification, nn.CrossEntropyLoss, False),
    "ce-weight-mask": partial(
        _classification, partial(nn.CrossEntropyLoss, weight=_weight()), True
    ),
    "ce-sequence": _sequence,
    "ce-conv": _convolution,
    "mse": partial(_regression, nn.MSELoss),
    "mse-sequence": _sequence_regression,
    "bce-pos-weight": _binary,
    "huber": partial(_regression, partial(nn.HuberLoss, delta=0.7)),
}

NAMES = tuple(_MAKERS)
REDUCTIONS = ("mean", "sum")


def make(name: str, reduction: str = "mean", dtype: torch.dtype = torch.float64) -> Case:
    """Build a fresh case; nothing is shared between two calls."""
    return replace(_MAKERS[name](reduction), name=name).to(dtype)
