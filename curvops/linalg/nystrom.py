r"""A Nyström sketch of a positive semidefinite matrix: one product a column instead of two.

.. math:: \hat A = Y (\Omega^T Y)^+ Y^T = F F^T, \qquad Y = A \Omega

With :math:`M = \Omega^T Y = V \Lambda V^T` and :math:`F = Y V \Lambda^{-1/2}`, leaving probe i out
takes one direction away, and what it says about the rest is a single number:

.. math:: \operatorname{tr} \hat A_{(i)} = \|F\|_F^2 - \frac{\|F \Lambda^{-1/2} V^T e_i\|^2}
    {(M^+)_{ii}}, \qquad \omega_i^T (A - \hat A_{(i)}) \omega_i = \frac{1}{(M^+)_{ii}}

The pseudo-inverse drops what is rounding in ``M``; a shifted Cholesky factorisation would stumble
over it. Source: Epperly, Tropp & Webber 2024, section 2.3 and supplement.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.deflation import ROUNDINGS
from curvops.linalg.indefinite import indefinite
from curvops.linalg.leave_out import RESOLVED, variance
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Distribution, Probes
from curvops.linalg.sampling import Moments, of_sketch
from curvops.linalg.sketch import LEVERAGE, ratio

BEYOND_ROUNDING = 1e3
"""An asymmetry, or a negative Ritz value, of so many roundings is not rounding."""


class Nystrom:
    """Samples of the trace from a Nyström sketch, at one product each.

    It holds two matrices ``[P, k]``.

    Args:
        products: The matrix ``A`` ``[P, P]``, symmetric positive semidefinite.
        distribution: Of the probes; see :class:`~curvops.linalg.sketch.Sketch`.
        seed: Of the probes.
        chunk_size: Columns that are multiplied at a time.
    """

    def __init__(
        self,
        products: Products,
        distribution: Distribution,
        seed: int | torch.Generator,
        chunk_size: int,
    ) -> None:
        self.products, self.chunk_size = products, chunk_size
        self.rescales = distribution == "sphere"
        self.probes = Probes(products.dim, distribution, seed, device=products.device)
        self.omega = torch.empty(products.dim, 0, dtype=torch.float64, device=products.device)
        self.Y = self.omega
        self.rounding = self._dropped = self._scale = 0.0
        self._factor: tuple[Tensor, Tensor] | None = None

    def columns(self, limit: int) -> int:
        """Every product goes into the sketch."""
        return min(limit, max(self.products.dim - 1, 0))

    def grow(self, columns: int) -> None:
        """Enlarge the sketch to that many probes; earlier products are kept."""
        fresh = columns - self.omega.shape[1]
        if fresh > 0:
            omega = self.probes.take(fresh)
            parts = [self.products(part) for part in omega.split(self.chunk_size, 1)]
            self.omega = torch.cat([self.omega, omega], 1)
            self.Y = torch.cat([self.Y, *parts], 1)

    def left_out(self) -> Moments:
        """Return the samples of the probes, each from the sketch without it."""
        M, values, V = self._eigen()
        scaled = V / values.sqrt()
        F = torch.linalg.qr(self.Y, mode="r").R @ scaled
        total, inverse = F.square().sum(), scaled @ scaled.T
        # Rounding moves the eigenvalues of M by eps times the largest, and F with them.
        amplified = F.square().sum(0) * (self._scale / values)
        self.rounding = self._dropped + ROUNDINGS * self.products.eps * float(amplified.sum())
        taken = (F @ scaled.T).T @ (F @ scaled.T)
        # A probe that the others span (after truncation) takes nothing away when it leaves.
        spanned = V.square().sum(1) < 1 - LEVERAGE
        size, own = torch.diagonal(inverse), torch.diagonal(taken)
        unseen = (torch.diagonal(M) - (V.square() * values).sum(1)).clamp(min=0.0)
        squares, two_squares = self._squares()
        part = total - torch.where(spanned, torch.zeros_like(own), own / size)
        rest = torch.where(spanned, unseen, 1 / size)
        samples = part + self._factors(squares, 1) * rest

        # Without i (row) and j (column): a 2 x 2 block of the inverse in place of a number.
        determinant = _minors(inverse)
        mixed = own.unsqueeze(1) * size + own * size.unsqueeze(1) - 2 * taken * inverse
        two = total - mixed / determinant
        two = two + self._factors(two_squares, 2) * size.unsqueeze(1) / determinant
        resolved = determinant > RESOLVED * size * size.unsqueeze(1)
        resolved &= ~(spanned | spanned.unsqueeze(1))
        return of_sketch(samples, variance(samples, torch.where(resolved, two, samples)))

    def sample(self, count: int) -> Iterator[Tensor]:
        """Yield samples ``tr Â + xᵀ (A - Â) x`` of fresh probes, in blocks ``[n, 1]``."""
        if count <= 0:
            return
        if self._factor is None:
            _, values, V = self._eigen()
            self._factor = self.Y @ (V / values.sqrt()), torch.linalg.qr(self.omega).Q
            self.Y = self.omega = self.omega[:, :0]  # no longer needed
        F, Q = self._factor
        base = F.square().sum()
        while count > 0:
            X = self.probes.take(min(count, self.chunk_size))
            if self.rescales:
                for _ in range(2):
                    X = X - Q @ (Q.T @ X)
                left = X.new_full((X.shape[1],), self.products.dim - Q.shape[1])
                X = X * ratio(left, X.square().sum(0), self.products.dim).sqrt()
            rest = (X * self.products(X)).sum(0) - (F.T @ X).square().sum(0)
            count -= X.shape[1]
            yield (base + rest).unsqueeze(1)

    def _eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``M`` ``[k, k]``, and those of its eigenpairs that are not rounding."""
        M = self.omega.T @ self.Y
        norms = self.Y.norm(dim=0)
        allowed = BEYOND_ROUNDING * self.products.eps * (norms + norms.unsqueeze(1))
        if bool(((M - M.T).abs() > allowed).any()):
            raise InputError(
                'A is not symmetric, which method="xnystrace" needs. Use method="xtrace".'
            )
        M = (M + M.T) / 2
        values, V = torch.linalg.eigh(M)
        scale = float(values.abs().max())
        if float(values[0]) < -BEYOND_ROUNDING * self.products.eps * scale:
            raise indefinite(self.products, self.omega @ V[:, 0], 0.0, 'trace(method="xnystrace")')
        kept = values > 4 * self.products.eps * scale
        self._dropped, self._scale = float(values[~kept].abs().sum()), scale
        return M, values[kept], V[:, kept]

    def _squares(self) -> tuple[Tensor, Tensor]:
        """Return the squared norms of each probe outside the span of the others.

        Returns:
            Without itself ``[k]``, and for column j without i and j ``[k, k]``.
        """
        if not self.rescales:
            ones = torch.ones_like(self.omega[0])
            return ones, ones.expand(len(ones), -1)
        inverse = torch.linalg.inv(self.omega.T @ self.omega)
        size = torch.diagonal(inverse)
        return 1 / size, size.unsqueeze(1) / _minors(inverse)

    def _factors(self, squares: Tensor, omitted: int) -> Tensor:
        """Return the factors of quadratic forms; 1 unless probes are rescaled."""
        if not self.rescales:
            return torch.ones_like(squares)
        left = torch.full_like(squares, self.products.dim - self.omega.shape[1] + omitted)
        return ratio(left, squares, self.products.dim)


def _minors(inverse: Tensor) -> Tensor:
    """Return the 2 x 2 principal minors ``[k, k]``; 1 on the diagonal, where there are none."""
    size = torch.diagonal(inverse)
    return (size * size.unsqueeze(1) - inverse.square()).fill_diagonal_(1.0)
