"""Individual gradients as they are: kept where they are small, used up where they are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from curvops.training.individual import Blocks, Rows
from curvops.training.layers.base import Layer, Moments, NotKept, moments_at, moments_of, row_dot


class KeptLayer(Layer):
    """A layer with so few parameters that its individual gradients are kept.

    Args:
        gradients: ``[B, *shape]`` by place.
    """

    def __init__(self, gradients: Mapping[int, Tensor]) -> None:
        self.places = {str(place): place for place in gradients}
        self._gradients = gradients

    @property
    def versions(self) -> tuple[int, ...]:
        return ()

    def project(self, direction: Blocks) -> Tensor:
        return self._sum_over_parameters(lambda G, i: G @ direction[i].reshape(-1).to(G.dtype))

    def noise(self) -> tuple[Tensor, Tensor]:
        norms = self._sum_over_parameters(lambda G, _: row_dot(G, G))
        return norms, self._sum_over_parameters(lambda G, _: G @ G.sum(0))

    def sums(self) -> dict[int, Tensor]:
        return {i: G.sum(0) for i, G in self._gradients.items()}

    def moments(self, rows: Rows) -> dict[int, Moments]:
        return {i: moments_of(G, rows[i]) for i, G in self._gradients.items()}

    def _sum_over_parameters(self, measure: Callable[[Tensor, int], Tensor]) -> Tensor:
        parts = [measure(G.flatten(1), i) for i, G in self._gradients.items()]
        return torch.stack(parts).sum(0)


class ReducedLayer(Layer):
    """A layer whose individual gradients are used when they are met, and then forgotten.

    It knows their norms, sums and products with the directions that were known then.

    Args:
        gradients: ``[B, *shape]`` by place; no reference to them is kept.
        directions: d, whose products with the gradients will be asked for.
    """

    def __init__(self, gradients: Mapping[int, Tensor], directions: Sequence[Blocks]) -> None:
        kept = KeptLayer(gradients)
        self.places = kept.places
        self._noise = kept.noise()
        self._moments = {i: moments_of(G) for i, G in gradients.items()}
        self._projections = [(d, kept.project(d)) for d in directions]

    @property
    def versions(self) -> tuple[int, ...]:
        return ()

    def project(self, direction: Blocks) -> Tensor:
        for known, projection in self._projections:
            if known is direction:
                return projection
        raise NotKept

    def noise(self) -> tuple[Tensor, Tensor]:
        return self._noise

    def sums(self) -> dict[int, Tensor]:
        return {i: first for i, (first, _) in self._moments.items()}

    def moments(self, rows: Rows) -> dict[int, Moments]:
        return {i: moments_at(both, rows[i]) for i, both in self._moments.items()}
