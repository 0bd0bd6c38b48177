r"""How much two subspaces have in common, and how much of a gradient lies in one.

.. math:: \frac{\operatorname{Tr}(P_1 P_2)}{\min(k_1, k_2)}, \qquad
    \frac{\|P g\|^2}{\|g\|^2}

with orthogonal projections P on k dimensions of P. Both are 1 where one lies inside the other, and
k/P on average where the directions are random: numbers mean something beside that level.

They describe. That most of a gradient lies in the top eigenspace of the Hessian does not make this
subspace the one in which training happens: updates projected on it do not train (Song, Ahn & Yun,
Does SGD really happen in tiny subspaces?, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.landscape.storage import Stored
from curvops.linalg.eigen_result import EighResult

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

Subspace = Union[Tensor, EighResult]
"""Columns ``[P, k]`` that span it, of any lengths, or eigenpairs."""


@dataclass(frozen=True, eq=False)
class SubspaceOverlap(Stored):
    """What two subspaces have in common.

    Attributes:
        overlap: Tr(P₁P₂)/min(k₁, k₂), in [0, 1].
        random: What it is on average for a random subspace: max(k₁, k₂)/P.
        cosines: Of the principal angles, descending ``[min(k₁, k₂)]``; the overlap is the mean of
            their squares.
        dims: k₁ and k₂.
        dim: P.
    """

    overlap: float
    random: float
    cosines: Tensor
    dims: tuple[int, int]
    dim: int

    def __float__(self) -> float:
        """Return the overlap."""
        return self.overlap

    def __str__(self) -> str:
        """Return the overlap beside the random level."""
        return (
            f"overlap {self.overlap:.4f} of {self.dims[0]} and {self.dims[1]} dimensions "
            f"(random {self.random:.2g})"
        )


def subspace_overlap(first: Subspace, second: Subspace) -> SubspaceOverlap:
    r"""Return what two subspaces have in common.

    .. math::
        \frac{\operatorname{Tr}(P_1 P_2)}{\min(k_1, k_2)}
        = \frac{\|Q_1^T Q_2\|_F^2}{\min(k_1, k_2)}

    Args:
        first: Columns ``[P, k₁]``, linearly independent, or eigenpairs.
        second: Columns ``[P, k₂]``, likewise.

    Raises:
        ShapeError: If they do not live in the same space, or there are more columns than rows.
        InputError: If columns are linearly dependent, or a result has no eigenvectors.
        NonFiniteError: If a column holds NaN or infinity.

    Source:
        Gur-Ari, Roberts & Dyer, Gradient descent happens in a tiny subspace, 2018, Section 3.

    Example:
        >>> import torch
        >>> E = torch.eye(4)
        >>> print(subspace_overlap(E[:, :2], E[:, 1:3]))
        overlap 0.5000 of 2 and 2 dimensions (random 0.5)
    """
    one, other = orthonormal(first, "first"), orthonormal(second, "second")
    if one.shape[0] != other.shape[0]:
        raise ShapeError(
            f"first lives in {one.shape[0]} dimensions, second in {other.shape[0]}; expected the "
            "same space."
        )
    cosines = torch.linalg.svdvals(one.T @ other.to(one.device)).clamp(max=1.0)
    dims = (one.shape[1], other.shape[1])
    return SubspaceOverlap(
        overlap=float(cosines.square().mean()),
        random=max(dims) / one.shape[0],
        cosines=cosines.cpu(),
        dims=dims,
        dim=one.shape[0],
    )


@dataclass(frozen=True, eq=False)
class GradientShare(Stored):
    """How much of a gradient lies in a subspace.

    Attributes:
        share: ‖Pg‖²/‖g‖², in [0, 1].
        random: What it is on average for a random subspace: k/P.
        norm: ‖g‖.
    """

    share: float
    random: float
    norm: float

    def __float__(self) -> float:
        """Return the share."""
        return self.share

    def __str__(self) -> str:
        """Return the share beside the random level."""
        return f"{self.share:.1%} of the gradient (random {self.random:.2g})"


def gradient_share(gradient: Tensor | EmpiricalRisk, subspace: Subspace) -> GradientShare:
    r"""Return the share of a gradient that lies in a subspace.

    .. math:: \|P g\|^2 / \|g\|^2

    Args:
        gradient: A flat gradient ``[P]``, or a risk, whose gradient it is.
        subspace: Columns ``[P, k]``, or eigenpairs.

    Raises:
        InputError: If the gradient is zero.
        ShapeError: If it does not fit the subspace.
        NonFiniteError: If it holds NaN or infinity.

    Source:
        Gur-Ari, Roberts & Dyer, Gradient descent happens in a tiny subspace, 2018, Eq. (3).

    Example:
        >>> import torch
        >>> print(gradient_share(torch.tensor([3.0, 4.0]), torch.tensor([[2.0], [0.0]])))
        36.0% of the gradient (random 0.5)
    """
    g = gradient if isinstance(gradient, Tensor) else gradient.gradient()
    basis = orthonormal(subspace, "subspace")
    if g.shape != (basis.shape[0],):
        raise ShapeError(
            f"gradient has shape {list(g.shape)}; expected [{basis.shape[0]}], as the subspace."
        )
    g = g.detach().to(basis)
    norm = float(g.norm())
    if not norm < float("inf"):
        raise NonFiniteError("the gradient holds NaN or infinity.")
    if norm == 0:
        raise InputError("the gradient is zero: there is no share of it.")
    inside = float((basis.T @ (g / norm)).square().sum())
    return GradientShare(share=min(inside, 1.0), random=basis.shape[1] / len(g), norm=norm)


def orthonormal(subspace: Subspace, what: str) -> Tensor:
    """Return an orthonormal basis of a subspace, ``[P, k]`` in float64.

    Raises:
        ShapeError: If it is not given as columns, or has more columns than rows.
        InputError: If columns are linearly dependent or missing.
        NonFiniteError: If one holds NaN or infinity.
    """
    columns = subspace.eigenvectors if isinstance(subspace, EighResult) else subspace
    if columns is None:
        raise InputError(f"{what} has no eigenvectors; compute it with return_eigenvectors=True.")
    if not isinstance(columns, Tensor):
        raise InputError(f"{what} is {type(columns).__name__}; expected columns [P, k].")
    if columns.ndim != 2 or not 1 <= columns.shape[1] <= columns.shape[0]:
        raise ShapeError(
            f"{what} has shape {list(columns.shape)}; expected columns [P, k] with 1 ≤ k ≤ P."
        )
    columns = columns.detach().double()
    if not bool(torch.isfinite(columns).all()):
        raise NonFiniteError(f"{what} holds NaN or infinity.")
    norms = columns.norm(dim=0)
    if bool((norms == 0).any()):
        raise InputError(f"column {int((norms == 0).nonzero()[0])} of {what} is zero.")
    Q: Tensor
    Q, R = torch.linalg.qr(columns / norms)
    if float(R.diagonal().abs().min()) < 1e-6:
        raise InputError(f"the columns of {what} are linearly dependent, so k is not what it says.")
    return Q
