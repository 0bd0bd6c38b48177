"""The data of a mini-batch, from what its layers said in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from curvops.training.individual import Blocks, Individual, Overwritten, Request, Statistics
from curvops.training.layers import Layer, NotKept


class FromLayers(Individual):
    """The data of a mini-batch, from what its layers collected.

    Args:
        layers: What they collected, in units of what the user differentiated.
        num_params: Number of parameter tensors.
        factor: What turns these units into the un-normalised loss's.
        totals: The loss of each datum ``[B]``.
        normalizer: Z_b.
        again: Makes the same from the data, at other parameters or (``None``) at these.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        num_params: int,
        factor: float,
        totals: Tensor,
        normalizer: float,
        again: Callable[[Mapping[str, Tensor] | None], Individual],
    ) -> None:
        self._layers, self._num_params, self._factor = layers, num_params, factor
        self.totals, self.normalizer = totals, normalizer
        self._again = again
        self._versions = [layer.versions for layer in layers]

    def measure(self, request: Request) -> Statistics:
        """Return what is asked, un-normalised."""
        self._check_untouched()
        factor, rows = self._factor, request.moments
        norms = inner = None
        if request.noise:
            found = [layer.noise() for layer in self._layers]
            norms, inner = (_sum(parts).mul_(factor**2) for parts in zip(*found, strict=True))
        sums: list[Tensor] = []
        squares: list[Tensor] = []
        if rows is not None:
            moments = [layer.moments(rows) for layer in self._layers]
            both = {place: pair for part in moments for place, pair in part.items()}
            first, second = zip(*(both[i] for i in range(self._num_params)), strict=True)
            sums, squares = _scaled(first, factor), _scaled(second, factor**2)
        projections = tuple(self.project(d) for d in request.directions)
        return Statistics(projections, norms, inner, sums, squares)

    def project(self, direction: Blocks) -> Tensor:
        """Return ⟨g_n, d⟩ of every datum ``[B]``, un-normalised."""
        self._check_untouched()
        try:
            return _sum([layer.project(direction) for layer in self._layers]).mul_(self._factor)
        except NotKept:
            return self._again(None).project(direction)

    def at(self, params: Mapping[str, Tensor]) -> Individual:
        """Return the same data at other parameters."""
        return self._again(params)

    def sums(self) -> Blocks:
        """Return Σ g_n, un-normalised."""
        self._check_untouched()
        found = {place: s for layer in self._layers for place, s in layer.sums().items()}
        return _scaled([found[i] for i in range(self._num_params)], self._factor)

    def _check_untouched(self) -> None:
        if [layer.versions for layer in self._layers] != self._versions:
            # Somebody wrote to the inputs, such as a loader that fills the same tensor again.
            raise Overwritten


def _scaled(blocks: Sequence[Tensor], factor: float) -> list[Tensor]:
    return list(torch._foreach_mul(list(blocks), factor))


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(parts)).sum(0, dtype=torch.float64)
