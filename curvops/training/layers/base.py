"""What a layer says about the gradients of individual data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from curvops.training.individual import Blocks, Rows

Moments = tuple[Tensor, Tensor]
"""Σ g_n and Σ g_n² of a parameter, at some of its rows."""

CHUNK_NUMEL = 1 << 24
"""Numbers of individual gradients that are alive at a time: 64 MiB of float32.

Their squares take as much again for a moment.
"""


class Layer(ABC):
    """The individual gradients of one layer's parameters.

    Attributes:
        places: Which of the model's parameters these are: position by name.
    """

    places: Mapping[str, int]

    @abstractmethod
    def project(self, direction: Blocks) -> Tensor:
        """Return ⟨g_n, d⟩ over this layer's parameters, ``[B]``; d has all of the model's."""

    @abstractmethod
    def noise(self) -> tuple[Tensor, Tensor]:
        """Return ‖g_n‖² and ⟨g_n, Σ_m g_m⟩ over this layer's parameters, ``[B]`` each."""

    @abstractmethod
    def sums(self) -> dict[int, Tensor]:
        """Return Σ g_n, by place."""

    @abstractmethod
    def moments(self, rows: Rows) -> dict[int, Moments]:
        """Return Σ g_n and Σ g_n² at chosen rows, by place."""

    def project_on(self, sums: Mapping[int, Tensor]) -> Tensor:
        """Return ⟨g_n, d⟩ for a d that is given at this layer's places only."""
        anything = next(iter(sums.values()))
        return self.project([sums.get(i, anything) for i in range(1 + max(sums))])

    @property
    @abstractmethod
    def versions(self) -> tuple[int, ...]:
        """Counters that move when somebody writes to what this layer holds."""


class NotKept(Exception):  # noqa: N818 - not an error: another way must be taken
    """Raised where a product is asked for whose factors have been forgotten."""


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products ``[B]`` of what two batches ``[B, *]`` hold for each datum."""
    return (a.flatten(1) * b.flatten(1)).sum(1)  # three times as fast as torch.linalg.vecdot


def rows_of(x: Tensor, rows: Tensor | None, axis: int = 1) -> Tensor:
    """Return chosen rows of a parameter, which lie on an axis of ``x``; all for ``None``."""
    return x if rows is None else x.index_select(axis, rows.to(x.device))


def moments_at(moments: Moments, rows: Tensor | None) -> Moments:
    """Return moments of a whole parameter at chosen rows."""
    return rows_of(moments[0], rows, axis=0), rows_of(moments[1], rows, axis=0)


def moments_of(gradients: Tensor, rows: Tensor | None = None) -> Moments:
    """Return both moments of individual gradients ``[B, *shape]``."""
    chosen = rows_of(gradients, rows)
    return chosen.sum(0), chosen.square().sum(0)
