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

    Args:
        params: Tensors by name, for shapes and dtypes.
        rows: ``[K, P]``; ``None`` if they are made when they are needed.
        form: How they are made, where that is known.
    """

    def __init__(
        self, params: Mapping[str, Tensor], rows: Tensor | None, form: Form | None = None
    ) -> None:
        assert rows is not None or form is not None
        self._space = Space.of(params)
        self._dtypes = [p.dtype for p in params.values()]
        self._rows = None if rows is None else rows.contiguous()
        self._singles: dict[int, dict[str, Tensor]] = {}
        self.form = form

    def __len__(self) -> int:
        """Return the number of points K."""
        if self._rows is not None:
            return len(self._rows)
        assert self.form is not None
        return self.form.coefficients.shape[1]

    @property
    def like(self) -> Tensor:
        """A tensor of the points' dtype and device."""
        if self._rows is not None:
            return self._rows
        assert self.form is not None
        return self.form.origin

    @property
    def num_bytes(self) -> int:
        """Bytes of one point."""
        return self._space.dim * self.like.element_size()

    def hold(self, budget: int) -> None:
        """Make the rows now if they fit the budget, instead of whenever they are needed."""
        if self._rows is None and len(self) * self.num_bytes <= budget:
            self._rows = self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> Tensor:
        """Return a range of points, ``[c, P]``."""
        if self._rows is not None:
            return self._rows[start:stop]
        assert self.form is not None
        weights = self.form.coefficients[:, start:stop].T
        return torch.addmm(self.form.origin, weights, self.form.directions.T)

    def one(self, k: int) -> dict[str, Tensor]:
        """Return the parameters of one point, tensors ``[*shape]`` by name."""
        if self._rows is None:
            return self.named(self.rows(k, k + 1)[0])
        if k not in self._singles:
            self._singles[k] = self.named(self._rows[k])
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
        if self.form is None and self._rows is not None:
            found = find_affine(self._rows)
            self.form = None if found is None else Form(*found)

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Split vectors ``[*, P]`` into tensors ``[*, *shape]`` by name, in their dtypes."""
        parts = rows.split(self._space.numels, dim=-1)
        layout = zip(self._space.names, self._space.shapes, self._dtypes, parts, strict=True)
        leading = rows.shape[:-1]
        return {n: part.view([*leading, *s]).to(dtype) for n, s, dtype, part in layout}
