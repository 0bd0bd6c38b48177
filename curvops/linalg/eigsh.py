r"""Eigenpairs at the ends of the spectrum, by thick-restart block Lanczos.

.. math:: A v_i = \lambda_i v_i, \qquad \|A v_i - \lambda_i v_i\| \le \mathrm{tol}\,|\lambda_i|

All vectors of the basis are orthonormal to rounding wherever that matters, and the projected
matrix is float64. As long as the basis may grow, this takes the fewest products that any method
without a preconditioner can: the projection of ``A`` on the whole Krylov space is solved. After
that the basis is cut back to Ritz vectors.

A Krylov space of one vector holds one eigenvector of each eigenvalue, so copies of a multiple
eigenvalue are missed. When all pairs have converged, a fresh random direction is searched in the
complement of the basis; if something turns up there that belongs to the wanted, it joins.
"""

from __future__ import annotations

import time
import warnings

import torch
from torch import Tensor

from curvops.errors import DTypeError, InputError, NonFiniteError, ShapeError
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.krylov_basis import KrylovBasis, Ritz
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.probes import Probes
from curvops.linalg.thick_restart import FINE, Task, ThickRestart, search_length
from curvops.linalg.wanted import WHICH, Which, wanted
from curvops.rng import as_seed

BASIS_BYTES = 2 * 2**30
"""The basis takes no more than this unless k asks for more."""

NEXT = 5
"""How many of those next in line a later start is given a share of."""

SHARE = 6.0
"""How large it is, in units of the tolerance: a residual shows what has more than the tolerance."""

_CLOSE = 5
"""A previous result whose residuals are this many times too large is close."""


def eigsh(
    A: Matrix,
    k: int = 6,
    which: Which = "LM",
    *,
    tol: float | None = None,
    v0: Tensor | None = None,
    ncv: int | None = None,
    max_matvecs: int | None = None,
    block_size: int = 1,
    seed: int | torch.Generator = 0,
    return_eigenvectors: bool = True,
    warm_start: EighResult | Tensor | None = None,
    basis_device: torch.device | str | None = None,
    basis_dtype: torch.dtype | None = None,
    progress: bool = False,
) -> EighResult:
    r"""Return k eigenpairs from an end of the spectrum of a symmetric matrix.

    Equivalent to ``scipy.sparse.linalg.eigsh``, with residuals. That ``A`` is symmetric is taken
    on trust: products with one triangle only would not show it.

    Args:
        A: Symmetric ``[P, P]``: an operator of this or another library, or a dense tensor.
        k: How many, from 1 to P. For small P, or k near P, the matrix is formed (P products).
        which: ``"LM"`` largest magnitude, ``"LA"`` largest, ``"SA"`` smallest, ``"BE"`` half from
            each end, one more from the high end if k is odd.
        tol: The residual asked for, relative to the eigenvalue: by default 1e-8 for float64
            and 1e-4 for float32 products, 8 roundings for coarser ones. 0 asks for what rounding
            allows.
        v0: Where to start, ``[P]``, or ``[P, b]`` for a block; random by default.
        ncv: The largest number of basis vectors, more than k; by default 2k + 20,
            at least 40 where they fit into 2 GiB. More may save products, and cost memory and
            time: all vectors are kept orthogonal to each other.
        max_matvecs: Products after which to stop; by default 2000 or 100 k, whichever is more.
        block_size: Columns multiplied at a time. One takes the fewest products; a block of the
            largest multiplicity finds all copies at once.
        seed: An integer, or a generator from which one is drawn.
        return_eigenvectors: Whether to compute the vectors.
        warm_start: The result for a matrix that was not very different, or vectors ``[P, m]``
            that are all multiplied at once. A result is trusted: see the note.
        basis_device: Where Krylov vectors live, for example ``"cpu"`` when memory on the
            accelerator is short; by default with the matrix.
        basis_dtype: What they are stored in; by default what products are computed in, at least
            float32.
        progress: Show a bar of products.

    Returns:
        The eigenpairs, eigenvalues ascending. Residuals come from the recurrence: they are those
        of the vectors up to the rounding of a product, which is counted. An eigenvalue as small
        as this rounding counts as converged when its residual is, too.

    Raises:
        InputError: If an argument has an impossible value.
        ShapeError: If ``A`` is not square or a start does not fit.
        DTypeError: If a dtype is not real floating.
        NonFiniteError: If a start or a product holds NaN or infinity.

    Warns:
        UnconvergedWarning: If some pairs have not converged: products ran out, or their rounding
            does not allow what was asked.

    Note:
        How copies of multiple eigenvalues are found. Once what stands out of the spectrum has
        converged, a random direction of a tenth of the residual that is asked for is mixed into
        the iteration: copies grow out of it while the rest converges, at no cost. If they had no
        time for that, or if some have been found, a random direction in the complement of the
        basis is searched on its own, until its largest Ritz value is too far from what is wanted
        (Kuczyński & Woźniakowski 1992, Theorem 4.2), or a gap of 2 % of the spread would have
        been resolved. A single copy closer than that to the k-th eigenvalue may be missed; then
        the eigenvalue in its place is off by no more than that gap.

        A warm start from a result begins with the sum of its eigenvectors, a little of what was
        next in line then, and a little noise. Copies are not searched for again unless the result
        had some. What was nowhere in it is found if it has outgrown the last wanted eigenvalue by
        the spread of the rest; what is less, over the next few results of a chain.

    Source:
        Wu & Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J.
        Matrix Anal. Appl. 22 (2000), Algorithm 2; Stewart, A Krylov–Schur algorithm for large
        eigenproblems, SIAM J. Matrix Anal. Appl. 23 (2001).

    Example:
        >>> import torch
        >>> A = torch.diag(torch.linspace(1, 300, 300, dtype=torch.float64))
        >>> result = eigsh(A, k=3, which="LA")
        >>> result.eigenvalues.round(decimals=6)
        tensor([298., 299., 300.], dtype=torch.float64)
        >>> bool(result.converged.all()), result.num_matvecs < 150
        (True, True)
    """
    begin = time.perf_counter()
    products = Products(A)
    P = products.dim
    if not P:
        raise InputError("A is empty, [0, 0]; it has no eigenpairs.")
    _check_count(k, "k", 1, P)
    _check_count(block_size, "block_size", 1, P)
    if which not in WHICH:
        raise InputError(f"which must be one of {', '.join(WHICH)}, got {which!r}.")
    if tol is None:
        tol = 1e-8 if products.eps < 1e-12 else 1e-4 if products.eps < 1e-6 else 8 * products.eps
    if not 0 <= tol < 1:
        raise InputError(f"tol is a relative residual in [0, 1), got {tol!r}.")
    dtype = basis_dtype or torch.promote_types(products.dtype, torch.float32)
    if not dtype.is_floating_point:
        raise DTypeError(f"basis_dtype is {dtype}; expected a real floating dtype.")
    device = products.device if basis_device is None else torch.device(basis_device)
    start = _start(v0, warm_start, P)
    block = max(block_size, 1 if start is None else start.shape[1])
    if ncv is None:
        fits = BASIS_BYTES // (P * dtype.itemsize)
        ncv = min(P, max(2 * k + 20, k + 2 * block, min(max(2 * k + 20, 40), fits)))
    else:
        _check_count(ncv, "ncv", min(k + block, P), P)
    most = max(2000, 100 * k) if max_matvecs is None else max_matvecs
    _check_count(most, "max_matvecs", k, None)
    task = Task(k, which, tol, most, ncv)
    if most >= P and (P <= 64 or 2 * k > P or k + block >= P):
        return _dense(products, task, device, dtype, return_eigenvectors, begin)
    products.prepare(min(most, 5 * k + 30))
    # A stream of its own: eigenvectors found from the probes of the same seed elsewhere would
    # hold what those probes happen to have of a multiple eigenvalue.
    stream = as_seed(torch.Generator().manual_seed(as_seed(seed)))
    probes = Probes(P, "gaussian", stream)
    rows = min(P, ncv + search_length(P, FINE))
    basis = KrylovBasis(products, rows, block, probes, device, dtype)
    share = 0.0
    if isinstance(warm_start, EighResult) and _has_copies(warm_start, tol):
        start = _from_copies(products, warm_start, tol)
    elif isinstance(warm_start, EighResult):
        share = min(SHARE * max(tol, products.eps), 0.3)
        start = _from_previous(warm_start, probes, share)
    if start is not None:
        basis.inject(start.T)
    basis.inject(count=block_size - basis.block)
    search = ThickRestart(products, basis, task, generic=start is None, share=share)
    with products.progress(progress, "eigsh"):
        ritz = search.run()
    chosen = wanted(ritz.values, which, k)
    result = EighResult(
        eigenvalues=ritz.values[chosen].to(products.device),
        eigenvectors=basis.vectors(ritz.rotation[:, chosen]) if return_eigenvectors else None,
        residuals=ritz.residuals[chosen].to(products.device),
        converged=task.converged(ritz)[chosen].to(products.device),
        num_matvecs=products.num_matvecs,
        seconds=time.perf_counter() - begin,
        which=which,
        tol=tol,
        method="krylov",
        num_restarts=search.restarts,
        num_checks=search.checks,
        start=_later_start(basis, ritz, task) if return_eigenvectors else None,
    )
    return _vouched(result, search.exhausted)


def _dense(
    products: Products,
    task: Task,
    device: torch.device,
    dtype: torch.dtype,
    return_eigenvectors: bool,
    begin: float,
) -> EighResult:
    """Form the matrix, in chunks of columns, and solve it in float64 on the CPU."""
    P = products.dim
    products.prepare(P)
    A = torch.empty(P, P, dtype=torch.float64)
    for start in range(0, P, 64):
        stop = min(start + 64, P)
        units = torch.zeros(P, stop - start, dtype=torch.float64)
        units[start:stop].fill_diagonal_(1.0)
        A[:, start:stop] = products(units)
    values, vectors = torch.linalg.eigh((A + A.T) / 2)
    chosen = wanted(values, task.which, task.k)
    V = vectors[:, chosen]
    rounding = products.eps * float(A.norm(dim=0).max())
    inside = torch.hypot(((A - A.T) / 2 @ V).norm(dim=0), V.new_tensor(rounding))
    ritz = Ritz(values[chosen], V, torch.zeros_like(inside), inside)
    result = EighResult(
        eigenvalues=values[chosen].to(products.device),
        eigenvectors=V.to(device, dtype) if return_eigenvectors else None,
        residuals=inside.to(products.device),
        converged=task.converged(ritz).to(products.device),
        num_matvecs=products.num_matvecs,
        seconds=time.perf_counter() - begin,
        which=task.which,
        tol=task.tol,
        method="dense",
    )
    return _vouched(result, exhausted=False)


def _vouched(result: EighResult, exhausted: bool) -> EighResult:
    """Return the result, after warning if something has not converged."""
    missed = int((~result.converged).sum())
    if not missed and not exhausted:
        return result
    worst = float((result.residuals / result.eigenvalues.abs().clamp(min=1e-300)).max())
    if exhausted and missed:
        why = f"{result.num_matvecs} products were not enough. Raise max_matvecs, tol, or ncv"
    elif exhausted:
        why = (
            "products ran out before copies of multiple eigenvalues had been searched for. "
            "Raise max_matvecs"
        )
    else:
        why = (
            f"the rounding of the products allows no residual below about {worst:.1g} |λ|. Use "
            f"float64, or tol={worst * 2:.1g}"
        )
    what = (
        f"{missed} of {len(result.eigenvalues)} eigenpairs have not converged to"
        if (missed)
        else "eigenpairs have converged to"
    )
    warnings.warn(
        f"eigsh: {what} a residual of {result.tol:g} |λ|: {why}.",
        UnconvergedWarning,
        stacklevel=3,
    )
    return result


def _start(v0: Tensor | None, warm_start: EighResult | Tensor | None, dim: int) -> Tensor | None:
    """Return the columns to start from ``[P, b]``, or ``None`` for random ones."""
    if v0 is not None and warm_start is not None:
        raise InputError("v0 and warm_start both say where to start; give one of them.")
    name, start = ("v0", v0) if warm_start is None else ("warm_start", warm_start)
    if isinstance(start, EighResult):
        start = start.eigenvectors
        if start is None:
            raise InputError(
                "warm_start holds no eigenvectors: it was computed with return_eigenvectors=False."
            )
    if start is None:
        return None
    if not isinstance(start, Tensor):
        raise InputError(f"{name} is {type(start).__name__}; expected a tensor [P] or [P, b].")
    if not start.is_floating_point():
        raise DTypeError(f"{name} has dtype {start.dtype}; expected a real floating dtype.")
    columns = start.detach().unsqueeze(1) if start.ndim == 1 else start.detach()
    if columns.ndim != 2 or columns.shape[0] != dim or not 1 <= columns.shape[1] <= dim:
        raise ShapeError(f"{name} has shape {list(start.shape)}; expected [{dim}] or [{dim}, b].")
    if not bool(torch.isfinite(columns).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity.")
    if not bool(columns.any()):
        raise InputError(f"{name} is zero; a start must have a direction.")
    return columns


def _has_copies(previous: EighResult, tol: float) -> bool:
    """Return whether there are eigenvalues that the tolerance does not tell apart."""
    values = previous.eigenvalues
    sizes = torch.maximum(values[1:].abs(), values[:-1].abs())
    return bool((values.diff() <= max(previous.tol, tol, 1e-12) * sizes).any())


def _from_copies(products: Products, previous: EighResult, tol: float) -> Tensor:
    """Return the vectors of a previous result, or their sum if the matrix has changed much.

    One product shows how much. A block of all vectors pays if a step or two will do; otherwise
    their sum is the better start, which holds little of anything else.
    """
    vectors = previous.eigenvectors
    assert vectors is not None
    mixed: Tensor = vectors.sum(1)
    values = previous.eigenvalues.to(vectors.device, vectors.dtype)
    change = float((products(mixed) - vectors @ values).norm()) / vectors.shape[1] ** 0.5
    least = max(tol, products.eps) * float(values.abs().min())
    return vectors if change <= _CLOSE * least else mixed.unsqueeze(1)


def _from_previous(previous: EighResult, probes: Probes, share: float) -> Tensor:
    """Return one column to start from: what the previous iteration left, with a share of noise.

    In the sum of the eigenvectors the Krylov space has them all, and little of anything else; the
    noise has a share of whatever may have grown since.
    """
    assert previous.eigenvectors is not None
    start = previous.eigenvectors.sum(1) if previous.start is None else previous.start
    noise = probes.take(1)[:, 0].to(start)
    mixed: Tensor = start + share * start.norm() / noise.norm() * noise
    return mixed.unsqueeze(1)


def _later_start(basis: KrylovBasis, ritz: Ritz, task: Task) -> Tensor:
    """Return where a later iteration begins: the eigenvectors, and a little of the next in line."""
    weights = torch.zeros(len(ritz.values), dtype=torch.float64)
    weights[wanted(ritz.values, task.which, task.k + NEXT)] = SHARE * task.tol
    chosen = wanted(ritz.values, task.which, task.k)
    # What is small has the smallest residual asked of it, and converges last.
    size = ritz.values[chosen].abs()
    weights[chosen] = (size.max() / size.clamp(min=1e-4 * float(size.max()) or 1.0)).sqrt()
    start: Tensor = basis.vectors((ritz.rotation @ weights).unsqueeze(1))[:, 0]
    return start


def _check_count(value: int, name: str, least: int, most: int | None) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fits or (most is not None and value > most):
        upper = f" to {most}" if most is not None else " or more"
        raise InputError(f"{name} must be an integer of {least}{upper}, got {value!r}.")
