r"""A basis of the range of a matrix, and what each of its probes has to say without itself.

From probes :math:`\Omega = [\omega_1 \dots \omega_k]` and products :math:`Y = A \Omega`, an
orthonormal basis :math:`Q` of :math:`\operatorname{span} Y` captures the bulk of ``A``. Leaving
probe i out shrinks the basis by one direction :math:`s_i` of its coordinates,

.. math:: Q_{(i)} Q_{(i)}^T = Q (I - s_i s_i^T) Q^T, \quad Y = Q R, \ s_i \perp R e_j\ (j \ne i)

and :math:`\omega_i` is independent of :math:`Q_{(i)}`. So every probe yields an unbiased sample
from a basis of k − 1 columns, without further products (Epperly, Tropp & Webber 2024, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from curvops.linalg.matrix import Products
from curvops.linalg.probes import Distribution, Probes

EPS = torch.finfo(torch.float64).eps
LEVERAGE = 1e-8
"""A probe whose leverage on the basis is below one by this much is spanned by the others."""


class Sketch:
    """Probes, a basis of the range of ``A``, and products with it, in float64.

    It holds three matrices ``[P, k]``. Directions whose size is rounding are dropped, so the
    basis has ``r <= k`` columns and a matrix of low rank is no trouble.

    Args:
        products: The matrix ``A`` ``[P, P]``; symmetry is not needed.
        distribution: Of the probes. For ``"sphere"`` the part of a probe outside the basis is
            rescaled to the radius that it has on average, which takes its scatter away.
        seed: Of the probes.
        chunk_size: Columns that are multiplied at a time.

    Attributes:
        omega: Probes ``[P, k]``.
        Q: Basis ``[P, r]``.
        AQ: Its products ``[P, r]``.
        R: Coordinates of the probes' products, ``A omega = Q R``, ``[r, k]``.
        form: ``omegaᵀ A omega`` of each probe ``[k]``.
        sizes: ``‖A omega‖²`` of each probe ``[k]``.
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
        empty = torch.empty(products.dim, 0, dtype=torch.float64, device=products.device)
        self.omega = self.Q = self.AQ = empty
        self.R = empty[:0]
        self.form = self.sizes = empty[0] if products.dim else empty.new_empty(0)

    def grow(self, columns: int) -> None:
        """Enlarge the sketch to that many probes; earlier products are kept."""
        fresh = columns - self.omega.shape[1]
        if fresh <= 0:
            return
        omega = self.probes.take(fresh)
        Y = self.multiply(omega)
        self.form = torch.cat([self.form, (omega * Y).sum(0)])
        self.sizes = torch.cat([self.sizes, Y.square().sum(0)])
        noise = 10 * EPS * columns**0.5 * float(self.sizes.max().sqrt())
        Q = _complement(self.Q, Y, noise)
        above = torch.cat([self.R, self.R.new_zeros(Q.shape[1], self.R.shape[1])])
        self.Q = torch.cat([self.Q, Q], 1)
        self.R = torch.cat([above, self.Q.T @ Y], 1)
        del Y
        self.omega = torch.cat([self.omega, omega], 1)
        self.AQ = torch.cat([self.AQ, self.multiply(Q)], 1)

    def multiply(self, X: Tensor) -> Tensor:
        """Return ``A X``, some columns at a time."""
        parts = [self.products(part) for part in X.split(self.chunk_size, 1) if part.shape[1]]
        empty = X.new_empty(self.products.rows, 0)
        return torch.cat([empty, *parts], 1)

    def omitted(self) -> Tensor:
        """Return the directions ``s_i`` ``[r, k]``; zero for probes that the others span."""
        U, sigma, Vt = torch.linalg.svd(self.R, full_matrices=False)
        S: Tensor = U @ (Vt / sigma.unsqueeze(1))
        S = S / S.norm(dim=0)
        if self.R.shape[0] < self.R.shape[1]:
            S[:, Vt.square().sum(0) < 1 - LEVERAGE] = 0.0
        return S

    def fresh(self, count: int, *, whole: bool = False) -> Iterator[Tensor]:
        """Yield new probes, whole or without their part inside the basis, in blocks ``[P, n]``."""
        while count > 0:
            X = self.probes.take(min(count, self.chunk_size))
            if whole:
                count -= X.shape[1]
                yield X
                continue
            for _ in range(2):
                X = X - self.Q @ (self.Q.T @ X)
            if self.rescales:
                left = X.new_full((X.shape[1],), self.products.dim - self.Q.shape[1])
                X = X * ratio(left, X.square().sum(0), self.products.dim).sqrt()
            count -= X.shape[1]
            yield X

    def asymmetry(self) -> float:
        """Return how far ``omegaᵀ A omega`` is from symmetric, in units of its rounding."""
        M = (self.omega.T @ self.Q) @ self.R
        norms = self.sizes.sqrt()
        allowed = self.products.eps * (norms + norms.unsqueeze(1))
        off = (M - M.T).abs()
        return float((off / allowed.clamp(min=torch.finfo(torch.float64).tiny)).max())


def ratio(expected: Tensor, found: Tensor, dim: int) -> Tensor:
    """Return ``expected / found``; 0 where nothing but rounding is found."""
    something = (expected > 0.5) & (found > 1e3 * EPS * dim)
    return torch.where(something, expected / found, torch.zeros_like(found))


def _complement(Q: Tensor, Y: Tensor, noise: float) -> Tensor:
    """Return an orthonormal basis of what ``Y`` adds to ``Q``, but for what is below ``noise``."""
    for _ in range(2):
        Y = Y - Q @ (Q.T @ Y)
    basis: Tensor
    basis, R = torch.linalg.qr(Y)
    U, sigma, _ = torch.linalg.svd(R)
    basis = basis @ U[:, sigma > noise]
    for _ in range(2):
        basis = basis - Q @ (Q.T @ basis)
        basis = torch.linalg.qr(basis).Q
    return basis
