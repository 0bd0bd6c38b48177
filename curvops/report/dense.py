"""Dense matrices and all of their eigenvalues: the truth, where it is affordable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.report.blocks import Cost
from curvops.report.context import Context, Task
from curvops.report.registry import Skipped
from curvops.report.speed import speed

_CHUNK = 64
# eigh takes about this many seconds for each cubed dimension on one core.
_EIGH_SECONDS = 2e-10


@dataclass(frozen=True)
class DenseHessian:
    """All eigenpairs of the Hessian.

    Attributes:
        eigenvalues: Ascending, ``[P]``, float64 on the CPU.
        eigenvectors: Their unit columns ``[P, P]``.
        diagonal: The diagonal of the matrix ``[P]``.
        noise: How far rounding may have moved an eigenvalue.
        asymmetry: Largest ``|H - H^T|``, relative to the largest eigenvalue.
        task: What forming the matrix cost.
        decomposition: What decomposing it cost.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    diagonal: Tensor
    noise: float
    asymmetry: float
    task: Task
    decomposition: Task

    @property
    def cost(self) -> Cost:
        """What forming and decomposing the matrix took."""
        return Cost(self.task.products, self.task.seconds + self.decomposition.seconds)


@dataclass(frozen=True)
class DenseSpectrum:
    """All eigenvalues of a matrix.

    Attributes:
        eigenvalues: Ascending, ``[P]``, float64 on the CPU.
        noise: How far rounding may have moved one of them.
        cost: What forming and decomposing the matrix took.
    """

    eigenvalues: Tensor
    noise: float
    cost: Cost


def is_affordable(context: Context) -> bool:
    """Return whether ``P`` is small enough for the dense Hessian."""
    return context.num_params <= context.options.max_dense


def dense_seconds(context: Context) -> float:
    """Guess how long the dense Hessian will take from now; nothing, once it is there."""
    if context.has("dense") or not is_affordable(context):
        return 0.0
    size = context.num_params
    return size * speed(context).column + _EIGH_SECONDS * size**3


def dense_hessian(context: Context) -> DenseHessian:
    """Return the eigenpairs of the dense Hessian, computed once for all sections.

    Raises:
        Skipped: If there are more parameters than ``--max-dense``.
    """
    _require(context, "Hessian")
    return context.shared("dense", lambda: _compute(context))


def dense_ggn(context: Context) -> DenseSpectrum:
    """Return the eigenvalues of the dense generalised Gauss-Newton matrix, computed once.

    Raises:
        Skipped: If there are more parameters than ``--max-dense``.
    """
    _require(context, "GGN")
    return context.shared("dense GGN", lambda: _compute_ggn(context))


def _require(context: Context, name: str) -> None:
    if not is_affordable(context):
        raise Skipped(
            f"This needs the dense {name}, which is formed only up to "
            f"{context.options.max_dense:,} parameters (--max-dense); here are "
            f"{context.num_params:,}."
        )


def _compute(context: Context) -> DenseHessian:
    matrix, task = _formed(context, context.hessian, "Hessian")
    with context.measure("eigenpairs of the dense Hessian") as decomposition:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    antisymmetric, largest = (matrix - matrix.T) / 2, float(values.abs().max())
    return DenseHessian(
        eigenvalues=values,
        eigenvectors=vectors,
        diagonal=matrix.diagonal().clone(),
        noise=_noise(matrix, largest, context.risk.dtype),
        asymmetry=2 * float(antisymmetric.abs().max()) / (largest or 1.0),
        task=task,
        decomposition=decomposition,
    )


def _compute_ggn(context: Context) -> DenseSpectrum:
    ggn = GGNLinearOperator.from_risk(context.risk)
    matrix, task = _formed(context, ggn, "GGN")
    with context.measure("eigenvalues of the dense GGN") as decomposition:
        values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    noise = _noise(matrix, float(values.abs().max()), context.risk.dtype)
    return DenseSpectrum(values, noise, Cost(task.products, task.seconds + decomposition.seconds))


def _formed(context: Context, operator: LinearOperator, name: str) -> tuple[Tensor, Task]:
    """Do what op.to_dense() does, in pieces that show progress; ``[P, P]`` float64."""
    size, risk = context.num_params, context.risk
    matrix = torch.empty(size, size, dtype=torch.float64)
    with context.measure(f"dense {name}, column by column") as task:
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            units = torch.zeros(size, stop - start, dtype=risk.dtype, device=risk.device)
            units[start:stop].fill_diagonal_(1)
            matrix[:, start:stop] = (operator @ units).to("cpu", torch.float64)
            task.products += stop - start
            context.tick(stop, size, "columns")
    return matrix, task


def _noise(matrix: Tensor, largest: float, dtype: torch.dtype) -> float:
    """Return how far rounding may have moved an eigenvalue.

    The matrix is symmetric, so what is not is rounding: a measure of the symmetric half too.
    """
    return max(
        float((matrix - matrix.T).norm()) / 2,
        torch.finfo(torch.float64).eps * len(matrix) * largest,
        torch.finfo(dtype).eps * largest,
    )
