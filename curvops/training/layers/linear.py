"""Linear layers: two factors per datum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from curvops.training.individual import Blocks, Rows
from curvops.training.layers.base import CHUNK_NUMEL, Layer, Moments, moments_of, row_dot, rows_of


class LinearLayer(Layer):
    """``nn.Linear`` on ``[B, in]`` or ``[B, *, in]``.

    Args:
        places: Positions of ``"weight"`` and ``"bias"``, those that are trained.
        inputs: a, ``[B, *, in]``.
        outputs: δ, ``[B, *, out]``.
    """

    def __init__(self, places: Mapping[str, int], inputs: Tensor, outputs: Tensor) -> None:
        self.places = places
        self._held = (inputs, outputs)
        size = len(inputs)
        self._flat = inputs.ndim == 2
        self.a = inputs if self._flat else inputs.reshape(size, -1, inputs.shape[-1])
        self.delta = outputs if self._flat else outputs.reshape(size, -1, outputs.shape[-1])

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(t._version for t in self._held)

    def project(self, direction: Blocks) -> Tensor:
        weight, bias = (
            direction[self.places[name]] if name in self.places else None
            for name in ("weight", "bias")
        )
        if weight is None:
            assert bias is not None
            return (self._summed(self.delta) * bias).sum(1)
        moved = F.linear(self.a, weight, bias)
        return row_dot(moved, self.delta)

    def noise(self) -> tuple[Tensor, Tensor]:
        size, inputs, outputs = len(self.a), self.a.shape[-1], self.delta.shape[-1]
        # Two products of [B, in] and [B, out] each, or the inner products of all pairs of data.
        if self._flat and size * (inputs + outputs) < 3 * inputs * outputs:
            gram = self._gram()
            return gram.diagonal(), gram.sum(1)
        return self._squared_norms(), self.project_on(self.sums())

    def _gram(self) -> Tensor:
        """Return ⟨g_n, g_m⟩ of all pairs of data ``[B, B]``."""
        gram = self.delta @ self.delta.T
        if "weight" not in self.places:
            return gram
        of_inputs = self.a @ self.a.T
        if "bias" in self.places:  # an input that is 1 for every datum
            of_inputs.add_(1.0)
        return gram.mul_(of_inputs)

    def _squared_norms(self) -> Tensor:
        if self._flat:
            norms = row_dot(self.delta, self.delta)
            if "weight" not in self.places:
                return norms
            return norms * (row_dot(self.a, self.a) + (1.0 if "bias" in self.places else 0.0))
        total = self._of_bias(lambda b: b.square().sum(1))
        if "weight" not in self.places:
            return total
        if self._positions_are_few():
            gram = (self.a @ self.a.mT) * (self.delta @ self.delta.mT)
            return total + gram.sum((1, 2))
        return total + torch.cat([row_dot(G, G) for G in self._weight_gradients(self.delta)])

    def sums(self) -> dict[int, Tensor]:
        found = {}
        if "weight" in self.places:
            found[self.places["weight"]] = self.delta.flatten(0, -2).T @ self.a.flatten(0, -2)
        if "bias" in self.places:
            found[self.places["bias"]] = self.delta.flatten(0, -2).sum(0)
        return found

    def moments(self, rows: Rows) -> dict[int, Moments]:
        found = {}
        if "weight" in self.places:
            place = self.places["weight"]
            delta = rows_of(self.delta, rows[place], axis=-1)
            first = delta.flatten(0, -2).T @ self.a.flatten(0, -2)
            if self._flat:
                found[place] = first, delta.square().T @ self.a.square()
            else:
                parts = [G.square().sum(0) for G in self._weight_gradients(delta)]
                found[place] = first, torch.stack(parts).sum(0)
        if "bias" in self.places:
            place = self.places["bias"]
            found[place] = moments_of(self._summed(rows_of(self.delta, rows[place], axis=-1)))
        return found

    def _positions_are_few(self) -> bool:
        """Whether products of positions take less work than the gradients themselves."""
        positions, inputs, outputs = self.a.shape[1], self.a.shape[2], self.delta.shape[2]
        return positions * (inputs + outputs) < inputs * outputs

    def _weight_gradients(self, delta: Tensor) -> Iterator[Tensor]:
        """Yield G_n in chunks ``[b, rows, in]``, for δ at some rows."""
        chunk = max(1, CHUNK_NUMEL // max(1, self.a.shape[-1] * delta.shape[-1]))
        for a, d in zip(self.a.split(chunk), delta.split(chunk), strict=True):
            yield d.mT @ a

    def _summed(self, delta: Tensor) -> Tensor:
        return delta if self._flat else delta.sum(1)

    def _of_bias(self, measure: Callable[[Tensor], Tensor]) -> Tensor:
        if "bias" not in self.places:
            return self.delta.new_zeros(len(self.delta))
        return measure(self._summed(self.delta))
