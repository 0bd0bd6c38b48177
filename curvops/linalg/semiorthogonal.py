r"""Orthogonality that is let go for a few steps, and restored for all of them at once.

A Lanczos step needs the last two vectors. That the others stay orthogonal is lost to rounding,
and slowly: the part along an eigenvector grows by about ``|λ| / β`` a step (Simon 1984, "The
Lanczos algorithm with partial reorthogonalization", Math. Comp. 42, equation 2.12). Going through
a basis for several vectors costs hardly more than for one: it is bound by reading the basis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvops.linalg.rows import combine, inner

_NEARLY = 0.01
"""One pass restores what has lost no more."""

_PASSES = 5

_CAUTION = 10.0
"""How many times what was lost is predicted the next time."""

_LEAST = 0.01
"""What is predicted at least of what is possible."""


def restore(X: Tensor, clean: int) -> tuple[Tensor, Tensor]:
    """Make rows orthonormal in place, of which the first are already and the rest nearly are.

    By Cholesky's factor of their Gram matrix, shifted where there is none (Fukaya et al. 2020,
    "Shifted Cholesky QR for computing the QR factorization of ill-conditioned matrices",
    Section 3); again until what was lost is small enough to be removed at once.

    Args:
        X: ``[n, P]``.
        clean: How many are.

    Returns:
        ``S`` and its inverse ``[n, n]``, upper triangular: the new rows are ``Sᵀ X``.
    """
    eye = torch.eye(len(X), dtype=torch.float64)
    S, inverse = eye.clone(), eye.clone()
    for _ in range(_PASSES):
        products = inner(X, X[clean:])
        C, gram = products[:clean], products[clean:]
        gram = gram - C.T @ C
        L, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            shift = 100 * torch.finfo(X.dtype).eps * len(gram)
            L = torch.linalg.cholesky(gram + shift * eye[clean:, clean:])
        back = eye.clone()
        back[:clean, clean:], back[clean:, clean:] = C, L.T
        step = torch.linalg.solve_triangular(back, eye, upper=True)
        combine(X, step[:, clean:], X[clean:])
        S, inverse = S @ step, back @ inverse
        if float((products - eye[:, clean:]).abs().max()) < _NEARLY:
            break
    return S, inverse


class Drift:
    """How far a new Lanczos vector is from orthogonal to old ones, as predicted.

    Args:
        eps: The rounding of the vectors.
    """

    def __init__(self, eps: float) -> None:
        self._noise, self._share = 10 * eps, 1.0
        self._before = self._now = self._beta = 0.0

    def clear(self, seen: float = 0.0) -> None:
        """Begin again with vectors that are orthonormal but for rounding.

        Args:
            seen: What was lost in truth, from which the noise is learnt: at once where products
                have more than they say, and with caution where there is less than it seemed.
        """
        if seen > 0 and self._now > 0:
            ratio = _CAUTION * seen / self._now
            share = self._share * (ratio if ratio > 1 else ratio**0.25)
            self._share = max(share, _LEAST)
        self._before = self._now = 0.0

    def ahead(self, beta: float, scale: float, extra: float = 0.0) -> float:
        """Return the loss of the next vector.

        Args:
            beta: What is left of its product, the residual.
            scale: ‖A‖.
            extra: What else it holds of old vectors, relative to ``scale``.
        """
        if not beta > 0:
            return math.inf
        noise = self._share * max(self._noise, extra)
        return (scale * (self._now + noise) + self._beta * self._before) / beta

    def step(self, beta: float, scale: float, extra: float = 0.0) -> None:
        """Count that vector."""
        self._before, self._now = self._now, self.ahead(beta, scale, extra)
        self._beta = beta
