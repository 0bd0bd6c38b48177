r"""What a log-determinant sums over the spectrum, and the errors of spectra that have none."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from curvops.errors import IndefiniteError
from curvops.linalg.spectral_measures import Function

OnNegative = Literal["raise", "abs", "clip"]

LABELS = {"raise": "", "abs": " of |A|", "clip": " of A clipped at 0"}
"""How results say that the matrix was not taken as it is."""


def shifted_log(shift: float, on_negative: OnNegative) -> Function:
    """Return x ↦ log(x + δ), log(|x| + δ) or log(max(x, 0) + δ); −∞ where that is no number."""

    def f(x: Tensor) -> Tensor:
        if on_negative == "abs":
            x = x.abs()
        elif on_negative == "clip":
            x = x.clamp(min=0.0)
        return torch.where(x + shift > 0, (x + shift).clamp(min=1e-300).log(), -torch.inf)

    return f


def sensitivity(shift: float, on_negative: OnNegative) -> Function:
    """Return the squared derivative, x ↦ (x + δ)⁻², with x as in :func:`shifted_log`."""

    def f(x: Tensor) -> Tensor:
        if on_negative != "raise":
            x = x.abs() if on_negative == "abs" else x.clamp(min=0.0)
        return (x + shift).clamp(min=1e-150).reciprocal().square()

    return f


def indefinite(
    smallest: float, shift: float, noise: float, sufficient: float, num_bad: int
) -> IndefiniteError:
    """Return the error of a spectrum that the shift does not make positive.

    Args:
        smallest: The smallest eigenvalue or Ritz value of A.
        shift: What was added.
        noise: What rounding may have made up of it.
        sufficient: A shift that would do.
        num_bad: Eigenvalues or Ritz values that are too small.
    """
    kind = "is not positive definite" if smallest + shift < -noise else "is singular up to rounding"
    named = "most negative" if smallest < 0 else "smallest"
    return IndefiniteError(
        f"A + shift I with shift = {shift:g} {kind}: the {named} Ritz value of A is "
        f"{smallest:.6g}, so log det has no value. A shift above {sufficient:.3g} will do; or "
        'on_negative="abs" or "clip" takes |A| or the positive part of A in place of A.',
        smallest=smallest,
        num_bad=num_bad,
        shift=shift,
        sufficient_shift=sufficient,
    )
