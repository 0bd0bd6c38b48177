"""Operators for SciPy's solvers: NumPy arrays in, NumPy arrays out.

The exported operator advertises the dtype it computes in. Advertising float64 for a float32 model
(by ``dtype=``) changes what the arrays are, not how many digits of the product are right, and a
solver that believes otherwise iterates after noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator as _SciPyLinearOperator
from torch import Tensor

from curvops.errors import DTypeError
from curvops.operators.linear import LinearOperator

# Half precisions export as float32: bfloat16 has no NumPy dtype, and LAPACK knows neither.
_NUMPY_DTYPES = {torch.float64: np.dtype(np.float64), torch.float32: np.dtype(np.float32)}


class SciPyLinearOperator(_SciPyLinearOperator):  # type: ignore[misc]  # SciPy has no types
    """A ``scipy.sparse.linalg.LinearOperator`` that multiplies with a curvops operator.

    Build it with :meth:`LinearOperator.to_scipy`. Arrays are copied to the operator's device,
    cast to its dtype and back. Integer and boolean arrays are cast too.

    Args:
        op: The operator.
        dtype: The real floating dtype of the arrays that come out; by default the operator's,
            float32 for half precision. It is the precision of input and output only.

    Raises:
        DTypeError: If ``dtype`` is not real floating, or, when multiplying, for complex arrays.
        NonFiniteError: When multiplying an array that holds NaN or infinity.

    Example:
        >>> import torch
        >>> from scipy.sparse.linalg import eigsh
        >>> from curvops.operators import DiagonalLinearOperator
        >>> A = DiagonalLinearOperator(torch.arange(9.0)).to_scipy()
        >>> A.dtype
        dtype('float32')
        >>> [round(float(value), 4) for value in eigsh(A, k=2, return_eigenvectors=False)]
        [7.0, 8.0]
    """

    def __init__(self, op: LinearOperator, dtype: Any = None) -> None:
        native = _NUMPY_DTYPES.get(op.dtype, np.dtype(np.float32))
        super().__init__(native if dtype is None else _real_dtype(dtype), op.shape)
        self.op = op

    def _matvec(self, x: Any) -> Any:
        return self._multiply(self.op, x)

    def _matmat(self, X: Any) -> Any:
        return self._multiply(self.op, X)

    def _rmatvec(self, x: Any) -> Any:
        return self._multiply(self.op.adjoint(), x)

    def _rmatmat(self, X: Any) -> Any:
        return self._multiply(self.op.adjoint(), X)

    def _adjoint(self) -> SciPyLinearOperator:
        return SciPyLinearOperator(self.op.adjoint(), self.dtype)

    def _transpose(self) -> SciPyLinearOperator:
        return self._adjoint()  # real

    def _multiply(self, op: LinearOperator, x: Any) -> Any:
        product = op @ _to_torch(x, op.device)
        if product.dtype not in _NUMPY_DTYPES:
            product = product.float()
        return product.cpu().numpy().astype(self.dtype, copy=False)


def _to_torch(x: Any, device: torch.device) -> Tensor:
    """Copy a real array to the device; the copy protects solvers' buffers from aliasing."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise DTypeError(
            f"x is an array of dtype {array.dtype}; the operator is real. "
            "Multiply real and imaginary parts apart."
        )
    keep = array.dtype == np.float32
    return torch.from_numpy(np.array(array, dtype=np.float32 if keep else np.float64)).to(device)


def _real_dtype(dtype: Any) -> np.dtype[Any]:
    """Return a torch or NumPy dtype as a real floating NumPy dtype."""
    if isinstance(dtype, torch.dtype):
        dtype = _NUMPY_DTYPES.get(dtype, str(dtype).removeprefix("torch."))
    try:
        result: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise DTypeError(f"NumPy has no dtype {dtype!r}; use float32 or float64.") from error
    if result.kind != "f":
        raise DTypeError(f"dtype must be real floating, not {result}.")
    return result
