"""The dense Hessian and all of its eigenpairs: the truth, where it is affordable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        noise: How far rounding may have moved an eigenvalue.
        asymmetry: Largest ``|H - H^T|``, relative to the largest eigenvalue.
        task: What forming the matrix cost.
        decomposition: What decomposing it cost.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    noise: float
    asymmetry: float
    task: Task
    decomposition: Task

    @property
    def cost(self) -> Cost:
        """What forming and decomposing the matrix took."""
        return Cost(self.task.products, self.task.seconds + self.decomposition.seconds)


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
    if not is_affordable(context):
        raise Skipped(
            f"This needs the dense Hessian, which is formed only up to "
            f"{context.options.max_dense:,} parameters (--max-dense); here are "
            f"{context.num_params:,}."
        )
    return context.shared("dense", lambda: _compute(context))


def _compute(context: Context) -> DenseHessian:
    size, risk = context.num_params, context.risk
    matrix = torch.empty(size, size, dtype=torch.float64)
    with context.measure("dense Hessian, column by column") as task:
        # What op.to_dense() does, in pieces that show progress.
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            units = torch.zeros(size, stop - start, dtype=risk.dtype, device=risk.device)
            units[start:stop].fill_diagonal_(1)
            matrix[:, start:stop] = (context.hessian @ units).to("cpu", torch.float64)
            task.products += stop - start
            context.tick(stop, size, "columns")
    antisymmetric = (matrix - matrix.T) / 2
    with context.measure("eigenpairs of the dense Hessian") as decomposition:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    largest = float(values.abs().max())
    # A Hessian is symmetric, so what is not is rounding: a measure of the symmetric half too.
    noise = max(
        float(antisymmetric.norm()),
        torch.finfo(torch.float64).eps * size * largest,
        torch.finfo(risk.dtype).eps * largest,
    )
    return DenseHessian(
        eigenvalues=values,
        eigenvectors=vectors,
        noise=noise,
        asymmetry=2 * float(antisymmetric.abs().max()) / (largest or 1.0),
        task=task,
        decomposition=decomposition,
    )
