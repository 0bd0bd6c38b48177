"""The error of a matrix that should be positive definite and is not."""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.errors import IndefiniteError
from curvops.linalg.lanczos import lanczos
from curvops.linalg.matrix import Products

STEPS = 30
"""Lanczos steps that the error spends on its advice."""


def indefinite(products: Products, witness: Tensor, shift: float, what: str) -> IndefiniteError:
    """Return the error that names the most negative Ritz value and a sufficient shift.

    A few Lanczos steps from the witness find the lower end of the spectrum: the lowest Ritz
    value, less its residual, is where an eigenvalue may be.

    Args:
        products: The matrix ``A`` ``[P, P]``, without the shift.
        witness: A vector ``[P]`` whose Rayleigh quotient is too low.
        shift: The shift that was asked for.
        what: What needs a positive definite matrix.
    """
    T = lanczos(products, witness.unsqueeze(1), STEPS).head(STEPS)
    values, vectors = torch.linalg.eigh(T.dense()[0])
    smallest = float(values[0])
    residual = float((T.beta[0, -1] * vectors[-1, 0]).abs())
    rounding = products.eps * float(values.abs().max())
    sufficient = max(-(smallest - residual) + 8 * rounding, 0.0)
    sufficient = float(f"{1.005 * sufficient:.2e}") if sufficient else rounding
    return IndefiniteError(
        f"{what} needs a positive definite matrix, but A has a Ritz value of {smallest:.4g}"
        + (f" and the shift is only {shift:g}" if shift else "")
        + f". A shift of {sufficient:.3g} is enough.",
        smallest=smallest,
        num_bad=int((values <= -shift).sum()),
        shift=shift,
        sufficient_shift=sufficient,
    )
