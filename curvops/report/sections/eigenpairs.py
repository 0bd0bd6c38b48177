"""The largest eigenpairs by SciPy's eigsh, beside the dense answer."""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.plotting.scree import scree
from curvops.report.blocks import (
    Block,
    Note,
    Number,
    Paragraph,
    SectionResult,
    Table,
    digits,
    duration,
)
from curvops.report.context import Context
from curvops.report.dense import DenseHessian, dense_hessian, dense_seconds, is_affordable
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.top import TopEigenpairs, top_eigenpairs, top_seconds


@section(
    "eigenpairs",
    "Largest eigenpairs",
    order=30,
    estimate=lambda context: top_seconds(context) + dense_seconds(context),
)
def eigenpairs(context: Context) -> SectionResult:
    """Compare eigsh with the dense eigenvalues and with finite differences."""
    top = top_eigenpairs(context)
    dense = dense_hessian(context) if is_affordable(context) else None
    values, count = top.eigenvalues, len(top.eigenvalues)
    largest = float(values.abs().max()) or 1.0
    numbers = {
        "eigenvalues": Number(values.tolist(), call=f"{top.call}[::-1]", cost=top.cost),
        "residual_norms": Number(top.residuals.tolist(), "|Hv − λv|", cost=top.cost),
        "largest_eigenvalue": Number(
            float(values[0]),
            "largest eigenvalue",
            # A symmetric matrix has an eigenvalue within the residual norm.
            error=float(top.residuals[0]),
            call=f"{top.call}[-1]",
            headline=True,
            cost=top.cost,
        ),
    }
    blocks: list[Block] = [
        Paragraph(
            f"scipy.sparse.linalg.eigsh over HessianLinearOperator.from_risk(risk).to_scipy() "
            f"took {digits(top.task.products)} products and {duration(top.task.seconds)}. "
            "Within the residual |Hv − λv| of each computed eigenvalue lies a true one."
            + _beside(dense)
        )
    ]
    if count < top.wanted:
        blocks.append(
            Note(f"Only {count} of {top.wanted} eigenpairs converged; these are shown.", "warning")
        )
    reference = None if dense is None else dense.eigenvalues.flip(0)[:count]
    if dense is not None and reference is not None:
        agreement = float((values - reference).abs().max()) / largest
        numbers["dense_eigenvalues"] = Number(
            reference.tolist(),
            error=dense.noise,
            cost=dense.cost,
            call=f"torch.linalg.eigvalsh(hessian.to_dense().double()).flip(0)[:{count}].tolist()",
        )
        numbers["agreement_with_dense"] = Number(
            agreement, "largest difference to dense, relative to the largest", headline=True
        )
    difference = _finite_difference(context, top)
    numbers["finite_difference"] = Number(
        difference,
        "|finite difference of the gradient − λv| / λ for the largest",
        note="independent of second derivatives; its own error is about "
        f"{torch.finfo(context.risk.dtype).eps ** (2 / 3):.0e} times the third derivative",
    )
    alt = f"The {count} largest eigenvalues by rank, from {float(values[0]):.4g} down."
    blocks += [
        picture(
            "eigenpairs",
            alt,
            lambda ax: scree(values, reference=reference, label="eigsh", ax=ax),
        ),
        _table(top, reference, largest),
        Paragraph(
            "Without any second derivative: the finite difference of the gradient along the first "
            f"eigenvector differs from λv by {digits(difference, 2)} of λ."
        ),
    ]
    return SectionResult(blocks, numbers)


def _beside(dense: DenseHessian | None) -> str:
    if dense is None:
        return ""
    return (
        f" Beside it the eigenvalues of the dense Hessian, {digits(dense.task.products)} products "
        f"and {duration(dense.cost.seconds)} for all of them."
    )


def _table(top: TopEigenpairs, reference: Tensor | None, largest: float) -> Table:
    """Tabulate the pairs; differences and residuals are relative to the largest eigenvalue."""
    rows = []
    for i, (value, residual) in enumerate(zip(top.eigenvalues.tolist(), top.residuals.tolist())):
        row = [str(i + 1), f"{value:.8g}"]
        if reference is not None:
            expected = float(reference[i])
            row += [f"{expected:.8g}", f"{abs(value - expected) / largest:.1e}"]
        rows.append([*row, f"{residual / largest:.1e}"])
    columns = ["rank", "eigsh"]
    columns += ["dense", "|difference| / λ₁"] if reference is not None else []
    return Table([*columns, "|Hv − λv| / λ₁"], rows, "Eigenvalues, largest first.")


def _finite_difference(context: Context, top: TopEigenpairs) -> float:
    """Compare ``λ v`` with the central difference of the gradient along ``v``."""
    risk = context.risk
    value, vector = float(top.eigenvalues[0]), top.eigenvectors[:, 0]
    theta = risk.theta
    # The step that balances the rounding of the gradient and the third derivative.
    step = torch.finfo(risk.dtype).eps ** (1 / 3) * max(1.0, float(theta.norm()))
    with context.measure("finite difference of the gradient"):
        ahead = risk.at(theta + step * vector).gradient()
        behind = risk.at(theta - step * vector).gradient()
    difference = (ahead - behind) / (2 * step) - value * vector
    return float(difference.norm()) / (abs(value) or 1.0)
