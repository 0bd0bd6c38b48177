r"""log det(H + cI) of a symmetric matrix from its eigenvalues, with its rounding error.

.. math:: \log\det(H + cI) = \sum_i \log(\lambda_i + c)

The sum has no real value when an eigenvalue is at or below :math:`-c`, and no meaning when one is
within the matrix's rounding noise of it. Both are an error here, never ``-inf`` or a silently
dropped eigenvalue.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from curvops.errors import IndefiniteError, InputError, ShapeError
from curvops.tensors import check_finite, check_real


@dataclass(frozen=True)
class LogDet:
    """log det(H + cI) in nats.

    Attributes:
        value: The log-determinant.
        error: A first-order bound on the part of it that rounding may have made up.
        shift: The ``c`` that was added to every eigenvalue.
        dim: The number of eigenvalues ``P``.
        smallest: The smallest eigenvalue of ``H``, before the shift.
    """

    value: float
    error: float
    shift: float
    dim: int
    smallest: float

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def __str__(self) -> str:
        """Return the value with its error, and the shift."""
        return f"{self.value:.6f} ± {self.error:.1e} (shift {self.shift:g}, P = {self.dim})"

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields as plain Python."""
        return asdict(self)


def logdet_from_eigenvalues(
    eigenvalues: Tensor, shift: float = 0.0, *, noise: float | None = None
) -> LogDet:
    r"""Return :math:`\log\det(H + cI)` in nats, summed in float64.

    Args:
        eigenvalues: All eigenvalues ``[P]`` of the symmetric matrix ``H``, in any order.
        shift: The number ``c`` added to each of them.
        noise: The absolute error of one eigenvalue, which is at most the spectral norm of the
            error of ``H``. By default ``P`` roundings, in the eigenvalues' dtype, of the largest
            eigenvalue.

    Returns:
        The value and the bound ``noise * sum_i 1 / (lambda_i + c)`` on its error.

    Raises:
        IndefiniteError: If an eigenvalue is at or below ``-c``, up to the noise.
        ShapeError: If ``eigenvalues`` is not one-dimensional.
        NonFiniteError: If an eigenvalue is NaN or infinite.

    Example:
        >>> import torch
        >>> print(logdet_from_eigenvalues(torch.tensor([1.0, 3.0], dtype=torch.float64), shift=1.0))
        2.079442 ± 1.0e-15 (shift 1, P = 2)
    """
    if eigenvalues.ndim != 1:
        raise ShapeError(f"eigenvalues has shape {list(eigenvalues.shape)}; expected [P].")
    check_real(eigenvalues, "eigenvalues")
    check_finite(eigenvalues, "eigenvalues")
    if not math.isfinite(shift):
        raise InputError(f"shift is {shift}; it must be finite.")
    dim = eigenvalues.numel()
    values = eigenvalues.detach().to("cpu", torch.float64)
    if dim == 0:
        return LogDet(value=0.0, error=0.0, shift=float(shift), dim=0, smallest=math.inf)
    if noise is None:
        noise = dim * torch.finfo(eigenvalues.dtype).eps * float(values.abs().max())
    smallest, shifted = float(values.min()), values + shift
    if float(shifted.min()) <= noise:
        raise _indefinite(smallest, int((shifted <= noise).sum()), dim, shift, noise)
    return LogDet(
        value=math.fsum(shifted.log().tolist()),
        error=noise * float(shifted.reciprocal().sum()),
        shift=float(shift),
        dim=dim,
        smallest=smallest,
    )


def _indefinite(
    smallest: float, num_bad: int, dim: int, shift: float, noise: float
) -> IndefiniteError:
    sufficient = noise - smallest
    kind = "indefinite" if smallest + shift < -noise else "singular up to rounding"
    named = "most negative" if smallest < 0 else "smallest"
    many = f"{num_bad} of {dim} eigenvalues are" if num_bad > 1 else f"1 of {dim} eigenvalues is"
    return IndefiniteError(
        f"H + cI with c = {shift:g} is {kind}: {many} at or below -c (noise {noise:.1e}), the "
        f"{named} is {smallest:.6g}, so log det has no value. "
        f"Any shift above {sufficient:.6g} will do.",
        smallest=smallest,
        num_bad=num_bad,
        shift=shift,
        sufficient_shift=sufficient,
    )
