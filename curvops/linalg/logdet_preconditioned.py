r"""A log-determinant relative to that of a matrix that is known.

.. math:: \log\det(A + \delta I) = \log\det M + \operatorname{tr}\log
    M^{-1/2} (A + \delta I) M^{-1/2}

The closer M is to A + δI, the closer the eigenvalues in the trace are to one, its logarithms to
zero, and the probes to one another.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.linalg.matrix import Matrix, Products


class Preconditioner(Protocol):
    """A positive definite approximation M of A + δI, with what is needed of it."""

    def logdet(self) -> float:
        """Return log det M."""

    def inverse_sqrt(self) -> Any:
        """Return the symmetric M^(-1/2) ``[P, P]``, anything with ``@``."""


class Preconditioned:
    """The matrix M^(-1/2) (A + δI) M^(-1/2), known by its products.

    Args:
        A: The matrix.
        shift: δ.
        preconditioner: M.

    Raises:
        InputError: If the preconditioner lacks one of its two methods.
        ShapeError: If it does not fit.
    """

    def __init__(self, A: Matrix, shift: float, preconditioner: Preconditioner) -> None:
        missing = [
            name
            for name in ("logdet", "inverse_sqrt")
            if not callable(getattr(preconditioner, name, None))
        ]
        if missing:
            raise InputError(
                f"preconditioner is {type(preconditioner).__name__}, which has no "
                f"{' and no '.join(missing)}(); it needs logdet() and inverse_sqrt()."
            )
        products = Products(A)
        self._A, self._shift = A, shift
        self._root = preconditioner.inverse_sqrt()
        if tuple(self._root.shape) != (products.dim, products.dim):
            raise ShapeError(
                f"preconditioner.inverse_sqrt() has shape {list(self._root.shape)}; expected "
                f"{[products.dim, products.dim]}."
            )
        self.shape, self.dtype, self.device = (products.dim,) * 2, products.dtype, products.device
        self._prepare = products.prepare

    def prepare(self, num_matvecs: int) -> None:
        """Announce products."""
        self._prepare(num_matvecs)

    def __matmul__(self, x: Tensor) -> Tensor:
        """Return the product with ``[P]`` or ``[P, K]``."""
        y = self._root @ x
        product: Tensor = self._root @ (self._A @ y + self._shift * y)
        return product
