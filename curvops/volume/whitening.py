r"""Coordinates in which a density looks round, learned from gradients at points drawn from it.

For a density π that falls off at infinity the second moment of its score is its mean curvature,

.. math:: \mathbb{E}\, g g^T = -\mathbb{E}\, \nabla^2 \log\pi, \qquad g = \nabla \log \pi,

so a frame with :math:`F F^T \approx (\mathbb{E}\, g g^T)^{-1}` makes all directions equally
stiff on average. Of the matrix only a structure is learned, from far fewer points than it has
columns: for a parameter that is a matrix ``G`` of ``O`` rows the second moments of its columns,
:math:`\mathbb{E}\, G^T G / O`, the same for every row, otherwise the diagonal. Rows are not told
apart because they may be units of a network, which other points have in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

_LARGEST = 1024
"""More columns than this are scaled but not mixed, their decomposition being too dear."""


@dataclass(frozen=True)
class _Block:
    """The frame of one parameter, a matrix ``[O, I]``."""

    axes: Tensor | None
    scale: Tensor

    def forward(self, y: Tensor) -> Tensor:
        y = self.scale * y
        return y if self.axes is None else y @ self.axes.T

    def adjoint(self, g: Tensor) -> Tensor:
        return self.scale * (g if self.axes is None else g @ self.axes)


@dataclass(frozen=True)
class Whitening:
    """A frame ``F``: a square matrix, parameter by parameter.

    Example:
        Gradients a hundred times steeper along the first of two directions.

        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> g = torch.randn(500, 2, generator=generator) * torch.tensor([100.0, 1.0])
        >>> frame = Whitening.learn(g, torch.full((500,), 1 / 500))
        >>> frame.forward(torch.ones(1, 2)).round(decimals=2)
        tensor([[0.0100, 0.9400]])
    """

    blocks: tuple[_Block, ...]
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def learn(
        cls,
        gradients: Tensor,
        weights: Tensor,
        shapes: Sequence[torch.Size] | None = None,
        floor: float = 0.0,
    ) -> Whitening:
        """Learn a frame from scores at weighted points.

        Args:
            gradients: ``g`` ``[N, P]``, one point a row.
            weights: Of the points, ``[N]``, nonnegative with sum one.
            shapes: The shapes of the parameters; None learns the diagonal.
            floor: The least curvature that any direction has.
        """
        if shapes is None:
            shapes = [torch.Size([gradients.shape[1]])]
        sides = tuple(_sides(shape) for shape in shapes)
        parts = gradients.split([rows * columns for rows, columns in sides], dim=1)
        blocks = [
            _learn(part.reshape(-1, *side), weights.to(part), floor)
            for part, side in zip(parts, sides, strict=True)
        ]
        return cls(tuple(blocks), sides)

    def forward(self, y: Tensor) -> Tensor:
        """Return ``F y`` of rows ``[M, P]``."""
        return self._map(y, adjoint=False)

    def adjoint(self, g: Tensor) -> Tensor:
        """Return ``Fᵀ g`` of rows ``[M, P]``: gradients by ``y`` from those by ``F y``."""
        return self._map(g, adjoint=True)

    def _map(self, rows: Tensor, adjoint: bool) -> Tensor:
        parts = rows.split([prod(side) for side in self.shapes], dim=1)
        mapped = []
        for block, part, side in zip(self.blocks, parts, self.shapes, strict=True):
            matrix = part.reshape(-1, *side)
            image = block.adjoint(matrix) if adjoint else block.forward(matrix)
            mapped.append(image.reshape(part.shape))
        return torch.cat(mapped, dim=1)


def _sides(shape: torch.Size) -> tuple[int, int]:
    """Return a parameter's shape as a matrix: outputs by all the rest."""
    return (shape[0] if shape else 1, prod(shape[1:]))


def _learn(gradients: Tensor, weights: Tensor, floor: float) -> _Block:
    """Learn the frame of one parameter from its gradients ``[N, O, I]``."""
    number, rows, columns = gradients.shape
    weighted = weights.sqrt().reshape(-1, 1, 1) * gradients
    if columns == 1 or columns > _LARGEST:
        moments = weighted.square().sum(0).to(torch.float64)
        if columns > 1:
            moments = moments.mean(0, keepdim=True)
        return _Block(None, _scale(moments, floor).to(gradients))
    flat = weighted.reshape(-1, columns)
    second = (flat.T @ flat).to(torch.float64) / rows
    # Few gradients make small eigenvalues too small; the diagonal, which they know, steadies them.
    # Ten times as many as columns need next to nothing: a small curvature then stays small.
    share = columns**2 / (columns**2 + (number * rows) ** 2)
    second = (1 - share) * second + share * torch.diag(second.diagonal())
    values, axes = torch.linalg.eigh(second)
    return _Block(axes.to(gradients), _scale(values, floor).to(gradients))


def _scale(moments: Tensor, floor: float) -> Tensor:
    """Return one over the root of the curvatures, bounded from below."""
    least = max(floor, 1e-8 * float(moments.max()), torch.finfo(torch.float32).tiny)
    return moments.clamp(min=least).rsqrt()
