r"""The diagonal of a matrix from products with random vectors, with the error of every entry."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.deflation import ROUNDINGS, Deflated
from curvops.linalg.estimate import VectorEstimate
from curvops.linalg.leave_out import pairs
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.probes import Distribution
from curvops.linalg.sampling import (
    Budget,
    Moments,
    check_count,
    estimate,
    unit_products,
)
from curvops.linalg.sketch import Sketch
from curvops.linalg.trace import MAX_RANK

DiagonalMethod = Literal["xdiag", "hutchinson", "exact"]

LEAST = {"hutchinson": 2, "xdiag": 4}
"""Products from which each method has two samples, hence an error."""

SYMMETRIC = 1e3
"""An asymmetry of so many roundings is one."""

ROWS = 4096
"""Rows of the basis that are treated at a time."""


def diagonal(
    A: Matrix,
    method: DiagonalMethod = "xdiag",
    *,
    num_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_matvecs: int | None = None,
    distribution: Distribution = "rademacher",
    seed: int | torch.Generator = 0,
    max_rank: int = MAX_RANK,
    chunk_size: int = 16,
    progress: bool = False,
) -> VectorEstimate:
    r"""Estimate the diagonal of ``A`` from products with random vectors.

    .. math:: \operatorname{diag} A = \operatorname{diag}(Q Q^T A)
        + \mathbb{E}\, z \odot (I - Q Q^T) A z, \qquad \mathbb{E}\, z z^T = I

    ``"hutchinson"`` has no ``Q``; ``"xdiag"`` takes a basis of the range of ``A`` on half of the
    products, and every probe also sees what is left when its own column is taken out of the
    basis; ``"exact"`` multiplies with all unit vectors, as every method does where as many
    products are asked for as there are. A sketch has at most ``max_rank`` columns, further
    products go to fresh probes of the remainder: memory is three matrices ``[P, max_rank]`` of
    float64, or ``chunk_size`` vectors without a sketch, whatever ``num_matvecs`` is.

    A matrix that is not symmetric (the probes show it) is multiplied with ``A.T`` too.

    Args:
        A: A square matrix ``[P, P]``: an operator, or a dense tensor.
        method: See above.
        num_matvecs: Products to make; 100 if no tolerance is given either.
        rtol: Instead of a count: stop once the half widths of the entries' 95 % intervals have
            at most ``rtol`` times the norm of the diagonal.
        atol: Or at most this norm.
        max_matvecs: Where a tolerance gives up; 10 000 by default.
        distribution: ``"rademacher"`` (the best), ``"gaussian"`` or ``"sphere"``.
        seed: An integer, or a generator. The global generator is not used.
        max_rank: Most columns of a sketch.
        chunk_size: Columns that are multiplied at a time; changes nothing but rounding.
        progress: Show a bar over the products.

    Returns:
        The estimate ``[P]`` in float64, with a standard error and a 95 % interval for every
        entry. The error of ``"xdiag"`` is the larger of leave-one-out scatter and jackknife,
        see :mod:`curvops.linalg.leave_out`.

    Raises:
        ShapeError: If ``A`` is not square.
        DTypeError: If it is not real floating.
        InputError: If an argument is impossible, or ``A`` is not symmetric and has no ``T``.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Epperly, Tropp & Webber 2024, XTrace, section 2.4 (XDiag). Bekas, Kokiopoulou & Saad 2007.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
        >>> diagonal(A).value
        tensor([1., 2., 4.], dtype=torch.float64)
        >>> u = torch.linspace(1, 2, 300, dtype=torch.float64)
        >>> print(diagonal(torch.outer(u, u), num_matvecs=20))
        300 entries from 1 to 4... (20 matvecs)
    """
    start = time.perf_counter()
    products = Products(A)
    if method not in (*LEAST, "exact"):
        raise InputError(f'method must be "xdiag", "hutchinson" or "exact"; got {method!r}.')
    budget = Budget.of(num_matvecs, rtol, atol, max_matvecs)
    check_count("max_rank", max_rank)
    check_count("chunk_size", chunk_size)
    sampler = _Diagonal(method, Sketch(products, distribution, seed, chunk_size))
    moments = None
    with products.progress(progress, f"diagonal ({method})", budget.limit):
        if method != "exact" and not budget.is_exact(products.dim):
            budget.require(LEAST[method], f'method="{method}"')
            moments = estimate(sampler, products, budget, max_rank, _measure)
        if moments is None:
            blocks = [torch.diagonal(b[j:]) for j, b in unit_products(products, chunk_size)]
            value = torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.float64)
            stderr, half_width = torch.zeros_like(value), ROUNDINGS * products.eps * value.abs()
        else:
            value, stderr = moments.mean, moments.stderr
            half_width = moments.half_width + ROUNDINGS * products.eps * value.abs()
    return VectorEstimate(
        value=value,
        stderr=stderr,
        lower=value - half_width,
        upper=value + half_width,
        num_matvecs=products.num_matvecs + sampler.transposed,
        converged=budget.accepts(float(half_width.norm()), float(value.norm())),
        method=method if moments is not None else "exact",
        seconds=time.perf_counter() - start,
    ).vouched(budget.remedy())


class _Diagonal(Deflated):
    """Samples of the diagonal."""

    takes_whole_probes = True  # A is deflated from the left alone
    transposed = 0
    """Products with the transpose."""

    def grow(self, columns: int) -> None:
        super().grow(columns)
        sketch = self.sketch
        self._rows = sketch.AQ
        if columns and sketch.asymmetry() > SYMMETRIC:
            transpose = sketch.products.adjoint()
            parts = [transpose(part) for part in sketch.Q.split(sketch.chunk_size, 1)]
            self._rows = torch.cat([sketch.Q[:, :0], *parts], 1)
            self.transposed += transpose.num_matvecs

    def _base(self) -> Tensor:
        return (self.sketch.Q * self._rows).sum(1)

    def _left_out(self) -> Moments:
        sketch = self.sketch
        S = sketch.omitted()
        k = S.shape[1]
        cosine, weight = pairs(S)
        mixed = cosine * weight
        size = (S * sketch.R).sum(0)
        parts = []
        for Q, Z, omega in zip(*(X.split(ROWS) for X in (sketch.Q, self._rows, sketch.omega))):
            base = (Q * Z).sum(1, keepdim=True)
            q, z = Q @ S, Z @ S
            seen = omega * size
            samples = base - q * z + seen * q
            # Without i (column here) and j (summed over), from two directions instead of one.
            loss = (q * z) * weight.sum(0) + (q * z) @ weight - q * (z @ mixed) - z * (q @ mixed)
            gain = (seen * q) @ weight - q * (seen @ mixed)
            replicates = base + (gain - loss) / max(k - 1, 1)
            mean, center = samples.mean(1), replicates.mean(1, keepdim=True)
            scatter = (samples - mean.unsqueeze(1)).square().sum(1)
            jackknife = (replicates - center).square().sum(1)
            parts.append((mean, scatter, torch.maximum(jackknife, scatter / max(k * (k - 1), 1))))
        mean, scatter, variance = (torch.cat(part) for part in zip(*parts))
        return Moments(mean, scatter, variance, k)

    def _rest(self, X: Tensor) -> Tensor:
        Q, Y = self.sketch.Q, self.sketch.products(X)
        return (X * (Y - Q @ (Q.T @ Y))).T


def _measure(moments: Moments) -> tuple[float, float]:
    return float(moments.half_width.norm()), float(moments.mean.norm())
