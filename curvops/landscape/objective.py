"""A risk as stochastic gradients see it: one mini-batch at a time, in another order every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from curvops.autodiff import FunctionalModel
from curvops.data import Batch
from curvops.errors import DataError
from curvops.landscape.batch_norm import batch_norms
from curvops.losses import Loss
from curvops.nesting import can_concatenate, concatenate, leading_size, map_tensors
from curvops.risk import EmpiricalRisk

Epoch = Callable[[torch.Generator], Iterator[Batch]]
"""From a generator to the mini-batches of one epoch."""

Normalizer = Callable[[Batch, Tensor], float]
"""From a mini-batch and its prediction to what its total loss is divided by."""


class Objective:
    """The loss of a mini-batch at any point, and its gradient.

    Layers of batch normalisation use the statistics of the mini-batch, whatever their mode in the
    module; everything else runs in the mode that it has there. The module is left untouched.

    Args:
        model: The model. It is copied.
        loss: The loss.
        epoch: Where mini-batches come from.
        normalizer: What the total loss of a mini-batch is divided by.
        weight_decay: λ of (λ/2)‖θ‖².
    """

    def __init__(
        self,
        model: FunctionalModel,
        loss: Loss,
        epoch: Epoch,
        normalizer: Normalizer,
        weight_decay: float = 0.0,
    ) -> None:
        self._model, self._loss, self._normalizer = copy.deepcopy(model), loss, normalizer
        self._model.clone_buffers = False
        for layer in batch_norms(self._model.module):
            layer.train()
        self._weight_decay = weight_decay
        self.epoch = epoch

    @classmethod
    def of_risk(cls, risk: EmpiricalRisk, batch_size: int) -> Objective:
        """Return unbiased estimates of a risk from its own data, shuffled."""
        share = risk.normalizer / risk.num_data
        return cls(
            risk._model,
            risk.loss_func,
            lambda generator: _shuffled(risk, batch_size, generator),
            lambda batch, prediction: share * batch.size,
            risk.weight_decay,
        )

    @classmethod
    def of_loader(
        cls, loader: Iterable[Any], model: FunctionalModel, loss: Loss, device: torch.device
    ) -> Objective:
        """Return the losses of a loader's mini-batches, each divided by its own normaliser."""

        def normalizer(batch: Batch, prediction: Tensor) -> float:
            if loss.reduction == "sum":
                return 1.0
            return loss.normalizer(batch.y, batch.size, lambda: prediction.detach()) or 1.0

        return cls(model, loss, lambda _: _loaded(loader, device), normalizer)

    def gradient(
        self, params: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the loss of a mini-batch, without weight decay, and the gradient with it.

        Args:
            params: The point, tensors by name.
            batch: The mini-batch.
        """
        active = {name: p.detach().requires_grad_() for name, p in params.items()}
        with torch.enable_grad(), self._model.at(active) as predict:
            prediction = predict(batch.X)
            total = self._loss.total(prediction, batch.y)
            loss = total / self._normalizer(batch, prediction)
            gradients = torch.autograd.grad(loss, list(active.values()), materialize_grads=True)
        if self._weight_decay:
            pairs = zip(gradients, params.values(), strict=True)
            gradients = tuple(g.add(p, alpha=self._weight_decay) for g, p in pairs)
        return loss.detach(), gradients


def _shuffled(risk: EmpiricalRisk, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield the data of a risk in mini-batches, in an order drawn from a generator.

    Data that are kept are shuffled as a whole, data that are read again within what is read at a
    time. Batches that cannot be cut stay whole.
    """
    stream = risk._data
    if not stream.is_cached:
        for batch in stream:
            yield from _cut(batch, size, generator)
        return
    batches = list(stream)
    sizes = [batch.size for batch in batches]
    if can_concatenate([(batch.X, batch.y) for batch in batches], sizes):
        X, y = (concatenate([getattr(b, name) for b in batches]) for name in ("X", "y"))
        yield from _cut(Batch(0, X, y, sum(sizes)), size, generator)
        return
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield from _cut(batches[i], size, generator)


def _cut(batch: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    if not can_concatenate([(batch.X, batch.y)], [batch.size]):
        yield batch
        return
    for rows in torch.randperm(batch.size, generator=generator).split(size):
        yield _rows(batch, rows)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    def take(t: Tensor) -> Tensor:
        return t[rows.to(t.device)]

    return Batch(batch.index, map_tensors(take, batch.X), map_tensors(take, batch.y), len(rows))


def _loaded(loader: Iterable[Any], device: torch.device) -> Iterator[Batch]:
    """Yield the batches of a loader on a device."""
    index = -1
    for index, item in enumerate(loader):
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"batch {index} of the loader is a {type(item).__name__}; expected a pair (X, y)."
            )
        X, y = (map_tensors(lambda t: t.to(device), part) for part in item)
        yield Batch(index, X, y, leading_size(X))
    if index < 0:
        raise DataError("the loader has no batch.")
