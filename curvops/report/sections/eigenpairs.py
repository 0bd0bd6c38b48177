"""The largest eigenpairs by curvops' eigsh and by SciPy's, beside the dense answer."""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.plotting.eigenpairs import eigenpairs as draw_eigenpairs
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
from curvops.report.native import NativeEigenpairs, native_eigenpairs, native_seconds
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.top import TopEigenpairs, top_eigenpairs, top_seconds


@section(
    "eigenpairs",
    "Largest eigenpairs",
    order=30,
    estimate=lambda context: sum(
        seconds(context) for seconds in (top_seconds, native_seconds, dense_seconds)
    ),
)
def eigenpairs(context: Context) -> SectionResult:
    """Compare both eigsh with each other, with dense eigenvalues and finite differences."""
    top, native = top_eigenpairs(context), native_eigenpairs(context)
    dense = dense_hessian(context) if is_affordable(context) else None
    own, values = native.result.eigenvalues.cpu().flip(0), top.eigenvalues
    count = len(values)
    largest = float(own.abs().max()) or 1.0
    reference = None if dense is None else dense.eigenvalues.flip(0)[: top.wanted]
    numbers = _numbers(top, native, largest)
    if dense is not None and reference is not None:
        numbers["dense_eigenvalues"] = Number(
            reference.tolist(),
            error=dense.noise,
            cost=dense.cost,
            call="torch.linalg.eigvalsh(hessian.to_dense().double())"
            f".flip(0)[:{top.wanted}].tolist()",
        )
        numbers["agreement_with_dense"] = Number(
            _difference(own, reference) / largest,
            "largest difference to dense, relative to the largest",
            headline=True,
        )
        numbers["arpack_agreement_with_dense"] = Number(
            _difference(values, reference) / largest,
            "the same for ARPACK",
        )
    difference = _finite_difference(context, top)
    numbers["finite_difference"] = Number(
        difference,
        "|finite difference of the gradient − λv| / λ for the largest",
        note="independent of second derivatives; its own error is about "
        f"{torch.finfo(context.risk.dtype).eps ** (2 / 3):.0e} times the third derivative",
    )
    blocks: list[Block] = [
        Paragraph(
            "curvops.linalg.eigsh of HessianLinearOperator.from_risk(risk), and "
            "scipy.sparse.linalg.eigsh (ARPACK) of its to_scipy(). Within the residual |Hv − λv| "
            "of each computed eigenvalue lies a true one."
        ),
        _solvers(top, native, dense, reference, largest),
    ]
    if count < top.wanted:
        blocks.append(
            Note(f"Only {count} of {top.wanted} of ARPACK's eigenpairs converged.", "warning")
        )
    doubtful = int((~native.result.converged).sum())
    if doubtful:
        blocks.append(
            Note(
                f"{doubtful} of {len(own)} of curvops' eigenpairs have not converged to a residual "
                f"of {native.result.tol:.1g} λ.",
                "warning",
            )
        )
    alt = f"The {len(own)} largest eigenvalues by rank, from {float(own[0]):.4g} down."
    blocks += [
        picture(
            "eigenpairs",
            alt,
            lambda ax: draw_eigenpairs(
                native.result, reference=values, reference_label="ARPACK", ax=ax
            ),
            caption="Dots: curvops, with the residuals as error bars. Rings: ARPACK.",
        ),
        _table(top, native, reference, largest),
        Paragraph(
            "Without any second derivative: the finite difference of the gradient along the first "
            f"eigenvector differs from λv by {digits(difference, 2)} of λ."
        ),
    ]
    return SectionResult(blocks, numbers)


def _numbers(top: TopEigenpairs, native: NativeEigenpairs, largest: float) -> dict[str, Number]:
    """Return what both solvers found; curvops' own under the plain names."""
    result = native.result
    own, residuals = result.eigenvalues.cpu().flip(0), result.residuals.cpu().flip(0)
    return {
        "eigenvalues": Number(
            own.tolist(),
            error=float(residuals.max()),
            call=f"{native.call}.eigenvalues.flip(0).tolist()",
            cost=native.cost,
        ),
        "residual_norms": Number(residuals.tolist(), "|Hv − λv|", cost=native.cost),
        "largest_eigenvalue": Number(
            float(own[0]),
            "largest eigenvalue",
            # A symmetric matrix has an eigenvalue within the residual norm.
            error=float(residuals[0]),
            call=f"float({native.call}.eigenvalues[-1])",
            headline=True,
            cost=native.cost,
        ),
        "arpack_eigenvalues": Number(
            top.eigenvalues.tolist(),
            error=float(top.residuals.max()),
            call=f"{top.call}[::-1]",
            cost=top.cost,
        ),
        "arpack_residual_norms": Number(top.residuals.tolist(), "|Hv − λv|", cost=top.cost),
        "agreement_with_arpack": Number(
            _difference(own, top.eigenvalues) / largest,
            "largest difference to ARPACK, relative to the largest",
        ),
    }


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of eigenvalues of the same rank."""
    both = min(len(a), len(b))
    return float((a[:both] - b[:both]).abs().max())


def _solvers(
    top: TopEigenpairs,
    native: NativeEigenpairs,
    dense: DenseHessian | None,
    reference: Tensor | None,
    largest: float,
) -> Table:
    """Tabulate what each way took, and how good it is."""
    rows = []
    for name, cost, values, residuals in (
        ("curvops eigsh", native.cost, native.result.eigenvalues.flip(0), native.result.residuals),
        ("SciPy eigsh (ARPACK)", top.cost, top.eigenvalues, top.residuals),
    ):
        row = [name, digits(cost.products), duration(cost.seconds)]
        row.append(f"{float(residuals.max()) / largest:.1e}")
        if reference is not None:
            row.append(f"{_difference(values.cpu(), reference) / largest:.1e}")
        rows.append(row)
    columns = ["", "products", "time", "largest |Hv − λv| / λ₁"]
    if dense is not None:
        columns.append("largest |difference to dense| / λ₁")
        cost = dense.cost
        rows.append(["dense, all", digits(cost.products), duration(cost.seconds), "–", "–"])
    return Table(columns, rows, f"{top.wanted} eigenpairs by each solver.")


def _table(
    top: TopEigenpairs, native: NativeEigenpairs, reference: Tensor | None, largest: float
) -> Table:
    """Tabulate the pairs; residuals are relative to the largest eigenvalue."""
    own, residuals = native.result.eigenvalues.flip(0), native.result.residuals.flip(0)
    theirs, their_residuals = top.eigenvalues.tolist(), top.residuals.tolist()
    rows = []
    for i, (value, residual) in enumerate(zip(own.tolist(), residuals.tolist(), strict=True)):
        found = i < len(theirs)
        row = [str(i + 1), f"{value:.8g}", f"{theirs[i]:.8g}" if found else "–"]
        row += [f"{float(reference[i]):.8g}"] if reference is not None else []
        row.append(f"{residual / largest:.1e}")
        rows.append([*row, f"{their_residuals[i] / largest:.1e}" if found else "–"])
    columns = ["rank", "curvops", "ARPACK"] + (["dense"] if reference is not None else [])
    return Table(
        [*columns, "residual / λ₁, curvops", "ARPACK"], rows, "Eigenvalues, largest first."
    )


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
