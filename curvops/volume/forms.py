"""Curvature at θ* as a spectrum: exact, diagonal, of low rank, or Adam's stand-in for it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.errors import InputError
from curvops.linalg.diagonal import diagonal
from curvops.linalg.eigsh import eigsh
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.matrix import Products
from curvops.linalg.trace import trace
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.ggn_diagonal import GGNDiagonalLinearOperator
from curvops.operators.hessian import HessianLinearOperator
from curvops.rng import as_seed
from curvops.volume.spectral_form import SpectralForm

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk
    from curvops.volume.cost import Cost

Kind = Literal["none", "adam", "diagonal", "kfac", "lowrank", "dense"]
Curvature = Literal["hessian", "ggn", "kfac"]

KINDS = ("none", "adam", "diagonal", "kfac", "lowrank", "dense")
CURVATURES = ("hessian", "ggn", "kfac")

RANK = 100
"""Eigenpairs of a low-rank form where no number is given."""

_TOL = 1e-2
"""Residual asked of them, relative: a direction's scale need not be known to more digits."""

_PROBES = 20
"""Products with random vectors for a trace, or for what low rank leaves."""

_CHUNK = 64


def curvature_operator(risk: EmpiricalRisk, curvature: str) -> CurvatureLinearOperator:
    """Return the curvature of a risk by name.

    Raises:
        InputError: If there is no such curvature.
    """
    if curvature == "kfac":
        raise no_kfac("curvature")
    if curvature not in CURVATURES:
        raise InputError(f'curvature must be "hessian" or "ggn", got {curvature!r}.')
    operator = HessianLinearOperator if curvature == "hessian" else GGNLinearOperator
    return operator.from_risk(risk)


def no_kfac(argument: str) -> InputError:
    """Return the error that says that KFAC is not there."""
    return InputError(
        f'{argument}="kfac" needs a KFAC operator, and this version of curvops has none. Use '
        + ('"ggn" or "hessian".' if argument == "curvature" else '"diagonal" or "lowrank".')
    )


def spectral_form(
    cost: Cost,
    kind: Kind,
    *,
    curvature: Curvature = "ggn",
    rank: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> tuple[SpectralForm, int]:
    r"""Return the curvature of a cost at θ* as a spectrum.

    ============  ==========================================================================
    kind          the form
    ============  ==========================================================================
    ``none``      the zero matrix
    ``adam``      a diagonal, Adam's second moments, scaled to the trace of the curvature: those
                  of ``optimizer`` if given, else the mean squares of the per-datum gradients of
                  the risk, which is the diagonal of its empirical Fisher matrix
    ``diagonal``  the diagonal: exact for ``"ggn"``, from random probes for ``"hessian"``
    ``lowrank``   the largest eigenpairs, and the mean of the rest for the rest
    ``dense``     all eigenpairs, from P products and one dense decomposition
    ============  ==========================================================================

    Negative eigenvalues are replaced by their magnitudes: an ascent or a descent of the same
    curvature leaves the quadratic model's range at the same distance.

    Args:
        cost: The cost; its ``risk`` is what is differentiated.
        kind: See above.
        curvature: ``"ggn"`` or ``"hessian"``; the same matrix at θ* for a divergence.
        rank: Eigenpairs of ``lowrank``; at most 100 by default.
        optimizer: Trained the model, for ``adam``.
        seed: An integer, or a generator.
        progress: Show a bar.

    Returns:
        The form, and how many products it took.

    Raises:
        InputError: If a name is unknown, the rank impossible, or the optimizer has no second
            moments of a parameter.
    """
    if kind not in KINDS:
        names = ", ".join(f'"{name}"' for name in KINDS)
        raise InputError(f"preconditioner must be one of {names}; got {kind!r}.")
    if kind == "kfac":
        raise no_kfac("preconditioner")
    if optimizer is not None and kind != "adam":
        raise InputError(f'optimizer= is for preconditioner="adam"; got {kind!r}.')
    if rank is not None and kind != "lowrank":
        raise InputError(f'rank= is for preconditioner="lowrank"; got {kind!r}.')
    number = as_seed(seed)
    if kind == "none":
        return SpectralForm(cost.dim, torch.zeros(0, dtype=torch.float64), None), 0
    if kind == "diagonal" and curvature == "ggn":
        exact = GGNDiagonalLinearOperator.from_risk(cost.risk).diagonal
        return _axes(exact), 0
    operator = curvature_operator(cost.risk, curvature)
    if kind == "adam":
        return _adam(cost, operator, optimizer, number)
    if kind == "diagonal":
        estimate = diagonal(operator, num_matvecs=10 * _PROBES, seed=number, progress=progress)
        return _axes(estimate.value), estimate.num_matvecs
    if kind == "lowrank":
        return _lowrank(operator, rank, number, progress)
    return dense_form(operator, progress), cost.dim


def dense_form(operator: CurvatureLinearOperator, progress: bool = False) -> SpectralForm:
    """Return all eigenpairs of a symmetric operator, from P products."""
    values, vectors = torch.linalg.eigh(dense_matrix(operator, progress)[0])
    return SpectralForm(len(values), values.abs(), vectors.to(operator.dtype))


def dense_matrix(operator: CurvatureLinearOperator, progress: bool = False) -> tuple[Tensor, float]:
    """Return a symmetric operator's matrix ``[P, P]``, float64, and how much of it is rounding.

    The matrix is symmetric, so what is not is rounding: a measure of the symmetric part too.

    Raises:
        NonFiniteError: If it holds NaN or infinity, as at parameters or data that do.
    """
    products = Products(operator, "the curvature")
    size = products.dim
    products.prepare(size)
    matrix = torch.empty(size, size, dtype=torch.float64, device=operator.device)
    with tqdm(total=size, unit="product", desc="dense", disable=not progress) as bar:
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            units = torch.zeros(size, stop - start, dtype=operator.dtype, device=operator.device)
            units[start:stop].fill_diagonal_(1.0)
            matrix[:, start:stop] = products(units)
            bar.update(stop - start)
    operator.release()
    asymmetry = float((matrix - matrix.T).norm()) / 2
    roundings = torch.finfo(operator.dtype).eps * float(matrix.norm(dim=0).max())
    return (matrix + matrix.T) / 2, max(asymmetry, roundings)


def _axes(values: Tensor) -> SpectralForm:
    return SpectralForm(len(values), values.detach().to(torch.float64).abs(), None)


def _adam(
    cost: Cost,
    operator: CurvatureLinearOperator,
    optimizer: torch.optim.Optimizer | None,
    seed: int,
) -> tuple[SpectralForm, int]:
    """Return the second moments, as large in all as the curvature."""
    moments = _measured_moments(cost) if optimizer is None else _moments_of(cost, optimizer)
    if cost.dim <= _PROBES:
        total = float(dense_matrix(operator)[0].trace())
    else:
        with warnings.catch_warnings():  # a scale need not be precise
            warnings.simplefilter("ignore", UnconvergedWarning)
            total = float(trace(operator, num_matvecs=_PROBES, seed=seed))
    size = float(moments.sum())
    scale = total / size if total > 0 and size > 0 else 1.0
    return _axes(scale * moments), _PROBES


def _measured_moments(cost: Cost) -> Tensor:
    total = torch.zeros(cost.dim, dtype=torch.float64, device=cost.theta.device)
    count = 0
    for block in cost.source.per_sample_gradients():
        total += block.to(torch.float64).square().sum(0)
        count += len(block)
    return total / count


def _moments_of(cost: Cost, optimizer: torch.optim.Optimizer) -> Tensor:
    blocks = []
    for name, p in cost.source.params.items():
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state:
            raise InputError(
                f"optimizer= holds no second moments (exp_avg_sq) of the parameter {name!r}. Pass "
                "the Adam or AdamW that trained the very tensors of this risk, or leave it out."
            )
        blocks.append(state["exp_avg_sq"].detach().reshape(-1).to(torch.float64))
    return torch.cat(blocks)


def _lowrank(
    operator: CurvatureLinearOperator, rank: int | None, seed: int, progress: bool
) -> tuple[SpectralForm, int]:
    dim = operator.shape[0]
    k = min(RANK, max(1, dim // 2)) if rank is None else rank
    if not 1 <= k < dim:
        raise InputError(f"rank must be from 1 to P - 1 = {dim - 1}, got {rank!r}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        pairs = eigsh(operator, k, "LA", tol=_TOL, seed=seed, progress=progress)
    assert pairs.eigenvectors is not None
    V = torch.linalg.qr(pairs.eigenvectors.to(operator.dtype))[0]
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(dim, _PROBES, generator=generator).to(V)
    Z -= V @ (V.T @ Z)
    products = (Z * (operator @ Z)).sum(dtype=torch.float64)
    rest = float(products / Z.square().sum(dtype=torch.float64))
    operator.release()
    values = pairs.eigenvalues.to(torch.float64).abs()
    return SpectralForm(dim, values, V, abs(rest)), pairs.num_matvecs + _PROBES
