"""Points in parameter space as rows of a matrix, and the parameters' blocks in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.autodiff.affine import find_affine
from curvops.tensors import Space

_SQUARES = 2**22
"""Numbers that are squared at a time, for ‖θ‖²."""


@dataclass(frozen=True)
class Form:
    """The points are ``origin + directions @ coefficients``.

    Attributes:
        origin: ``[P]``.
        directions: ``[P, r]``.
        coefficients: ``[r, K]``.
    """

    origin: Tensor
    directions: Tensor
    coefficients: Tensor

    @property
    def num_products(self) -> int:
        """A product with each of them needs so many with the form: 1 + r."""
        return 1 + len(self.coefficients)


class Points:
    """K points, given as a matrix or as what makes them.

    Contiguous rows are used as they are. Others are made of what is given: all of them at once or
    a block after the other, whatever fits the budget.

    Args:
        params: Tensors by name, for shapes and dtypes.
        matrix: Points as rows ``[K, P]``, with any strides; ``None`` if ``form`` makes them.
        form: How they are made, where that is known.
        budget: Bytes that rows may take.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        matrix: Tensor | None,
        form: Form | None = None,
        budget: int = 0,
    ) -> None:
        assert matrix is not None or form is not None
        self._space = Space.of(params)
        self._dtypes = [p.dtype for p in params.values()]
        self._matrix = matrix
        self.form = form
        self._singles: dict[int, dict[str, Tensor]] = {}
        self._first = 0
        self._size = self._num_rows(budget)
        self._block = self.like.new_empty(0, self._space.dim)
        self._is_given = matrix is not None and matrix.is_contiguous()
        if matrix is not None and self._is_given:
            self._block = matrix

    def __len__(self) -> int:
        """Return the number of points K."""
        if self._matrix is not None:
            return len(self._matrix)
        assert self.form is not None
        return self.form.coefficients.shape[1]

    @property
    def like(self) -> Tensor:
        """A tensor of the points' dtype and device."""
        if self._matrix is not None:
            return self._matrix
        assert self.form is not None
        return self.form.origin

    @property
    def num_bytes(self) -> int:
        """Bytes of one point."""
        return self._space.dim * self.like.element_size()

    @property
    def held_bytes(self) -> int:
        """Bytes of rows that are made of what was given."""
        if self._is_given:
            return 0
        # The block before the last one is alive until a point of the last one is visited.
        return min(2 * self._size, len(self)) * self.num_bytes

    def _num_rows(self, budget: int) -> int:
        affordable = budget // max(1, self.num_bytes)
        return max(1, affordable if affordable >= len(self) else affordable // 2)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return a range of points, ``[c, P]``; good until another range is asked for."""
        stop = min(stop, len(self))
        if start < self._first or stop > self._first + len(self._block):
            end = max(stop, min(len(self), start + self._size))
            self._singles.clear()
            self._block = self.like.new_empty(0)  # let go before the next is made
            self._first, self._block = start, self._made(start, end)
        return self._block[start - self._first : stop - self._first]

    def _made(self, start: int, stop: int) -> Tensor:
        if self._matrix is not None:
            return self._matrix[start:stop].contiguous()
        assert self.form is not None
        weights = self.form.coefficients[:, start:stop].T
        return torch.addmm(self.form.origin, weights, self.form.directions.T)

    def one(self, k: int) -> dict[str, Tensor]:
        """Return the parameters of one point, tensors ``[*shape]`` by name."""
        row = self.rows(k, k + 1)[0]
        if k not in self._singles:
            self._singles[k] = self.named(row)
        return self._singles[k]

    def several(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return the parameters of a range of points, tensors ``[c, *shape]`` by name."""
        return self.named(self.rows(start, stop))

    def squares(self) -> Tensor:
        """Return ‖θ‖² of every point, ``[K]``."""
        size = max(1, _SQUARES // max(1, self._space.dim))
        starts = range(0, len(self), size)
        return torch.cat([self.rows(i, i + size).square().sum(1) for i in starts])

    def look_for_form(self) -> None:
        """See whether the points lie on a line or in a plane."""
        if self.form is None and self._matrix is not None:
            found = find_affine(self._matrix)
            self.form = None if found is None else Form(*found)

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Split vectors ``[*, P]`` into tensors ``[*, *shape]`` by name, in their dtypes."""
        parts = rows.split(self._space.numels, dim=-1)
        layout = zip(self._space.names, self._space.shapes, self._dtypes, parts, strict=True)
        leading = rows.shape[:-1]
        return {n: part.view([*leading, *s]).to(dtype) for n, s, dtype, part in layout}
