r"""The Frobenius norm of a matrix from products with random vectors, with its error."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.deflation import ROUNDINGS, Deflated
from curvops.linalg.estimate import Estimate
from curvops.linalg.leave_out import quadratic
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.probes import Distribution
from curvops.linalg.sampling import (
    Budget,
    Moments,
    check_count,
    estimate,
    of_sketch,
    unit_products,
)
from curvops.linalg.sketch import Sketch
from curvops.linalg.trace import MAX_RANK

FrobeniusMethod = Literal["auto", "xtrace", "hutchinson"]

LEAST = {"hutchinson": 2, "xtrace": 4}
"""Products from which each method has two samples, hence an error."""


def frobenius_norm(
    A: Matrix,
    method: FrobeniusMethod = "auto",
    *,
    num_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_matvecs: int | None = None,
    distribution: Distribution | None = None,
    seed: int | torch.Generator = 0,
    max_rank: int = MAX_RANK,
    chunk_size: int = 16,
    progress: bool = False,
) -> Estimate:
    r"""Estimate the Frobenius norm of ``A`` from products with random vectors.

    .. math:: \|A\|_F^2 = \operatorname{tr} A^T A
        = \|A Q\|_F^2 + \mathbb{E}\, \|A (I - Q Q^T) z\|^2, \qquad \mathbb{E}\, z z^T = I

    The square is estimated without bias; the norm is its root, and its error follows to first
    order (``stderr(norm) = stderr(square) / (2 norm)``). ``"hutchinson"`` has no ``Q``;
    ``"xtrace"`` has the basis of :func:`~curvops.linalg.trace.trace`, which pays where the
    spectrum decays and ``A`` is symmetric; ``"auto"`` is ``"xtrace"`` for square matrices.
    No product with ``A.T`` is needed. Memory as for :func:`~curvops.linalg.trace.trace`.

    Args:
        A: A matrix ``[M, N]``: an operator, or a dense tensor.
        method: See above; ``"xtrace"`` needs a square matrix.
        num_matvecs: Products to make; 100 if no tolerance is given either. From N on the norm
            is exact.
        rtol: Instead of a count: stop once half the width of the norm's 95 % interval is at
            most ``rtol`` times the norm.
        atol: Or at most ``atol``.
        max_matvecs: Where a tolerance gives up; 10 000 by default.
        distribution: ``"rademacher"``, ``"gaussian"`` or ``"sphere"``; by default Rademacher
            for Hutchinson and sphere for the other.
        seed: An integer, or a generator. The global generator is not used.
        max_rank: Most columns of a sketch.
        chunk_size: Columns that are multiplied at a time; changes nothing but rounding.
        progress: Show a bar over the products.

    Returns:
        The estimate of the norm. ``samples`` are of its *square*; ``lower`` and ``upper`` are
        roots of the 95 % interval of the square.

    Raises:
        ShapeError: If ``A`` is not a matrix, or not square for ``"xtrace"``.
        DTypeError: If it is not real floating.
        InputError: If an argument is impossible.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Girard 1989 and Hutchinson 1990 for tr AᵀA; Epperly, Tropp & Webber 2024, XTrace.

    Example:
        >>> import torch
        >>> round(float(frobenius_norm(torch.arange(12.0).view(6, 2))) ** 2, 3)
        506.0
    """
    start = time.perf_counter()
    products = Products(A, square=method == "xtrace")
    if method == "auto":
        method = "xtrace" if products.rows == products.dim else "hutchinson"
    if method not in LEAST:
        raise InputError(f'method must be "auto", "xtrace" or "hutchinson"; got {method!r}.')
    budget = Budget.of(num_matvecs, rtol, atol, max_matvecs)
    check_count("max_rank", max_rank)
    check_count("chunk_size", chunk_size)
    distribution = distribution or ("rademacher" if method == "hutchinson" else "sphere")
    sampler = _Square(method, Sketch(products, distribution, seed, chunk_size))
    moments = None
    with products.progress(progress, f"Frobenius norm ({method})", budget.limit):
        if not budget.is_exact(products.dim):
            budget.require(LEAST[method], f'method="{method}"')
            moments = estimate(sampler, products, budget, max_rank, _measure)
        if moments is None:
            squares = (float(b.square().sum()) for _, b in unit_products(products, chunk_size))
            square, stderr, half_width = sum(squares), 0.0, 0.0
        else:
            square, stderr = float(moments.mean), float(moments.stderr)
            half_width = float(moments.half_width)
    # Samples are squares, but leaving out may make them, and so their mean, a little negative.
    value = math.sqrt(max(square, 0.0))
    half_width += ROUNDINGS * products.eps * abs(square)
    lower, upper = _ends(square, half_width)
    return Estimate(
        value=value,
        stderr=stderr / (2 * value) if value else math.sqrt(stderr),
        lower=lower,
        upper=upper,
        num_matvecs=products.num_matvecs,
        converged=budget.accepts((upper - lower) / 2, value),
        samples=torch.empty(0, dtype=torch.float64) if moments is None else moments.samples,
        method=method if moments is not None else "exact",
        seconds=time.perf_counter() - start,
    ).vouched(budget.remedy())


class _Square(Deflated):
    """Samples of the squared norm."""

    def _base(self) -> Tensor:
        return self.sketch.AQ.square().sum()

    def _left_out(self) -> Moments:
        sketch = self.sketch
        H = sketch.AQ.T @ sketch.AQ
        crossed = 2 * (sketch.AQ.T @ sketch.Q) @ sketch.R
        return of_sketch(*quadratic(sketch, H, crossed, sketch.sizes))

    def _rest(self, X: Tensor) -> Tensor:
        return self.sketch.products(X).square().sum(0).unsqueeze(1)


def _ends(square: float, half_width: float) -> tuple[float, float]:
    """Return the roots of the ends of an interval of the square."""
    return math.sqrt(max(square - half_width, 0.0)), math.sqrt(max(square + half_width, 0.0))


def _measure(moments: Moments) -> tuple[float, float]:
    square = float(moments.mean)
    lower, upper = _ends(square, float(moments.half_width))
    return (upper - lower) / 2, math.sqrt(max(square, 0.0))
