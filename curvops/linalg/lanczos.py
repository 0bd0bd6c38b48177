r"""Lanczos: a symmetric matrix, seen from many vectors, as one small tridiagonal matrix each.

.. math:: A Q_m = Q_m T_m + \beta_m q_{m+1} e_m^T, \qquad Q_m^T Q_m = I, \quad q_1 = z / \|z\|

Vectors are orthogonalised against all earlier ones of their column, twice, so that ``T`` is the
compression of ``A`` to the Krylov space to rounding, however many steps are made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.linalg.matrix import Products

MEMORY = 1 << 28
"""Bytes that the basis vectors of the columns treated at a time may take, by default."""

BREAKDOWN = 32.0
"""A residual below so many roundings of the largest coefficient seen is nothing but rounding."""


@dataclass(frozen=True)
class Tridiagonals:
    r"""One tridiagonal matrix ``T`` ``[m, m]`` a column.

    A column whose Krylov space ends early (``steps < m``) is filled up with its first ``alpha``
    and zero ``beta``: eigenvalues that carry no weight and do not leave the numerical range.

    Attributes:
        alpha: Diagonals ``[K, m]``, float64 on the CPU.
        beta: Off-diagonals ``[K, m]``; the last entry couples to the next vector, the residual.
        norms: Norms of the start vectors ``[K]``.
        steps: Steps that each column made ``[K]``.
        basis: Lanczos vectors ``[K, m, P]`` (zero beyond ``steps``), where asked for.
    """

    alpha: Tensor
    beta: Tensor
    norms: Tensor
    steps: Tensor
    basis: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the matrices ``[K, m, m]``."""
        off = self.beta[:, :-1]
        return torch.diag_embed(self.alpha) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)

    def head(self, num_steps: int) -> Tridiagonals:
        """Return what fewer steps would have given; the steps are nested."""
        basis = None if self.basis is None else self.basis[:, :num_steps]
        return Tridiagonals(
            self.alpha[:, :num_steps],
            self.beta[:, :num_steps],
            self.norms,
            self.steps.clamp(max=num_steps),
            basis,
        )


def lanczos(
    products: Products,
    start: Tensor,
    num_steps: int,
    *,
    reorthogonalize: bool = True,
    return_basis: bool = False,
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    memory: int = MEMORY,
) -> Tridiagonals:
    r"""Run Lanczos from every column of ``start``.

    Recurrences are in float64 whatever the products are computed in. Columns are multiplied
    together, as many at a time as the memory for their basis vectors allows.

    Args:
        products: The matrix ``A`` ``[P, P]``, symmetric.
        start: Start vectors ``[P, K]``, of any norm.
        num_steps: Steps ``m``; at most ``P`` are made. Each costs a product a column.
        reorthogonalize: Against all earlier vectors, twice. Without it nothing but the last two
            vectors is kept, and ``T`` gets copies of converged eigenvalues.
        return_basis: Keep the Lanczos vectors.
        basis_dtype: What they are stored in; by default what the products are computed in, at
            least float32.
        basis_device: Where they are stored; by default that of ``start``.
        memory: Bytes for the vectors of the columns treated at a time.

    Returns:
        The tridiagonal matrices, one a column.

    Raises:
        ShapeError: If ``start`` is not ``[P, K]``.
        InputError: If ``num_steps`` is not positive.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Golub & Van Loan, Matrix Computations, section 10.1 and 10.3.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        >>> T = lanczos(Products(A), torch.ones(3, 1, dtype=torch.float64), 3)
        >>> torch.linalg.eigvalsh(T.dense()).round(decimals=6)
        tensor([[1., 2., 4.]], dtype=torch.float64)
    """
    if start.ndim != 2 or start.shape[0] != products.dim:
        raise ShapeError(f"start has shape {list(start.shape)}; expected [{products.dim}, K].")
    if num_steps < 1:
        raise InputError(f"num_steps must be positive, got {num_steps}.")
    dtype = basis_dtype or torch.promote_types(products.dtype, torch.float32)
    device = torch.device(basis_device or start.device)
    num_steps = min(num_steps, max(products.dim, 1))
    keeps = reorthogonalize or return_basis
    bytes_each = max(products.dim * (num_steps * dtype.itemsize if keeps else 0) + 1, 1)
    at_a_time = max(1, memory // bytes_each)
    parts = [
        _run(products, columns, num_steps, reorthogonalize, keeps, dtype, device)
        for columns in start.split(at_a_time, dim=1)
    ]
    if not parts:
        empty = torch.zeros(0, num_steps, dtype=torch.float64)
        parts = [Tridiagonals(empty, empty, empty[:, 0], empty[:, 0].long())]
    return Tridiagonals(
        alpha=torch.cat([part.alpha for part in parts]),
        beta=torch.cat([part.beta for part in parts]),
        norms=torch.cat([part.norms for part in parts]),
        steps=torch.cat([part.steps for part in parts]),
        basis=torch.cat([_basis(part, products.dim, dtype, device) for part in parts])
        if return_basis
        else None,
    )


def _basis(part: Tridiagonals, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if part.basis is not None:
        return part.basis
    return torch.zeros(*part.alpha.shape, dim, dtype=dtype, device=device)


def _run(
    products: Products,
    start: Tensor,
    num_steps: int,
    reorthogonalize: bool,
    keeps: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tridiagonals:
    """Run the columns of ``start`` together; what breaks down is multiplied no more."""
    z = start.to(torch.float64).T.contiguous()
    dim, count = products.dim, z.shape[0]
    norms = z.norm(dim=1)
    alpha = z.new_zeros(count, num_steps)
    beta = torch.zeros_like(alpha)
    steps = torch.zeros(count, dtype=torch.long, device=z.device)
    basis = None
    if keeps:
        basis = torch.zeros(count, num_steps, dim, dtype=dtype, device=device)
    scale = 0.0
    active = torch.nonzero(norms > 0).flatten()
    q = z[active] / norms[active].unsqueeze(1)
    before = torch.zeros_like(q)
    for j in range(num_steps):
        if not len(active):
            break
        if basis is not None:
            basis[active.to(device), j] = q.to(device, dtype)
        w = products(q.T.contiguous()).T.contiguous()
        if j:
            w -= beta[active, j - 1].unsqueeze(1) * before
        alpha[active, j] = (q * w).sum(1)
        w -= alpha[active, j].unsqueeze(1) * q
        if reorthogonalize and basis is not None:
            for _ in range(2):
                w -= _projection(basis, active.to(device), j + 1, w)
        residual = w.norm(dim=1)
        steps[active] = j + 1
        scale = max(scale, float(alpha[active, j].abs().max()), float(residual.max()))
        goes_on = residual > BREAKDOWN * products.eps * scale
        if j + 1 == dim:
            goes_on = torch.zeros_like(goes_on)
        beta[active, j] = torch.where(goes_on, residual, torch.zeros_like(residual))
        before = q[goes_on]
        q = w[goes_on] / residual[goes_on].unsqueeze(1)
        active = active[goes_on]
    filled = torch.arange(num_steps, device=z.device) < steps.unsqueeze(1)
    alpha = torch.where(filled, alpha, alpha[:, :1])
    return Tridiagonals(alpha.cpu(), beta.cpu(), norms.cpu(), steps.cpu(), basis)


def _projection(basis: Tensor, active: Tensor, count: int, w: Tensor) -> Tensor:
    """Return the part of each row of ``w`` that its earlier Lanczos vectors span."""
    everything = len(active) == len(basis)
    Q = basis[:, :count] if everything else basis[active, :count]
    rows = w.to(Q.device, Q.dtype).unsqueeze(2)
    inside = torch.bmm(Q.transpose(1, 2), torch.bmm(Q, rows)).squeeze(2)
    return inside.to(w.device, w.dtype)
