"""The largest eigenpairs by curvops' own eigsh, shared by the sections."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.report.blocks import Cost
from curvops.report.context import Context, Task
from curvops.report.estimates import Watched, quietly
from curvops.report.speed import speed
from curvops.report.top import NUM_PAIRS, TOLERANCES

# Without a restart, about this many; only used to guess a duration.
_TYPICAL_PRODUCTS = 5 * NUM_PAIRS


@dataclass(frozen=True)
class NativeEigenpairs:
    """The algebraically largest eigenpairs, and what they cost.

    Attributes:
        result: The eigenpairs, smallest first.
        task: What they were booked on.
        call: The call that gives the result.
    """

    result: EighResult
    task: Task
    call: str

    @property
    def cost(self) -> Cost:
        """What they took."""
        return Cost(self.task.products, self.task.seconds)


def native_seconds(context: Context) -> float:
    """Guess how long the eigenpairs will take from now; nothing, once they are there."""
    return 0.0 if context.has("native") else _TYPICAL_PRODUCTS * speed(context).product


def native_eigenpairs(context: Context) -> NativeEigenpairs:
    """Return the 20 largest eigenpairs (fewer if P is smaller), computed once for all sections."""
    return context.shared("native", lambda: _compute(context))


def _compute(context: Context) -> NativeEigenpairs:
    size, seed = context.num_params, context.options.seed
    wanted = max(1, min(NUM_PAIRS, size - 1))
    # As ARPACK is asked for; in lower precision what rounding allows is left to the default.
    tolerance = TOLERANCES["float64"] if context.risk.dtype == torch.float64 else None
    with context.measure("eigsh (curvops)") as task, quietly():
        operator = Watched(context.hessian, context, task)
        result = eigsh(operator, wanted, "LA", tol=tolerance, seed=seed)
    call = f"native_eigsh(hessian, {wanted}, 'LA', tol={tolerance!r}, seed={seed})"
    return NativeEigenpairs(result, task, call)
