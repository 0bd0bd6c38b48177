"""What the algorithms ask of a matrix: a shape, a dtype, a device and ``@``.

Operators of curvops, dense tensors and other libraries' operators all have these. Inside, an
algorithm speaks to :class:`Products`, which checks once, multiplies and counts.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch
from torch import Tensor

from curvops.errors import DTypeError, InputError, NonFiniteError, ShapeError


class Matrix(Protocol):
    """A real matrix ``[M, N]`` known by its products with ``[N]`` or ``[N, K]`` tensors."""

    @property
    def shape(self) -> Any:
        """``(M, N)``."""

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""

    @property
    def device(self) -> torch.device:
        """Where products are computed."""

    def __matmul__(self, x: Any) -> Any:
        """Return the product with a tensor ``[N]`` or ``[N, K]``."""


class Products:
    """A square matrix that is multiplied and counted.

    Args:
        A: The matrix ``[P, P]``.
        name: What errors call it.

    Attributes:
        dim: P.
        dtype: What products are computed in.
        device: Where.
        num_matvecs: Columns multiplied so far.
        seconds: Time spent multiplying so far.

    Raises:
        ShapeError: If the matrix is not square.
        DTypeError: If it is not real floating.
        InputError: If it is no matrix at all.
    """

    def __init__(self, A: Matrix, name: str = "A") -> None:
        missing = [a for a in ("shape", "dtype", "device", "__matmul__") if not hasattr(A, a)]
        if missing or not isinstance(A.dtype, torch.dtype):
            raise InputError(
                f"{name} is {type(A).__name__}; it needs shape, dtype, device and @ on torch "
                "tensors: an operator, or a dense tensor."
            )
        shape = tuple(A.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ShapeError(f"{name} has shape {list(shape)}; expected a square matrix [P, P].")
        if not A.dtype.is_floating_point:
            raise DTypeError(f"{name} has dtype {A.dtype}; expected a real floating dtype.")
        self._A, self._name = A, name
        self.dim = int(shape[0])
        self.dtype, self.device = A.dtype, torch.device(A.device)
        self.num_matvecs = 0
        self.seconds = 0.0

    @property
    def eps(self) -> float:
        """Relative rounding of the dtype that products are computed in."""
        return float(torch.finfo(self.dtype).eps)

    @property
    def is_psd(self) -> bool:
        """Whether the matrix says of itself that it is positive semidefinite."""
        return bool(getattr(self._A, "POSITIVE_SEMIDEFINITE", False))

    def prepare(self, num_matvecs: int) -> None:
        """Announce products, where the matrix can make use of knowing."""
        announce = getattr(self._A, "prepare", None)
        if callable(announce) and not isinstance(self._A, Tensor):
            announce(num_matvecs)

    def __call__(self, X: Tensor) -> Tensor:
        """Return ``A X`` in the dtype and on the device of ``X``.

        Args:
            X: ``[P]`` or ``[P, K]`` of any real floating dtype.

        Raises:
            NonFiniteError: If the product holds NaN or infinity.
        """
        start = time.perf_counter()
        raw = self._A @ X.to(self.device, self.dtype)
        product: Tensor = raw.to(X.device, X.dtype)
        if not bool(torch.isfinite(product).all()):
            raise NonFiniteError(
                f"the product of {self._name} with a finite vector holds NaN or infinity: it "
                f"overflows in {self.dtype}, or the matrix holds such values."
            )
        self.num_matvecs += 1 if X.ndim == 1 else X.shape[1]
        self.seconds += time.perf_counter() - start
        return product
