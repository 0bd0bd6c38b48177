r"""The spectral density, by stochastic Lanczos quadrature, outliers apart.

.. math:: \phi(x) = \frac1P \sum_i \delta(x - \lambda_i) \approx
    \frac1P \sum_{i \le k} \delta(x - \lambda_i)
    + \frac{P - k}{P} \frac1n \sum_{p=1}^n \sum_{j=1}^m w_{pj}\, \delta(x - \theta_{pj})

with k eigenpairs that are known, and the Gauss rules of m Lanczos steps from n random vectors in
their complement. A rule of m nodes has the first 2m moments of its vector's measure; what is left
is the noise of the vectors.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.density_result import SpectralDensity
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.linalg.lanczos import MEMORY, Tridiagonals, lanczos
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.probes import Probes
from curvops.linalg.wanted import Which

CONFIDENCE = 0.95
"""The Wasserstein bound holds with this probability."""


def spectral_density(
    A: Matrix,
    num_probes: int = 10,
    num_steps: int = 50,
    seed: int | torch.Generator = 0,
    *,
    deflate: int | EighResult = 0,
    which: Which = "LM",
    tol: float | None = None,
    memory: int = MEMORY,
    progress: bool = False,
) -> SpectralDensity:
    r"""Return the distribution of the eigenvalues of a symmetric matrix.

    It costs ``num_probes * num_steps`` products, and those of the eigenpairs that are deflated.

    Args:
        A: Symmetric ``[P, P]``: an operator of this or another library, or a dense tensor.
        num_probes: Random vectors n, uniform on the sphere. The noise falls as 1/√(nP).
        num_steps: Lanczos steps m of each. The resolution is about the spread of the spectrum
            over m.
        seed: An integer, or a generator from which one is drawn.
        deflate: Outliers to take out first: how many to compute with :func:`eigsh`, or its
            result. Of these the pairs that have converged are used.
        which: Which end the outliers are at, if they are computed.
        tol: Their relative residual, if they are computed.
        memory: Bytes for the Lanczos vectors of the probes that are treated at a time.
        progress: Show a bar of products.

    Returns:
        Nodes and weights of every probe, the outliers, and a bound of the Wasserstein distance
        from the true distribution.

    Raises:
        InputError: If a count is impossible, or the deflated result lacks vectors.
        ShapeError: If ``A`` is not square.
        DTypeError: If its dtype is not real floating.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Chen, Trogdon & Ubaru, Analysis of stochastic Lanczos quadrature for spectrum
        approximation, ICML 2021, Theorem 1; Lin, Saad & Yang, Approximating spectral densities
        of large matrices, SIAM Review 58 (2016), Section 3.2.

    Example:
        >>> import torch
        >>> A = torch.diag(torch.cat([torch.linspace(0, 1, 300), torch.tensor([5.0, 7.0])]))
        >>> density = spectral_density(A, num_probes=4, num_steps=30, deflate=2)
        >>> density.outliers.round(decimals=4)
        tensor([5., 7.], dtype=torch.float64)
        >>> curve = density.cdf(torch.tensor([0.5, 3.0]))
        >>> abs(float(curve.values[0]) - 0.5) < 0.05, round(float(curve.values[1]), 4)
        (True, 0.9934)
    """
    begin = time.perf_counter()
    for name, value, least in (("num_probes", num_probes, 1), ("num_steps", num_steps, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{name} must be a positive integer, got {value!r}.")
    products = Products(A)
    P = products.dim
    if not P:
        raise InputError("A is empty, [0, 0]; it has no spectrum.")
    probes = Probes(P, "sphere", seed, dtype=torch.float64, device=products.device)
    known, used = _outliers(A, deflate, which, tol, P, progress)
    outliers, X = known
    rest = P - len(outliers)
    steps = min(num_steps, max(rest, 1))
    products.prepare(num_probes * steps if rest else 0)
    inside = Products(_Complement(A, products, X)) if len(outliers) else products
    parts = []
    with inside.progress(progress, "spectral density", num_probes * steps):
        at_a_time = max(1, memory // (P * steps * max(products.dtype.itemsize, 4)))
        for start in range(0, num_probes if rest else 0, at_a_time):
            Z = probes.take(min(at_a_time, num_probes - start))
            if len(outliers):
                Z -= X.double() @ (X.double().T @ Z)
            parts.append(lanczos(inside, Z, steps, memory=memory))
    nodes, weights, spread, quadrature = _rules(parts, steps)
    share = rest / P
    sampling = share * spread * _deviation(rest, num_probes) if rest else 0.0
    a_priori = spread * 12 / (2 * steps - 1)
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        outliers=outliers,
        dim=P,
        wasserstein_sampling=sampling,
        wasserstein_quadrature=share * min(quadrature, a_priori),
        num_matvecs=inside.num_matvecs + used,
        seconds=time.perf_counter() - begin,
    )


class _Complement:
    """(I − XXᵀ)A, for vectors that are orthogonal to X."""

    def __init__(self, A: Matrix, products: Products, X: Tensor) -> None:
        self._A = A
        self._X = X.to(products.device, products.dtype)
        self.shape = (products.dim, products.dim)
        self.dtype, self.device = products.dtype, products.device

    def __matmul__(self, V: Tensor) -> Any:
        W = self._A @ V
        return W - self._X @ (self._X.T @ W)


def _outliers(
    A: Matrix, deflate: int | EighResult, which: Which, tol: float | None, dim: int, progress: bool
) -> tuple[tuple[Tensor, Tensor], int]:
    """Return converged eigenvalues ``[k]``, vectors ``[P, k]``, and the products they took."""
    if isinstance(deflate, EighResult):
        found, used = deflate, 0
        if found.eigenvectors is None:
            raise InputError(
                "deflate holds no eigenvectors: it was computed with return_eigenvectors=False."
            )
        if found.eigenvectors.shape[0] != dim:
            raise InputError(
                f"deflate has eigenvectors of {found.eigenvectors.shape[0]} entries; A is "
                f"[{dim}, {dim}]."
            )
    elif isinstance(deflate, int) and not isinstance(deflate, bool) and 0 <= deflate <= dim:
        if not deflate:
            return (torch.zeros(0, dtype=torch.float64), torch.zeros(dim, 0)), 0
        found = eigsh(A, deflate, which, tol=tol, progress=progress)
        used = found.num_matvecs
    else:
        raise InputError(
            f"deflate must be a number of outliers from 0 to {dim}, or an EighResult; "
            f"got {deflate!r}."
        )
    assert found.eigenvectors is not None
    good = found.converged.cpu()
    values = found.eigenvalues.double().cpu()[good]
    return (values, found.eigenvectors[:, good.to(found.eigenvectors.device)]), used


def _rules(parts: list[Tridiagonals], steps: int) -> tuple[Tensor, Tensor, float, float]:
    """Return nodes, weights, the spread of the spectrum, and a bound of the quadrature's error.

    Between two nodes the true distribution of a probe is no further from its rule's than the
    larger of their weights (Chebyshev, Markov, Stieltjes); beyond the last node no further than
    its weight. The spectrum is taken to end where Ritz values with their residuals end.
    """
    if not parts:
        empty = torch.zeros(0, steps, dtype=torch.float64)
        return empty, empty, 0.0, 0.0
    T = torch.cat([part.dense() for part in parts])
    last = torch.cat([_last_coupling(part) for part in parts])
    nodes, vectors = torch.linalg.eigh(T)
    weights = vectors[:, 0].square()
    residuals = last.unsqueeze(1) * vectors[:, -1].abs()
    low, high = float((nodes - residuals).min()), float((nodes + residuals).max())
    ends = torch.ones(len(nodes), 1, dtype=torch.float64)
    x = torch.cat([low * ends, nodes, high * ends], 1)
    w = torch.cat([0 * ends, weights, 0 * ends], 1)
    bound = (x.diff(dim=1) * torch.maximum(w[:, :-1], w[:, 1:])).sum(1)
    return nodes, weights, high - low, float(bound.mean())


def _last_coupling(T: Tridiagonals) -> Tensor:
    """Return what leaves the Krylov space of each probe ``[K]``; nothing where it ended early."""
    full = T.steps == T.alpha.shape[1]
    return torch.where(full, T.beta[:, -1], 0.0)


def _deviation(dim: int, num_probes: int) -> float:
    """Return what the mean over probes is off the true distribution by nowhere, most likely.

    At one point the measure of a random vector has a beta distribution, which is sub-Gaussian
    of variance 1/(2(P + 2)); P points are to hold at once.
    """
    return min(1.0, math.sqrt(math.log(2 * dim / (1 - CONFIDENCE)) / (num_probes * (dim + 2))))
