"""A picture of the whole spectrum, and what can be counted in it."""

from __future__ import annotations

from curvops.plotting.scree import scree
from curvops.plotting.spectrum import spectrum as draw_spectrum
from curvops.report.blocks import Note, Number, Paragraph, SectionResult, Table, digits
from curvops.report.context import Context
from curvops.report.dense import DenseHessian, dense_hessian, dense_seconds, is_affordable
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.top import NUM_PAIRS, top_eigenpairs, top_seconds

_ALL = "torch.linalg.eigvalsh(hessian.to_dense().double())"


def _estimate(context: Context) -> float:
    return dense_seconds(context) if is_affordable(context) else top_seconds(context)


@section("spectrum", "Spectrum", order=40, estimate=_estimate)
def spectrum(context: Context) -> SectionResult:
    """Draw all eigenvalues, or what is known of them."""
    if not is_affordable(context):
        return _largest_only(context)
    dense = dense_hessian(context)
    values = dense.eigenvalues
    num_negative = int((values < -dense.noise).sum())
    num_zero = int((values.abs() <= dense.noise).sum())
    smallest, largest = float(values[0]), float(values[-1])
    middle = float(values.median())
    numbers = {
        "smallest_eigenvalue": Number(
            smallest,
            "smallest eigenvalue",
            dense.noise,
            call=f"float({_ALL}[0])",
            headline=True,
            cost=dense.cost,
        ),
        "median_eigenvalue": Number(
            middle,
            "median eigenvalue",
            dense.noise,
            call=f"float({_ALL}.median())",
            cost=dense.cost,
        ),
        "num_negative": Number(num_negative, "eigenvalues below −noise", cost=dense.cost),
        "num_zero": Number(num_zero, "eigenvalues within the noise of zero", cost=dense.cost),
        "noise": Number(
            dense.noise,
            "noise of an eigenvalue",
            note="the norm of (H − Hᵀ)/2, or rounding",
            cost=dense.cost,
        ),
    }
    rows = [
        ("largest", digits(largest)),
        ("median", digits(middle)),
        ("smallest", digits(smallest)),
        ("negative", digits(num_negative)),
        ("zero within the noise", digits(num_zero)),
        ("noise of an eigenvalue", digits(dense.noise, 2)),
    ]
    marked = values[-min(NUM_PAIRS, len(values)) :]
    return SectionResult(
        [
            Paragraph(
                f"All {digits(len(values))} eigenvalues of the dense Hessian."
                + _weight_decay(context)
            ),
            picture(
                "spectrum",
                f"Histogram of {len(values)} eigenvalues from {smallest:.3g} to {largest:.3g}, "
                f"{num_negative} of them negative.",
                lambda ax: draw_spectrum(values, noise=dense.noise or None, marked=marked, ax=ax),
                caption="Both axes are logarithmic. Ticks at the top mark the largest eigenvalues.",
            ),
            Table((), rows),
            *_notes(dense, num_negative),
        ],
        numbers,
    )


def _weight_decay(context: Context) -> str:
    """Say what the weight decay does to the picture."""
    decay = context.risk.weight_decay
    if not decay:
        return ""
    return f" Weight decay is part of the risk: it lifts each of them by {digits(decay)}."


def _notes(dense: DenseHessian, num_negative: int) -> list[Note]:
    if not num_negative:
        return []
    return [
        Note(
            f"The Hessian is indefinite: {digits(num_negative)} eigenvalues are negative, the most "
            f"negative is {digits(float(dense.eigenvalues[0]))}. θ is not a minimum of this "
            "risk."
        )
    ]


def _largest_only(context: Context) -> SectionResult:
    """Draw the largest eigenvalues, where the dense Hessian is out of reach."""
    top = top_eigenpairs(context)
    values = top.eigenvalues
    return SectionResult(
        [
            Note(
                f"With {digits(context.num_params)} parameters (more than --max-dense "
                f"{digits(context.options.max_dense)}) only the {len(values)} largest eigenvalues "
                "are known; nothing is said about the others."
            ),
            picture(
                "spectrum",
                f"The {len(values)} largest eigenvalues by rank.",
                lambda ax: scree(values, ax=ax),
            ),
        ],
        {
            "largest_eigenvalue": Number(float(values[0]), call=f"{top.call}[-1]", cost=top.cost),
            "smallest_computed": Number(float(values[-1]), call=f"{top.call}[0]", cost=top.cost),
        },
    )
