"""Individual gradients of any model, chunk by chunk, beside the user's own backward pass.

``vmap(grad)`` where torch can vectorise the model, datum by datum where it cannot; at most
:data:`CHUNK_NUMEL` numbers are alive at a time. A product ⟨g_n, d⟩ alone is the derivative of all
losses along d, which forward mode gives without any individual gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap

from curvops.autodiff import FunctionalModel
from curvops.losses import Loss
from curvops.nesting import leading_size, map_tensors, slice_datum, tensors_of
from curvops.rng import PrivateRNG
from curvops.training.individual import (
    Blocks,
    Individual,
    Overwritten,
    Request,
    Statistics,
    losses_of_data,
    slice_data,
)
from curvops.training.layers.base import row_dot

CHUNK_NUMEL = 1 << 24
"""Numbers of individual gradients that are alive at a time: 64 MiB of float32."""


class FromData(Individual):
    """The data of a mini-batch, from the data themselves.

    Random layers draw masks of their own, another one for every datum, from a private stream.

    Args:
        model: The model as a function.
        loss: The loss, a sum over data.
        params: Where to evaluate, detached, by name.
        X: The inputs.
        y: The targets.
        size: Number of data.
        rng: The private stream; where it stands is remembered.
        prediction: What the model predicts there, where it is known.
    """

    def __init__(
        self,
        model: FunctionalModel,
        loss: Loss,
        params: Mapping[str, Tensor],
        X: Any,
        y: Any,
        size: int | None = None,
        rng: PrivateRNG | None = None,
        prediction: Tensor | None = None,
    ) -> None:
        self._model, self._loss, self._params = model, loss, dict(params)
        self._X, self._y = X, y
        self._count = leading_size(X) if size is None else size
        self._rng = rng or PrivateRNG(seed=0)
        self._versions = [t._version for t in tensors_of((X, y))]
        self._prediction = prediction
        self.normalizer = 1.0
        if loss.reduction != "sum":
            self.normalizer = loss.normalizer(y, self._count, self._predict)

    def _predict(self) -> Tensor:
        if self._prediction is None:
            with torch.no_grad(), self._rng.active(), self._model.at(self._params) as predict:
                self._prediction = predict(self._X)
        return self._prediction

    @cached_property
    def totals(self) -> Tensor:  # type: ignore[override]
        """The weighted loss of each datum ``[B]``, float64."""
        return losses_of_data(self._loss, self._predict(), self._y)

    @property
    def size(self) -> int:
        """The number of data B."""
        return self._count

    def measure(self, request: Request) -> Statistics:
        """Return what is asked, un-normalised."""
        if not request.noise and request.moments is None:
            return Statistics(projections=tuple(self.project(d) for d in request.directions))
        directions = [self._flat(d) for d in request.directions]
        projections: list[list[Tensor]] = [[] for _ in directions]
        norms, total, squares = [], None, None
        inner = None
        for G in self.gradients():
            for found, d in zip(projections, directions, strict=True):
                found.append(G @ d)
            norms.append(row_dot(G, G))
            total = G.sum(0) if total is None else total.add_(G.sum(0))
            if request.moments is not None:
                squared = G.square_().sum(0) if len(G) < self._count else G.square().sum(0)
                squares = squared if squares is None else squares.add_(squared)
            if len(G) == self._count:
                inner = G @ total
        assert total is not None
        if request.noise and inner is None:
            inner = self.project(self._blocks(total))
        rows = request.moments
        return Statistics(
            projections=tuple(torch.cat(p).double() for p in projections),
            squared_norms=torch.cat(norms).double() if request.noise else None,
            inner=inner.double() if request.noise and inner is not None else None,
            sums=[] if rows is None else self._at_rows(total, rows),
            squares=[] if rows is None or squares is None else self._at_rows(squares, rows),
        )

    def project(self, direction: Blocks) -> Tensor:
        """Return ⟨g_n, d⟩ of every datum ``[B]``, un-normalised."""
        self._check_untouched()
        tangents = {
            name: d.to(p.dtype)
            for (name, p), d in zip(self._params.items(), direction, strict=True)
        }
        try:
            return self._forward_mode(tangents)
        except (RuntimeError, NotImplementedError, ValueError):
            flat = self._flat(direction)
            return torch.cat([G @ flat for G in self.gradients()]).double()

    def sums(self) -> Blocks:
        """Return Σ g_n, un-normalised."""
        total = None
        for G in self.gradients():
            total = G.sum(0) if total is None else total.add_(G.sum(0))
        assert total is not None
        return self._blocks(total)

    def at(self, params: Mapping[str, Tensor]) -> FromData:
        """Return the same data at other parameters."""
        self._check_untouched()
        return FromData(self._model, self._loss, params, self._X, self._y, self._count, self._rng)

    def _check_untouched(self) -> None:
        if [t._version for t in tensors_of((self._X, self._y))] != self._versions:
            raise Overwritten

    def gradients(self) -> Iterator[Tensor]:
        """Yield the individual gradients, un-normalised, in chunks ``[b, P]``."""
        self._check_untouched()
        dim = sum(p.numel() for p in self._params.values())
        chunk = max(1, min(self._count, CHUNK_NUMEL // max(dim, 1)))
        vectorise = True
        for start in range(0, self._count, chunk):
            stop = min(start + chunk, self._count)
            part = slice_data((self._X, self._y), start, stop, self._count)
            with self._rng.active():
                if vectorise:
                    try:
                        found = self._vectorised(part, stop - start)
                    except torch.OutOfMemoryError:
                        raise
                    except (RuntimeError, NotImplementedError, ValueError):
                        vectorise = False
                if not vectorise:
                    found = self._one_by_one(part, stop - start)
            yield found

    def _vectorised(self, part: Any, size: int) -> Tensor:
        tensors = tensors_of(part)
        axes = [0 if t.ndim and t.shape[0] == size else None for t in tensors]
        # Open until the backward pass is done: checkpointed modules run their forward in it.
        substitution = ExitStack()

        def of_datum(p: dict[str, Tensor], *data: Tensor) -> Tensor:
            one = iter(
                t if axis is None else t.unsqueeze(0) for t, axis in zip(data, axes, strict=True)
            )
            X, y = map_tensors(lambda _: next(one), part)
            predict = substitution.enter_context(self._model.at(p))
            return self._loss.total(predict(X), y)

        differentiate = vmap(
            grad_and_value(of_datum), in_dims=(None, *axes), randomness="different"
        )
        with substitution, warnings.catch_warnings():
            # Recurrent kernels have no rule of their own under vmap: slow, but right.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found, _ = differentiate(self._params, *tensors)
        return torch.cat([found[name].reshape(size, -1) for name in self._params], dim=1).detach()

    def _one_by_one(self, part: Any, size: int) -> Tensor:
        rows = []
        for n in range(size):
            X, y = slice_datum(part, n, size)
            active = {name: p.detach().requires_grad_() for name, p in self._params.items()}
            with torch.enable_grad(), self._model.at(active) as predict:
                total = self._loss.total(predict(X), y)
                found = torch.autograd.grad(total, list(active.values()), materialize_grads=True)
            rows.append(torch.cat([g.reshape(-1) for g in found]))
        return torch.stack(rows)

    def _forward_mode(self, tangents: dict[str, Tensor]) -> Tensor:
        def predict(p: dict[str, Tensor]) -> Tensor:
            with self._model.at(p) as at:
                return at(self._X)

        _load_forward_mode()
        with self._rng.active():
            found: Any = jvp(predict, (self._params,), (tangents,))
            f, moved = found
        slope = self._loss.gradient(f.detach(), self._y)
        return row_dot(slope.double(), moved.double())

    def _flat(self, blocks: Blocks) -> Tensor:
        dtype = next(iter(self._params.values())).dtype
        return torch.cat([b.reshape(-1).to(dtype) for b in blocks])

    def _blocks(self, flat: Tensor) -> list[Tensor]:
        params = list(self._params.values())
        parts = flat.split([p.numel() for p in params])
        return [part.reshape(p.shape) for part, p in zip(parts, params, strict=True)]

    def _at_rows(self, flat: Tensor, rows: Sequence[Tensor | None]) -> list[Tensor]:
        return [
            block if chosen is None else block[chosen.to(block.device)]
            for block, chosen in zip(self._blocks(flat), rows, strict=True)
        ]


@cache
def _load_forward_mode() -> None:
    """Let torch load its forward mode, which warns about torch's own code at the first use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = torch.ones(())
        jvp(torch.sin, (one,), (one,))
