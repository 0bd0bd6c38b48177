"""Individual gradients of any model, chunk by chunk, beside the user's own backward pass.

``vmap(grad)`` where torch can vectorise the model, datum by datum where it cannot; at most
:data:`CHUNK_NUMEL` numbers are alive at a time. A product ⟨g_n, d⟩ alone is the derivative of all
losses along d, which two backward passes give without any individual gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from curvops.autodiff import FunctionalModel
from curvops.losses import Loss
from curvops.nesting import leading_size, map_tensors, tensors_of
from curvops.rng import PrivateRNG
from curvops.training.draws import Draw, random_state
from curvops.training.individual import (
    Blocks,
    Individual,
    Overwritten,
    Request,
    Statistics,
    losses_of_data,
    versions_of,
)
from curvops.training.layers.base import row_dot

CHUNK_NUMEL = 1 << 24
"""Numbers of individual gradients that are alive at a time: 64 MiB of float32."""


def holds_data(nest: Any, size: int) -> tuple[bool, ...]:
    """Tell of every tensor of a batch of ``size`` data whether it holds them, or is shared."""
    return tuple(t.ndim > 0 and t.shape[0] == size for t in tensors_of(nest))


class FromData(Individual):
    """The data of a mini-batch, from the data themselves.

    Random layers draw masks of their own, another one for every datum, from a private stream;
    all gradients of a mini-batch, at other parameters too, are taken under the same masks. A
    prediction that is known, and losses with it, have those of whoever made it.

    Args:
        model: The model as a function.
        loss: The loss, a sum over data.
        params: Where to evaluate, detached, by name.
        X: The inputs.
        y: The targets.
        size: Number of data.
        rng: The private stream that random layers draw from, or what they have drawn.
        prediction: What the model predicts there, where it is known.
        holds: Which tensors of ``(X, y)`` hold data (see :func:`holds_data`), where they are cut
            out of a larger mini-batch, so that their sizes may not tell.
    """

    def __init__(
        self,
        model: FunctionalModel,
        loss: Loss,
        params: Mapping[str, Tensor],
        X: Any,
        y: Any,
        size: int | None = None,
        rng: PrivateRNG | Draw | None = None,
        prediction: Tensor | None = None,
        holds: Sequence[bool] | None = None,
    ) -> None:
        self._model, self._loss, self._params = model, loss, dict(params)
        self._X, self._y = X, y
        self._count = leading_size(X) if size is None else size
        self._holds = holds_data((X, y), self._count) if holds is None else tuple(holds)
        self._draw = rng if isinstance(rng, Draw) else Draw(rng or 0)
        self._versions = versions_of((X, y))
        self._prediction = prediction
        self._whole_draws = False
        self._vectorised_until = self._count
        self.normalizer = 1.0
        if loss.reduction != "sum":
            self.normalizer = loss.normalizer(y, self._count, self._predict)

    def _predict(self) -> Tensor:
        if self._prediction is None:
            with torch.no_grad(), self._draw.replayed(), self._model.at(self._params) as predict:
                before = random_state()
                self._prediction = predict(self._X)
                self._whole_draws = random_state() != before
        return self._prediction

    @cached_property
    def totals(self) -> Tensor:  # type: ignore[override]
        """The weighted loss of each datum ``[B]``, float64."""
        prediction = self._predict()
        if self._whole_draws:
            # A batch draws its masks in another order than its data do.
            return torch.cat([losses for _, losses in self._evaluated()]).double()
        return losses_of_data(self._loss, prediction, self._y)

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
        try:
            found = self._twice_backward(direction)
        except Exception:
            # Not all that has a gradient has a second one. An error of the model comes up again.
            found = None
        if found is not None:
            return found
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
        return FromData(
            self._model, self._loss, params, self._X, self._y, self._count, self._draw,
            holds=self._holds,
        )  # fmt: skip

    def _check_untouched(self) -> None:
        if versions_of((self._X, self._y)) != self._versions:
            raise Overwritten

    def gradients(self) -> Iterator[Tensor]:
        """Yield the individual gradients, un-normalised, in chunks ``[b, P]``."""
        for G, _ in self._evaluated():
            yield G

    def _evaluated(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the gradients ``[b, P]`` and the losses ``[b]`` of data, chunk by chunk."""
        self._check_untouched()
        dim = sum(p.numel() for p in self._params.values())
        chunk = max(1, min(self._count, CHUNK_NUMEL // max(dim, 1)))
        for start in range(0, self._count, chunk):
            stop = min(start + chunk, self._count)
            found = None
            if start < self._vectorised_until:
                try:
                    with self._draw.replayed(start):
                        found = self._vectorised(start, stop)
                except torch.OutOfMemoryError:
                    raise
                except Exception:
                    # From here on, and in every pass alike, for the masks are to be the same. An
                    # error of the model comes up again.
                    self._vectorised_until = start
            if found is None:
                with self._draw.replayed(start):
                    found = self._one_by_one(start, stop)
            yield found

    def _cut(self, start: int, stop: int) -> list[Tensor]:
        """Return the tensors of some data."""
        tensors = tensors_of((self._X, self._y))
        return [
            t[start:stop] if holds else t for t, holds in zip(tensors, self._holds, strict=True)
        ]

    def _nested(self, tensors: Sequence[Tensor]) -> Any:
        """Return tensors as the X and y that they were taken out of."""
        rest = iter(tensors)
        return map_tensors(lambda _: next(rest), (self._X, self._y))

    def _vectorised(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        # Open until the backward pass is done: checkpointed modules run their forward in it.
        substitution = ExitStack()

        def of_datum(p: dict[str, Tensor], *data: Tensor) -> Tensor:
            one = [
                t.unsqueeze(0) if holds else t for t, holds in zip(data, self._holds, strict=True)
            ]
            X, y = self._nested(one)
            predict = substitution.enter_context(self._model.at(p))
            return self._loss.total(predict(X), y)

        axes = [0 if holds else None for holds in self._holds]
        differentiate = vmap(
            grad_and_value(of_datum), in_dims=(None, *axes), randomness="different"
        )
        with substitution, warnings.catch_warnings():
            # Recurrent kernels have no rule of their own under vmap: slow, but right.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found, losses = differentiate(self._params, *self._cut(start, stop))
        G = [found[name].reshape(stop - start, -1) for name in self._params]
        return torch.cat(G, dim=1).detach(), losses.detach()

    def _one_by_one(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        rows, losses = [], []
        for n in range(start, stop):
            X, y = self._nested(self._cut(n, n + 1))
            active = {name: p.detach().requires_grad_() for name, p in self._params.items()}
            with torch.enable_grad(), self._model.at(active) as predict:
                total = self._loss.total(predict(X), y)
                found = torch.autograd.grad(total, list(active.values()), materialize_grads=True)
            rows.append(torch.cat([g.reshape(-1) for g in found]))
            losses.append(total.detach())
        return torch.stack(rows), torch.stack(losses)

    def _twice_backward(self, direction: Blocks) -> Tensor | None:
        """Return ⟨g_n, d⟩ as the derivative of ⟨Jᵀv, d⟩ along v, where it can be had.

        Forward mode would be cheaper, but does not know what a model keeps from being
        differentiated: ``torch.no_grad()``, hooks on gradients.

        Returns:
            ``None`` if the model draws, for a batch draws in another order than its data; or if
            a backward pass is not differentiable and does not say so.
        """
        active = {name: p.detach().requires_grad_() for name, p in self._params.items()}
        with torch.enable_grad(), self._model.at(active) as predict:
            with self._draw.replayed():
                before = random_state()
                f = predict(self._X)
                if random_state() != before:
                    return None
            v = self._loss.gradient(f.detach(), self._y).to(f.dtype).requires_grad_()
            gradients = torch.autograd.grad(
                f, list(active.values()), v, create_graph=True, materialize_grads=True
            )
            pairs = [
                (g, d.to(g.dtype))
                for g, d in zip(gradients, direction, strict=True)
                if g.requires_grad
            ]
            (moved,) = torch.autograd.grad(
                [g for g, _ in pairs], v, [d for _, d in pairs], materialize_grads=True
            )
        found = row_dot(v.detach().double(), moved.double())
        return found if self._is_slope(found, gradients, direction, f.dtype) else None

    def _is_slope(
        self, found: Tensor, gradients: Blocks, direction: Blocks, dtype: torch.dtype
    ) -> bool:
        """Tell whether Σ⟨g_n, d⟩ is ⟨Σg_n, d⟩, which costs no pass where both are there."""
        parts = torch.stack([
            (g.detach() * d.to(g.dtype)).sum().double()
            for g, d in zip(gradients, direction, strict=True)
        ])  # fmt: skip
        computed = torch.bfloat16 if self._model.has_autocast else dtype
        eps = max(torch.finfo(t).eps for t in (computed, *(g.dtype for g in gradients)))
        size = found.abs().sum() + parts.abs().sum()
        return bool((found.sum() - parts.sum()).abs() <= eps**0.5 * size)

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
