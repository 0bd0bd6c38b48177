"""Linear maps known by their products: the base class of every operator.

An operator ``A`` maps :class:`~curvops.tensors.Space` to ``Space``. ``A @ x`` takes a vector or a
matrix of columns in flat, list or dict format and answers in the same format; inside, everything
is one flat matrix ``[N, K]``, and a subclass says only how such a matrix is multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from curvops.errors import DTypeError, InputError
from curvops.tensors import Space

if TYPE_CHECKING:
    from curvops.operators.scipy_export import SciPyLinearOperator

Scalar: TypeAlias = "float | np.number[Any] | Tensor"
"""A finite real number: Python's, NumPy's, or a tensor without dimensions."""


class LinearOperator:
    r"""A matrix ``A`` of shape ``[M, N]`` that is never formed.

    A subclass implements :meth:`_matmat`, and for its transpose either :meth:`_adjoint` (return
    an operator), or :meth:`_rmatmat` (multiply with ``Aᵀ``), or neither if ``SELF_ADJOINT``.
    Operators compose: ``A + B``, ``A - B``, ``-A``, ``2 * A``, ``A / 2``, ``A @ B``, ``A.T``,
    ``A.shift(delta)``.

    Args:
        in_space: The space ``R^N`` of ``x`` in ``A @ x``.
        out_space: The space ``R^M`` of ``A @ x``.
        dtype: The real floating dtype of the products.
        device: The device of the products.

    Attributes:
        SELF_ADJOINT: Whether ``A = Aᵀ`` (then both spaces are equal).
        POSITIVE_SEMIDEFINITE: Whether ``A = Aᵀ`` and ``xᵀ A x >= 0`` for every ``x``. ``False``
            means "not known".

    Raises:
        DTypeError: If ``dtype`` is not real floating.

    Example:
        >>> import torch
        >>> from curvops.tensors import Space
        >>> class Reverse(LinearOperator):
        ...     SELF_ADJOINT = True
        ...
        ...     def _matmat(self, X):
        ...         return X.flip(0)
        >>> space = Space.flat(3)
        >>> A = Reverse(space, space, torch.float64, "cpu")
        >>> (2 * A).shift(1.0) @ torch.tensor([1.0, 2.0, 3.0])
        tensor([7., 6., 5.], dtype=torch.float64)
    """

    SELF_ADJOINT: bool = False
    POSITIVE_SEMIDEFINITE: bool = False

    # NumPy must hand `array @ op` and `np.float64(2) * op` to this class instead of looping.
    __array_ufunc__ = None
    __array_priority__ = 1000.0

    def __init__(
        self,
        in_space: Space,
        out_space: Space,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        if not dtype.is_floating_point:
            raise DTypeError(f"{type(self).__name__} needs a real floating dtype, not {dtype}.")
        self.in_space = in_space
        self.out_space = out_space
        self.dtype = dtype
        # "cuda" and "cuda:0" compare unequal; a tensor's device always has its index.
        self.device = torch.empty(0, device=device).device

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, N)``, the dimensions of the two spaces."""
        return self.out_space.dim, self.in_space.dim

    def __repr__(self) -> str:
        """Return shape, class, dtype, device and what is known about the spectrum."""
        rows, cols = self.shape
        tags = ", self-adjoint" if self.SELF_ADJOINT else ""
        tags += ", positive semidefinite" if self.POSITIVE_SEMIDEFINITE else ""
        return f"<{rows}x{cols} {type(self).__name__}: {self.dtype} on {self.device}{tags}>"

    # What subclasses say ----------------------------------------------------------------------

    def _matmat(self, X: Tensor) -> Tensor:
        """Return ``A X``.

        Args:
            X: A finite matrix ``[N, K]`` of the operator's dtype and device with ``K > 0``. It
                must not be changed.

        Returns:
            A *new* matrix ``[M, K]`` (callers may accumulate into it): neither ``X``, nor a view
            of it, nor of anything that is kept.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement _matmat.")

    def _rmatmat(self, X: Tensor) -> Tensor:
        """Return ``Aᵀ X`` under the terms of :meth:`_matmat`; ``X`` is ``[M, K]``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement its adjoint.")

    def _adjoint(self) -> LinearOperator:
        """Return ``Aᵀ``; by default a view of this operator that calls :meth:`_rmatmat`."""
        from curvops.operators.algebra import AdjointLinearOperator

        if type(self)._rmatmat is LinearOperator._rmatmat:
            raise NotImplementedError(f"{type(self).__name__} does not implement its adjoint.")
        return AdjointLinearOperator(self)

    # Products ---------------------------------------------------------------------------------

    @overload
    def __matmul__(self, x: LinearOperator) -> LinearOperator: ...
    @overload
    def __matmul__(self, x: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    @overload
    def __matmul__(self, x: Sequence[Tensor]) -> list[Tensor]: ...
    def __matmul__(self, x: Any) -> Any:
        """Return ``A x``, or the composition if ``x`` is an operator.

        Args:
            x: A vector ``[N]`` or columns ``[N, K]``; or a list ``[*shape]`` or ``[*shape, K]``
                in the order of ``in_space``; or a dict of these by name; or an operator.
                Another real floating dtype is cast to the operator's. ``K = 0`` is legal.

        Returns:
            The product in the format of ``x``, laid out as ``out_space``.

        Raises:
            ShapeError: If a shape does not fit ``in_space``, or the operators do not chain.
            DTypeError: If ``x`` is integer, boolean or complex, or the operators' dtypes differ.
            DeviceError: If ``x`` lives on another device.
            NonFiniteError: If ``x`` holds NaN or infinity.
            InputError: If ``x`` is none of these, for example a NumPy array.
        """
        if isinstance(x, LinearOperator):
            from curvops.operators.algebra import compose

            return compose(self, x)
        if isinstance(x, np.ndarray):
            raise InputError(
                f"x is a NumPy array of shape {list(x.shape)}; operators multiply torch tensors. "
                "Use op.to_scipy() @ x, or op @ torch.from_numpy(x)."
            )
        with torch.inference_mode(False):  # differentiation is not possible inside
            columns, fmt = self.in_space.read(x, self.dtype, self.device, "x")
            if columns.shape[1] == 0:
                product = columns.new_zeros(self.shape[0], 0)
            else:
                product = self._matmat(columns)
            return self.out_space.write(product, fmt)

    def __rmatmul__(self, x: object) -> NoReturn:
        """Refuse ``x @ A``, which has no format to answer in."""
        raise TypeError(
            f"{type(x).__name__} @ {type(self).__name__} is not defined: operators multiply from "
            "the left. Use op.T @ x (for xᵀA), with the columns of x on its last axis."
        )

    def to_dense(self, *, chunk_size: int = 64) -> Tensor:
        """Return the matrix ``[M, N]``, computed as products with unit vectors.

        It costs ``N`` products, so it is for small problems. A wide operator (``M`` much smaller
        than ``N``) is cheaper as ``op.T.to_dense().T``.

        Args:
            chunk_size: How many columns to multiply at once; bounds the memory.

        Raises:
            InputError: If ``chunk_size`` is not a positive integer.

        Example:
            >>> import torch
            >>> from curvops.operators import IdentityLinearOperator
            >>> (3 * IdentityLinearOperator(2)).to_dense()
            tensor([[3., 0.],
                    [0., 3.]])
        """
        check_positive(chunk_size, "chunk_size")
        rows, cols = self.shape
        dense = torch.empty(rows, cols, dtype=self.dtype, device=self.device)
        for start in range(0, cols, chunk_size):
            stop = min(start + chunk_size, cols)
            units = dense.new_zeros(cols, stop - start)
            units[start:stop].fill_diagonal_(1.0)
            dense[:, start:stop] = self @ units
        return dense

    def to_scipy(self, dtype: Any = None) -> SciPyLinearOperator:
        """Return the operator for SciPy's solvers.

        Args:
            dtype: The NumPy (or torch) dtype of its arrays; by default the operator's own
                (float32 for the half precisions, which NumPy's linear algebra cannot handle).
                This is the precision of input and output only: the product is always computed
                in the operator's dtype.

        Returns:
            A ``scipy.sparse.linalg.LinearOperator`` with ``matvec``, ``matmat``, ``rmatvec``
            and ``rmatmat``.

        Raises:
            DTypeError: If ``dtype`` is not real floating.

        Example:
            >>> import numpy as np
            >>> from curvops.operators import IdentityLinearOperator
            >>> IdentityLinearOperator(2).to_scipy() @ np.array([1, 2])
            array([1., 2.], dtype=float32)
        """
        from curvops.operators.scipy_export import SciPyLinearOperator

        return SciPyLinearOperator(self, dtype)

    # Algebra ----------------------------------------------------------------------------------

    def adjoint(self) -> LinearOperator:
        """Return the transpose ``Aᵀ``.

        Raises:
            NotImplementedError: If the operator does not know its transpose.
        """
        return self if self.SELF_ADJOINT else self._adjoint()

    @property
    def T(self) -> LinearOperator:
        """The transpose ``Aᵀ``; the same as :meth:`adjoint`."""
        return self.adjoint()

    def shift(self, delta: Scalar) -> LinearOperator:
        """Return ``A + delta I``.

        Args:
            delta: A finite real number (Python, NumPy or a 0-dimensional tensor). The result is
                known to be positive semidefinite if ``A`` is and ``delta >= 0``.

        Raises:
            ShapeError: If the operator does not map a space to itself.

        Example:
            >>> from curvops.operators import IdentityLinearOperator
            >>> IdentityLinearOperator(2).shift(0.5).diagonal
            tensor([1.5000, 1.5000])
        """
        from curvops.operators.algebra import shift

        return shift(self, delta)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Return ``A + B``; both must share spaces, dtype and device."""
        from curvops.operators.algebra import add

        self._refuse_non_operator(other)
        return add(self, other)

    def __radd__(self, other: object) -> LinearOperator:
        """Let ``sum(operators)`` work, which starts from ``0``."""
        if isinstance(other, int) and other == 0:
            return self
        self._refuse_non_operator(other)
        return NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        """Return ``A - B``; both must share spaces, dtype and device."""
        from curvops.operators.algebra import add, scale

        self._refuse_non_operator(other)
        return add(self, scale(-1.0, other))

    def __rsub__(self, other: object) -> LinearOperator:
        """Refuse ``x - A`` with the remedy."""
        self._refuse_non_operator(other)
        return NotImplemented

    def __neg__(self) -> LinearOperator:
        """Return ``-A``."""
        return self * -1.0

    def __mul__(self, factor: Scalar) -> LinearOperator:
        """Return ``factor A`` for a finite real number or 0-dimensional array or tensor."""
        from curvops.operators.algebra import as_scalar, scale

        return scale(as_scalar(factor, self), self)

    def __rmul__(self, factor: Scalar) -> LinearOperator:
        """Return ``factor A``."""
        return self * factor

    def __truediv__(self, divisor: Scalar) -> LinearOperator:
        """Return ``A / divisor`` for a finite, non-zero real number."""
        from curvops.operators.algebra import as_scalar, scale

        number = as_scalar(divisor, self)
        if number == 0.0:
            raise InputError(f"Cannot divide {self!r} by zero.")
        return scale(as_scalar(1.0 / number, self), self)

    def _refuse_non_operator(self, other: object) -> None:
        if not isinstance(other, LinearOperator):
            raise TypeError(
                f"Cannot add or subtract {type(other).__name__} and {self!r}: both must be "
                "curvops operators. For a multiple of the identity use op.shift(delta); for a "
                "diagonal wrap the tensor in DiagonalLinearOperator."
            )


def check_positive(value: object, what: str) -> int:
    """Return ``value`` if it is a positive integer; otherwise raise :class:`InputError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{what} must be a positive integer, not {value!r}.")
    return value
