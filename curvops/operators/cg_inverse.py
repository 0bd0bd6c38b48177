"""The inverse of a positive definite operator, one linear system a product."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from curvops.errors import ShapeError
from curvops.linalg.conjugate_gradients import ConjugateGradients
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.matrix import Matrix, Products
from curvops.operators.linear import LinearOperator
from curvops.tensors import Space

STEPS_AHEAD = 10
"""Steps that are announced to the operator for every product with its inverse."""


class CGInverseLinearOperator(LinearOperator):
    r"""The operator :math:`(A + \delta I)^{-1}` by preconditioned conjugate gradients.

    A product solves one system a column, to the tolerance of
    :func:`~curvops.linalg.solve.solve`, which takes the same options and returns the residuals.
    The result is linear and symmetric to that tolerance.

    Args:
        A: A symmetric operator (or dense tensor, or another library's operator) ``[P, P]``,
            positive definite after the shift. One that does not say that it is symmetric is
            asked by two products.
        shift: δ, also called damping.
        preconditioner: A positive definite matrix ``[P, P]`` close to the inverse.
        rtol: Relative residual of each column; by default the root of the dtype's rounding.
        atol: Absolute residual; the larger of the two counts.
        max_iter: Most steps of a column; by default 10 P, at most 1000.

    Raises:
        ShapeError: If ``A`` does not map a space to itself.
        InputError: If it is not symmetric, or an option is impossible. When multiplying:
            IndefiniteError if a direction of negative curvature is met.

    Warns:
        UnconvergedWarning: When multiplying, if a column has not converged; with the remedy.

    Source:
        Hestenes & Stiefel 1952, Methods of conjugate gradients for solving linear systems.

    Example:
        >>> import torch
        >>> from curvops.operators.diagonal import DiagonalLinearOperator
        >>> A = DiagonalLinearOperator(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> CGInverseLinearOperator(A, shift=1.0) @ torch.ones(2, dtype=torch.float64)
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """

    SELF_ADJOINT = True

    def __init__(
        self,
        A: Matrix,
        *,
        shift: float = 0.0,
        preconditioner: Matrix | None = None,
        rtol: float | None = None,
        atol: float = 0.0,
        max_iter: int | None = None,
    ) -> None:
        self._cg = ConjugateGradients(shift, rtol, atol, max_iter, preconditioner)
        products = Products(A)
        space = space_of(A, products)
        super().__init__(space, space, products.dtype, products.device)
        self._cg.check(products)
        self.A = A
        self.POSITIVE_SEMIDEFINITE = products.is_psd and shift >= 0

    @property
    def damping(self) -> float:
        """The δ of this inverse."""
        return float(self._cg.shift)

    @property
    def product_error(self) -> float:
        """Error of products, relative to the norm of the inverse: the tolerance of the solver."""
        rounding = float(torch.finfo(self.dtype).eps)
        return rounding**0.5 if self._cg.rtol is None else max(rounding, self._cg.rtol)

    def prepare(self, num_products: int) -> CGInverseLinearOperator:
        """Announce products with the inverse, each of which is several with the operator."""
        Products(self.A).prepare(STEPS_AHEAD * num_products)
        return self

    def _matmat(self, X: Tensor) -> Tensor:
        answer = self._cg(Products(self.A), X)
        complaint = answer.complaint(self.dtype)
        if complaint:
            warnings.warn(f"{type(self).__name__}: {complaint}", UnconvergedWarning, stacklevel=4)
        return answer.x.to(self.dtype)


def space_of(A: Matrix, products: Products) -> Space:
    """Return the space that a square matrix acts on.

    Raises:
        ShapeError: If it maps one space to another of the same dimension.
    """
    if not isinstance(A, LinearOperator):
        return Space.flat(products.dim)
    if A.in_space != A.out_space:
        raise ShapeError(f"{A!r} maps one space to another; only A = Aᵀ has this inverse.")
    return A.in_space
