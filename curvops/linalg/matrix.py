"""What the algorithms ask of a matrix: a shape, a dtype, a device and ``@``.

Operators of curvops, dense tensors and other libraries' operators all have these. Inside, an
algorithm speaks to :class:`Products`, which checks once, multiplies and counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

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
        square: Whether another shape ``[M, N]`` is an error.

    Attributes:
        dim: P, the length of the vectors it is multiplied with (N).
        rows: The length of the products (M).
        dtype: What products are computed in.
        device: Where.
        num_matvecs: Columns multiplied so far.
        seconds: Time spent multiplying so far.

    Raises:
        ShapeError: If the matrix is not square.
        DTypeError: If it is not real floating.
        InputError: If it is no matrix at all.
    """

    def __init__(self, A: Matrix, name: str = "A", *, square: bool = True) -> None:
        missing = [a for a in ("shape", "dtype", "device", "__matmul__") if not hasattr(A, a)]
        if missing or not isinstance(A.dtype, torch.dtype):
            raise InputError(
                f"{name} is {type(A).__name__}; it needs shape, dtype, device and @ on torch "
                "tensors: an operator, or a dense tensor."
            )
        shape = tuple(A.shape)
        if len(shape) != 2 or (square and shape[0] != shape[1]):
            expected = "a square matrix [P, P]" if square else "a matrix [M, N]"
            raise ShapeError(f"{name} has shape {list(shape)}; expected {expected}.")
        if not A.dtype.is_floating_point:
            raise DTypeError(f"{name} has dtype {A.dtype}; expected a real floating dtype.")
        self._A, self._name = A, name
        self.rows, self.dim = int(shape[0]), int(shape[1])
        # Some operators without data of their own say that they live nowhere.
        device: torch.device | None = A.device
        self.dtype, self.device = A.dtype, torch.device("cpu" if device is None else device)
        self.num_matvecs = 0
        self.seconds = 0.0
        self._bar: tqdm[Any] | None = None

    @property
    def eps(self) -> float:
        """Relative error of products: the rounding of their dtype, or more if the matrix says so.

        Operators whose products are iterated to a tolerance have it as ``product_error``,
        relative to their norm.
        """
        rounding = float(torch.finfo(self.dtype).eps)
        return max(rounding, float(getattr(self._A, "product_error", 0.0)))

    @property
    def is_psd(self) -> bool:
        """Whether the matrix says of itself that it is positive semidefinite."""
        return bool(getattr(self._A, "POSITIVE_SEMIDEFINITE", False))

    @property
    def is_self_adjoint(self) -> bool:
        """Whether the matrix says of itself that it is symmetric."""
        return bool(getattr(self._A, "SELF_ADJOINT", False)) or self.is_psd

    def prepare(self, num_matvecs: int) -> None:
        """Announce products, where the matrix can make use of knowing."""
        announce = getattr(self._A, "prepare", None)
        if callable(announce) and not isinstance(self._A, Tensor):
            announce(num_matvecs)

    def adjoint(self) -> Products:
        """Return the products with the transpose, counted apart.

        Raises:
            InputError: If the matrix does not know its transpose.
        """
        transpose = self._A.mT if isinstance(self._A, Tensor) else getattr(self._A, "T", None)
        if transpose is None:
            raise InputError(f"{self._name} is {type(self._A).__name__}, which has no transpose T.")
        return Products(transpose, f"{self._name}.T", square=False)

    @contextmanager
    def progress(self, show: bool, what: str, total: int | None = None) -> Iterator[None]:
        """Show one bar over the products that are made within the ``with`` block.

        Args:
            show: Whether to show it at all.
            what: What the bar is called.
            total: The number of products, where it is known.
        """
        if not show:
            yield
            return
        with tqdm(total=total, desc=what, unit="matvec", leave=False) as self._bar:
            try:
                yield
            finally:
                self._bar = None

    def __call__(self, X: Tensor) -> Tensor:
        """Return ``A X`` in the dtype and on the device of ``X``.

        Args:
            X: ``[P]`` or ``[P, K]`` of any real floating dtype.

        Raises:
            NonFiniteError: If the product holds NaN or infinity.
        """
        start = time.perf_counter()
        raw = self._A @ X.to(self.device, self.dtype)
        product: Tensor = raw.detach().to(X.device, X.dtype)
        # The sum alone tells, as a rule, in a third of the time; finite numbers may overflow it.
        if not (math.isfinite(float(product.sum())) or bool(torch.isfinite(product).all())):
            raise NonFiniteError(
                f"the product of {self._name} with a finite vector holds NaN or infinity: it "
                f"overflows in {self.dtype}, or the matrix holds such values."
            )
        count = 1 if X.ndim == 1 else X.shape[1]
        self.num_matvecs += count
        if self._bar is not None:
            self._bar.update(count)
        self.seconds += time.perf_counter() - start
        return product
