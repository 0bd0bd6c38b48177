"""The largest eigenpairs by SciPy's ARPACK over the exported operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from curvops.report.blocks import Cost
from curvops.report.context import Context, Task
from curvops.report.registry import Skipped
from curvops.report.speed import speed

NUM_PAIRS = 20
# ARPACK on such spectra restarts a few times; only used to guess a duration.
_TYPICAL_PRODUCTS = 8 * NUM_PAIRS
TOLERANCES = {"float64": 1e-10, "float32": 1e-6}
"""The relative accuracy that is asked for, by the name of the dtype."""


@dataclass(frozen=True)
class TopEigenpairs:
    """The algebraically largest eigenpairs, largest first.

    Attributes:
        eigenvalues: ``[k]``, float64 on the CPU.
        eigenvectors: Unit columns ``[P, k]`` in the risk's dtype and on its device.
        residuals: ``|Hv - lambda v|`` of each pair, ``[k]``.
        task: What it cost, without the residuals.
        wanted: How many pairs were asked for; more than ``k`` if some did not converge.
        call: The call that gives the eigenvalues, smallest first.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    residuals: Tensor
    task: Task
    wanted: int
    call: str

    @property
    def cost(self) -> Cost:
        """What they took."""
        return Cost(self.task.products, self.task.seconds)


def top_seconds(context: Context) -> float:
    """Guess how long the eigenpairs will take from now; nothing, once they are there."""
    return 0.0 if context.has("top") else _TYPICAL_PRODUCTS * speed(context).product


def top_eigenpairs(context: Context) -> TopEigenpairs:
    """Return the 20 largest eigenpairs (fewer if P is smaller), computed once for all sections.

    Raises:
        Skipped: If there is a single parameter.
    """
    if context.num_params < 2:
        raise Skipped("A Lanczos method needs at least two parameters; here is one.")
    return context.shared("top", lambda: _compute(context))


def _compute(context: Context) -> TopEigenpairs:
    risk, size, seed = context.risk, context.num_params, context.options.seed
    wanted = min(NUM_PAIRS, size - 1)
    operator = context.hessian.to_scipy()
    tolerance = TOLERANCES.get(operator.dtype.name, 0)
    start = np.random.default_rng(seed).standard_normal(size).astype(operator.dtype)
    with context.measure("eigsh (ARPACK)") as task:
        counted = _counted(operator, context, task)
        try:
            values, vectors = eigsh(counted, k=wanted, which="LA", v0=start, tol=tolerance)
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
            if not len(values):
                raise
        order = np.argsort(values)[::-1]
        columns = torch.from_numpy(np.ascontiguousarray(vectors[:, order]))
        columns = columns.to(risk.device, risk.dtype)
        found = torch.from_numpy(values[order].astype(np.float64))
    with context.measure("residuals of the eigenpairs") as check:
        products = context.hessian @ columns
        check.products = len(found)
        residuals = (products - columns * found.to(columns)).norm(dim=0)
    call = (
        f"eigsh(hessian.to_scipy(), k={wanted}, which='LA', tol={tolerance:g}, "
        f"v0=np.random.default_rng({seed}).standard_normal({size}).astype('{operator.dtype}'))[0]"
    )
    return TopEigenpairs(
        eigenvalues=found,
        eigenvectors=columns,
        residuals=residuals.to("cpu", torch.float64),
        task=task,
        wanted=wanted,
        call=call,
    )


def _counted(operator: Any, context: Context, task: Task) -> Any:
    """Return the same operator, counting its products and stopping when the budget is spent."""

    def matvec(x: Any) -> Any:
        product = operator @ x
        task.products += 1
        context.tick(task.products, None, "products")
        return product

    return LinearOperator(operator.shape, matvec=matvec, dtype=operator.dtype)
