r"""Block Lanczos: a symmetric matrix, seen from a block of vectors, as one small band matrix.

.. math:: A Q = Q T + Q_{m+1} B_m E_m^T, \qquad Q = [Q_1, \dots, Q_m],\quad Q^T Q = I

``T`` is block tridiagonal, with diagonal blocks :math:`A_j` and :math:`B_j` below them. The
space is larger than what one vector gives at equal products, and finds eigenvalues with their
multiplicity, up to the width of the block.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from curvops.errors import ShapeError
from curvops.linalg.lanczos import BREAKDOWN
from curvops.linalg.matrix import Products

_WEAK = 1e-3
"""Directions weaker than this, relative to the strongest, are orthogonalised once more."""


class BlockLanczos:
    """A block Krylov space that grows by a block a step.

    Blocks are orthogonalised against all earlier ones, twice. Directions in which a new block is
    nothing but rounding are dropped, so that blocks get narrower, and the space ends where it is
    invariant.

    Args:
        products: The matrix ``A`` ``[P, P]``, symmetric.
        start: The first block ``[P, b]``; its columns may be linearly dependent.
        basis_dtype: What the basis is stored in; by default what products are computed in, at
            least float32. ``T`` is in float64 whatever this is.
        basis_device: Where it is stored; by default that of ``start``.
        capacity: Columns to make room for; more may follow.

    Attributes:
        start_coefficients: R with ``start = Q_1 R`` ``[b_1, b]``.
        diagonals: The blocks A_j ``[b_j, b_j]``.
        couplings: The blocks B_j ``[b_{j+1}, b_j]``; the last leads out of the space.
        noise: The largest asymmetry seen in an A_j: what rounding does to products.

    Raises:
        ShapeError: If ``start`` is not ``[P, b]``.

    Source:
        Golub & Underwood, The block Lanczos method for computing eigenvalues, 1977.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([1.0, 1.0, 3.0, 4.0], dtype=torch.float64))
        >>> start = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> space = BlockLanczos(Products(A), start)
        >>> space.step(), space.step(), space.step()
        (2, 2, 0)
        >>> torch.linalg.eigvalsh(space.dense()).round(decimals=6)
        tensor([1., 1., 3., 4.], dtype=torch.float64)
    """

    def __init__(
        self,
        products: Products,
        start: Tensor,
        *,
        basis_dtype: torch.dtype | None = None,
        basis_device: torch.device | str | None = None,
        capacity: int = 0,
    ) -> None:
        if start.ndim != 2 or start.shape[0] != products.dim:
            raise ShapeError(f"start has shape {list(start.shape)}; expected [{products.dim}, b].")
        self._products = products
        self._dtype = basis_dtype or torch.promote_types(products.dtype, torch.float32)
        self._device = torch.device(basis_device or start.device)
        self._store = torch.empty(
            products.dim, max(capacity, start.shape[1]), dtype=self._dtype, device=self._device
        )
        self.size = 0
        self.diagonals: list[Tensor] = []
        self.couplings: list[Tensor] = []
        self.noise = 0.0
        self._scale = 0.0
        block = start.to(torch.float64)
        tiny = torch.finfo(torch.float64).eps * products.dim**0.5
        norm = float(block.norm()) if block.numel() else 0.0
        self._next, self.start_coefficients = self._orthonormal(block, tiny * norm)

    @property
    def dim(self) -> int:
        """P."""
        return self._products.dim

    @property
    def num_blocks(self) -> int:
        """Blocks that the space has."""
        return len(self.diagonals)

    @property
    def next_width(self) -> int:
        """Columns that the next step multiplies."""
        return self._next.shape[1]

    @property
    def is_invariant(self) -> bool:
        """Whether the space is invariant: no direction is left to grow into."""
        leads_out = self.couplings[-1] if self.couplings else self.start_coefficients
        return leads_out.shape[0] == 0

    @property
    def basis(self) -> Tensor:
        """Q, ``[P, size]``; a view that the next step may leave behind."""
        return self._store[:, : self.size]

    @property
    def starts(self) -> list[int]:
        """The first column of each block, and the size at the end."""
        widths = [0, *(block.shape[0] for block in self.diagonals)]
        return list(accumulate(widths))

    def step(self) -> int:
        """Multiply the next block and take it in; return its width, 0 if there is none."""
        Q = self._next
        width = Q.shape[1]
        if width == 0:
            return 0
        self._append(Q)
        W = self._products(Q)
        diagonal = Q.T @ W
        W = W - Q @ diagonal
        self.noise = max(self.noise, float((diagonal - diagonal.T).abs().max()))
        self.diagonals.append((0.5 * (diagonal + diagonal.T)).cpu())
        for _ in range(2):
            W = self.outside(W)
        norm = float(torch.linalg.matrix_norm(W, 2))
        self._scale = max(self._scale, norm, float(torch.linalg.matrix_norm(diagonal, 2)))
        if self.size >= self._products.dim:
            W = W[:, :0]
        tolerance = BREAKDOWN * self._products.eps * self._scale
        self._next, coupling = self._orthonormal(W, tolerance)
        if coupling.shape[1] != width:
            coupling = coupling.new_zeros(0, width)
        self.couplings.append(coupling)
        return width

    def dense(self, num_blocks: int | None = None) -> Tensor:
        """Return T ``[size, size]`` of the first blocks, in float64 on the CPU."""
        starts = self.starts
        count = self.num_blocks if num_blocks is None else num_blocks
        T = torch.zeros(starts[count], starts[count], dtype=torch.float64)
        for j in range(count):
            here = slice(starts[j], starts[j + 1])
            T[here, here] = self.diagonals[j]
            if j + 1 < count:
                there = slice(starts[j + 1], starts[j + 2])
                T[there, here] = self.couplings[j]
                T[here, there] = self.couplings[j].T
        return T

    def outside(self, W: Tensor) -> Tensor:
        """Return columns without their part in the space, up to one pass's rounding."""
        basis = self.basis
        moved = W.to(self._device, self._dtype)
        return W - (basis @ (basis.T @ moved)).to(W.device, W.dtype)

    def release(self) -> None:
        """Free the basis; the space cannot grow any more, but T remains."""
        self._store = self._store[:, :0].clone()
        self._next = self._next[:, :0].clone()

    def _append(self, Q: Tensor) -> None:
        stop = self.size + Q.shape[1]
        if stop > self._store.shape[1]:
            room = min(max(stop, 3 * self._store.shape[1] // 2), max(self._products.dim, stop))
            store = self._store.new_empty(self._store.shape[0], room)
            store[:, : self.size] = self.basis
            self._store = store
        self._store[:, self.size : stop] = Q.to(self._device, self._dtype)
        self.size = stop

    def _orthonormal(self, W: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Return Q and R with W = Q R up to the tolerance, Q as wide as the rank of W."""
        if W.shape[1] == 0:
            return W, torch.zeros(0, 0, dtype=W.dtype)
        Q, R = torch.linalg.qr(W)
        U, s, Vh = torch.linalg.svd(R, full_matrices=False)
        keep = s > tolerance
        keep[max(self._products.dim - self.size, 0) :] = False
        Q, R = Q @ U[:, keep], s[keep].unsqueeze(1) * Vh[keep]
        if bool(keep.any()) and float(s[keep][-1]) < _WEAK * float(s[0]):
            Q, correction = torch.linalg.qr(self.outside(Q))
            R = correction @ R
        return Q, R.cpu()
