"""Where the vectors of a pass over the data come from, and where their products go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.autodiff import Blocks
from curvops.tensors import BlockSum, Space


class ParameterVectors:
    """Vectors in parameter space: every batch takes the whole of them.

    Args:
        space: The space.
        params: Its tensors, whose dtypes the vectors take.
    """

    def __init__(self, space: Space, params: Iterable[Tensor]) -> None:
        self._space, self._dtypes = space, [p.dtype for p in params]

    def at(self, shape: torch.Size | None) -> None:
        """Go to the next batch."""

    def take(self, columns: Tensor) -> Blocks:
        """Split ``[P]`` or ``[c, P]`` into one tensor per parameter."""
        views = self._space.views_of(columns)
        return [view.to(dtype) for view, dtype in zip(views, self._dtypes, strict=True)]


class ParameterSums:
    """Products in parameter space, summed over the batches.

    Args:
        space: The space.
        like: Columns ``[K, *]``, for their number, dtype and device.
    """

    def __init__(self, space: Space, like: Tensor) -> None:
        self._sum = BlockSum(space, like.new_empty(len(like), space.dim))
        self.add = self._sum.add

    def at(self, shape: torch.Size | None) -> None:
        """Go to the next batch."""

    @property
    def value(self) -> Tensor:
        """The sums ``[K, P]``."""
        return self._sum.value


class _Predictions:
    """The rows of one batch after the other among those of all predictions."""

    _rows, _shape = slice(0, 0), torch.Size()

    def at(self, shape: torch.Size | None) -> None:
        """Go to the next batch, whose predictions have this shape."""
        assert shape is not None
        start = self._rows.stop
        self._rows, self._shape = slice(start, start + shape.numel()), shape


class PredictionVectors(_Predictions):
    """Vectors of the predictions' shape: every batch takes its rows."""

    def take(self, columns: Tensor) -> Blocks:
        """Return the batch's rows of ``[N·C]`` or ``[c, N·C]``, in the predictions' shape."""
        return [columns[..., self._rows].reshape(*columns.shape[:-1], *self._shape)]


class PredictionRows(_Predictions):
    """Products of the predictions' shape, stacked over the batches.

    Args:
        value: What they are written to, ``[K, N·C]``.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def add(self, first: int, count: int, product: Blocks) -> None:
        """Write the batch's rows of some columns."""
        self.value[first : first + count, self._rows] = product[0].reshape(count, -1)


@dataclass(frozen=True)
class Between:
    """Both ends of a product.

    Attributes:
        source: Where vectors come from.
        target: Where products go.
    """

    source: ParameterVectors | PredictionVectors
    target: ParameterSums | PredictionRows

    def at(self, shape: torch.Size | None) -> None:
        """Go to the next batch."""
        self.source.at(shape)
        self.target.at(shape)

    def take(self, columns: Tensor) -> Blocks:
        """Return what a batch multiplies of the columns."""
        return self.source.take(columns)

    def add(self, first: int, count: int, product: Blocks) -> None:
        """Take the products of a range of columns."""
        self.target.add(first, count, product)
