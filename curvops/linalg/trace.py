r"""The trace of a matrix from products with random vectors, with its error."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.deflation import ROUNDINGS, Deflated
from curvops.linalg.estimate import Estimate
from curvops.linalg.leave_out import quadratic
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.nystrom import Nystrom
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

TraceMethod = Literal["auto", "hutchinson", "hutch++", "xtrace", "xnystrace"]

MAX_RANK = 64
"""Columns of a sketch, by default."""

LEAST = {"hutchinson": 2, "hutch++": 4, "xtrace": 4, "xnystrace": 2}
"""Products from which each method has two samples, hence an error."""


def trace(
    A: Matrix,
    method: TraceMethod = "auto",
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
    r"""Estimate the trace of ``A`` from products with random vectors.

    .. math:: \operatorname{tr} A = \operatorname{tr} Q^T A Q
        + \mathbb{E}\, z^T (I - Q Q^T) A (I - Q Q^T) z, \qquad \mathbb{E}\, z z^T = I

    =================  ======================================================================
    method             the basis ``Q``
    =================  ======================================================================
    ``"hutchinson"``   none: the mean of ``zᵀAz``; error like ``‖A‖_F n^(-1/2)``
    ``"hutch++"``      of the range of ``A`` on a third of the products; fresh probes see the rest
    ``"xtrace"``       the same on half of them; every probe also sees what is left when its own
                       column is taken out of the basis
    ``"xnystrace"``    the same from a Nyström approximation, which takes one product a column
                       instead of two; for positive semidefinite ``A``
    ``"auto"``         ``"xnystrace"`` if ``A`` says that it is positive semidefinite, otherwise
                       ``"xtrace"``
    =================  ======================================================================

    A sketch has at most ``max_rank`` columns. Products beyond what it takes go to fresh probes
    of the deflated remainder, at one product each, and are averaged with the samples of the
    sketch. So memory does not grow with ``num_matvecs``: it is three matrices ``[P, max_rank]``
    of float64 for ``"xtrace"`` and ``"hutch++"``, two for ``"xnystrace"``, and ``chunk_size``
    vectors for ``"hutchinson"``.

    Where as many products are asked for as ``A`` has columns, the trace is computed exactly
    from unit vectors.

    Args:
        A: A square matrix ``[P, P]``: an operator, or a dense tensor.
        method: See above.
        num_matvecs: Products to make; 100 if no tolerance is given either.
        rtol: Instead of a count: stop once half the width of the 95 % interval is at most
            ``rtol |value|``.
        atol: Or at most ``atol``.
        max_matvecs: Where a tolerance gives up; 10 000 by default.
        distribution: ``"rademacher"``, ``"gaussian"`` or ``"sphere"``. By default Rademacher for
            Hutchinson and sphere for the others, which rescale the part of a probe outside the
            basis to its average radius.
        seed: An integer, or a generator. The global generator is not used.
        max_rank: Most columns of a sketch.
        chunk_size: Columns that are multiplied at a time; changes nothing but rounding.
        progress: Show a bar over the products.

    Returns:
        The estimate; ``lower`` and ``upper`` are the 95 % interval by Student's quantile.
        ``samples`` are what the probes said. Those of the X-methods (each from the sketch
        without its own probe) are not independent: their ``se² = Σ(tᵢ - t̄)²/(k(k-1))`` is up to
        three times too small, so ``stderr`` is the larger of it and of the jackknife, which
        bounds the variance from above (see :mod:`curvops.linalg.leave_out`).

    Raises:
        ShapeError: If ``A`` is not square.
        DTypeError: If it is not real floating.
        InputError: If an argument is impossible, or ``A`` is not symmetric where it must be.
        IndefiniteError: If ``method="xnystrace"`` meets a negative Ritz value.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Epperly, Tropp & Webber 2024, XTrace: making the most of every sample in stochastic trace
        estimation. Meyer, Musco, Musco & Woodruff 2021, Hutch++. Girard 1989; Hutchinson 1990.

    Example:
        >>> import torch
        >>> A = torch.diag(0.5 ** torch.arange(200.0, dtype=torch.float64))
        >>> estimate = trace(A, "xtrace", num_matvecs=40)
        >>> estimate.lower <= 2 <= estimate.upper, estimate.stderr < 1e-4
        (True, True)
        >>> print(trace(A, rtol=1e-3, max_matvecs=150))
        1.9... ± ... [..., 2.0...] (... matvecs)
    """
    start = time.perf_counter()
    products = Products(A)
    if method == "auto":
        method = "xnystrace" if products.is_psd else "xtrace"
    if method not in LEAST:
        names = ", ".join(f'"{name}"' for name in ("auto", *LEAST))
        raise InputError(f"method must be one of {names}; got {method!r}.")
    budget = Budget.of(num_matvecs, rtol, atol, max_matvecs)
    check_count("max_rank", max_rank)
    check_count("chunk_size", chunk_size)
    distribution = distribution or ("rademacher" if method == "hutchinson" else "sphere")
    sampler: Nystrom | _Trace
    if method == "xnystrace":
        sampler = Nystrom(products, distribution, seed, chunk_size)
    else:
        sampler = _Trace(method, Sketch(products, distribution, seed, chunk_size))
    moments = None
    with products.progress(progress, f"trace ({method})", budget.limit):
        if not budget.is_exact(products.dim):
            budget.require(LEAST[method], f'method="{method}"')
            moments = estimate(sampler, products, budget, max_rank, _measure)
        if moments is None:
            value, half_width = _exact(products, chunk_size)
            stderr, used, samples = 0.0, "exact", torch.empty(0, dtype=torch.float64)
        else:
            value, stderr = float(moments.mean), float(moments.stderr)
            half_width = float(moments.half_width) + sampler.rounding
            used, samples = method, moments.samples
    return Estimate(
        value=value,
        stderr=stderr,
        lower=value - half_width,
        upper=value + half_width,
        num_matvecs=products.num_matvecs,
        converged=budget.accepts(half_width, abs(value)),
        samples=samples,
        method=used,
        seconds=time.perf_counter() - start,
    ).vouched(budget.remedy())


class _Trace(Deflated):
    """Samples of the trace."""

    def _base(self) -> Tensor:
        return torch.trace(self.sketch.Q.T @ self.sketch.AQ)

    def _left_out(self) -> Moments:
        sketch = self.sketch
        crossed = sketch.AQ.T @ sketch.omega + sketch.R
        return of_sketch(*quadratic(sketch, sketch.Q.T @ sketch.AQ, crossed, sketch.form))

    def _rest(self, X: Tensor) -> Tensor:
        return (X * self.sketch.products(X)).sum(0).unsqueeze(1)

    @property
    def rounding(self) -> float:
        """How far rounding may have moved the mean."""
        diagonal = (self.sketch.Q * self.sketch.AQ).sum(0)
        return ROUNDINGS * self.sketch.products.eps * float(diagonal.abs().sum())


def _measure(moments: Moments) -> tuple[float, float]:
    return float(moments.half_width), abs(float(moments.mean))


def _exact(products: Products, chunk_size: int) -> tuple[float, float]:
    """Return the sum of all diagonal entries, and how much of it may be rounding."""
    total = size = 0.0
    for first, block in unit_products(products, chunk_size):
        entries = torch.diagonal(block[first:])
        total += float(entries.sum())
        size += float(entries.abs().sum())
    return total, ROUNDINGS * products.eps * size
