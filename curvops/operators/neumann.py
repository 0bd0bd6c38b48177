"""The inverse of an operator as a truncated geometric series."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.conjugate_gradients import require_symmetric
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.indefinite import indefinite
from curvops.linalg.lanczos import lanczos
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.sampling import check_tolerance
from curvops.operators.cg_inverse import space_of
from curvops.operators.linear import LinearOperator, check_positive

GROWTH = 1e3
"""A term that has grown by more roundings than this has grown."""


class NeumannInverseLinearOperator(LinearOperator):
    r"""The truncated Neumann series of the inverse.

    .. math:: A^{-1} \approx s \sum_{k=0}^{K} (I - s A)^k, \qquad
        0 < \lambda(A) < 2 / s

    What is left of a column ``b`` after ``K`` terms is :math:`(I - sA)^{K+1} b`. A product costs
    K products of ``A``. Conjugate gradients need the root of that number for the same residual
    (:class:`~curvops.operators.cg_inverse.CGInverseLinearOperator`); the series is exactly linear,
    and on purpose truncated it regularises.

    Args:
        A: A symmetric operator (or dense tensor, or another library's operator) ``[P, P]``.
        num_terms: K.
        scale: s, less than two over the largest eigenvalue; one over it is a good choice.
        rtol: Warn if more than this of a column may be left; by default the root of the dtype's
            rounding. ``math.inf`` for a series that is truncated on purpose.

    Raises:
        ShapeError: If ``A`` does not map a space to itself.
        InputError: If ``A`` is not symmetric, or an option is impossible. When multiplying: if
            the series diverges, with a scale that is small enough; IndefiniteError if no scale
            is, with a shift that helps.

    Warns:
        UnconvergedWarning: When multiplying, if the series has not converged; with the remedy.

    Source:
        Lorraine, Vicol & Duvenaud 2020, Optimizing millions of hyperparameters by implicit
        differentiation, section 4.1.

    Example:
        >>> import torch
        >>> from curvops.operators.diagonal import DiagonalLinearOperator
        >>> A = DiagonalLinearOperator(torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> NeumannInverseLinearOperator(A, scale=0.7) @ torch.ones(2, dtype=torch.float64)
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    SELF_ADJOINT = True

    def __init__(
        self, A: Matrix, *, num_terms: int = 100, scale: float = 1.0, rtol: float | None = None
    ) -> None:
        self.num_terms = check_positive(num_terms, "num_terms")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise InputError(f"scale must be a positive number, got {scale!r}.")
        if not 0.0 < scale < math.inf:
            raise InputError(f"scale must be positive and finite, got {scale!r}.")
        check_tolerance("rtol", rtol)
        products = Products(A)
        space = space_of(A, products)
        super().__init__(space, space, products.dtype, products.device)
        require_symmetric(products, "the Neumann series with its check of convergence needs")
        self.A, self.scale = A, float(scale)
        self.rtol = products.eps**0.5 if rtol is None else float(rtol)
        # For |r| <= 1 the sum of r^k is nonnegative; where that fails, products raise.
        self.POSITIVE_SEMIDEFINITE = products.is_psd

    def prepare(self, num_products: int) -> NeumannInverseLinearOperator:
        """Announce products with the inverse, each of which is ``num_terms`` of the operator."""
        Products(self.A).prepare(self.num_terms * num_products)
        return self

    def _matmat(self, X: Tensor) -> Tensor:
        products = Products(self.A)
        products.prepare(self.num_terms * X.shape[1])
        term = X.to(torch.float64)
        total, start = term.clone(), term.norm(dim=0)
        norms = start
        for _ in range(self.num_terms):
            following = term - self.scale * products(term)
            grown = following.norm(dim=0)
            # If |1 - s λ| <= 1 for every λ, no term of a symmetric A is larger than the last.
            if bool((grown > (1 + GROWTH * products.eps) * norms).any()):
                ratio = grown / norms.clamp(min=torch.finfo(torch.float64).tiny)
                self._diverges(products, term[:, int(ratio.argmax())], float(ratio.max()))
            term, norms = following, grown
            total += term
        left = float((norms / start.clamp(min=torch.finfo(torch.float64).tiny)).max())
        if left > self.rtol:
            warnings.warn(
                f"NeumannInverseLinearOperator: up to {left:.2g} of a column is left after "
                f"{self.num_terms} terms. Raise num_terms, choose scale near 1/λ_max, shift A, or "
                "use CGInverseLinearOperator; rtol=math.inf if you truncate on purpose.",
                UnconvergedWarning,
                stacklevel=4,
            )
        return (self.scale * total).to(self.dtype)

    def _diverges(self, products: Products, term: Tensor, ratio: float) -> None:
        """Raise the error of a term that grows under ``I - s A``."""
        T = lanczos(products, term.unsqueeze(1), 30)
        values = torch.linalg.eigvalsh(T.dense()[0])
        largest = float(values[-1] + T.beta[0, -1].abs())
        if float(values[0]) < -GROWTH * products.eps * float(values.abs().max()):
            raise indefinite(products, term, 0.0, "the Neumann series")
        raise InputError(
            f"the Neumann series diverges: scale={self.scale:g}, and a term grows by "
            f"{ratio:.4g}. The largest Ritz value of A is {float(values[-1]):.4g}; use a scale "
            f"below {2 / largest:.3g}, best about {1 / largest:.3g}."
        )
