"""Embeddings: sums over the places of a token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from curvops.training.individual import Blocks, Rows
from curvops.training.layers.base import Layer, Moments, moments_at, row_dot


class EmbeddingLayer(Layer):
    """``nn.Embedding`` without padding index, norm limit, frequency scaling or sparse gradients.

    Args:
        places: The position of ``"weight"``.
        indices: ``[B, *]``.
        outputs: δ, ``[B, *, dim]``.
        num_embeddings: Rows of the table.
    """

    def __init__(
        self, places: Mapping[str, int], indices: Tensor, outputs: Tensor, num_embeddings: int
    ) -> None:
        self.places = places
        self._held = (indices, outputs)
        self._index = indices.reshape(len(indices), -1)
        self._delta = outputs.reshape(len(outputs), -1, outputs.shape[-1])
        self._num = num_embeddings

    @property
    def versions(self) -> tuple[int, ...]:
        return tuple(t._version for t in self._held)

    def project(self, direction: Blocks) -> Tensor:
        moved = direction[self.places["weight"]][self._index]
        return row_dot(moved, self._delta)

    def noise(self) -> tuple[Tensor, Tensor]:
        datum, _, summed = self._per_datum()
        norms = summed.new_zeros(len(self._index))
        norms.index_add_(0, datum, row_dot(summed, summed))
        return norms, row_dot(self._sums()[self._index], self._delta)

    def sums(self) -> dict[int, Tensor]:
        return {self.places["weight"]: self._sums()}

    def moments(self, rows: Rows) -> dict[int, Moments]:
        place = self.places["weight"]
        _, token, summed = self._per_datum()
        tables = self._sums(), self._table(token, summed.square())
        return {place: moments_at(tables, rows[place])}

    def _sums(self) -> Tensor:
        return self._table(self._index.reshape(-1), self._delta.flatten(0, 1))

    def _per_datum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return datum, token and the sum of δ over that token's places in that datum."""
        size = len(self._index)
        key = self._index + self._num * torch.arange(size, device=self._index.device).unsqueeze(1)
        unique, inverse = key.reshape(-1).unique(return_inverse=True)
        summed = self._delta.new_zeros(len(unique), self._delta.shape[-1])
        summed.index_add_(0, inverse, self._delta.flatten(0, 1))
        return unique // self._num, unique % self._num, summed

    def _table(self, tokens: Tensor, values: Tensor) -> Tensor:
        table = values.new_zeros(self._num, values.shape[-1])
        return table.index_add_(0, tokens, values)
