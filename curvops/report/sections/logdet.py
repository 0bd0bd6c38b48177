"""log det(H + cI) of the dense Hessian over a range of shifts."""

from __future__ import annotations

import math

from curvops.errors import IndefiniteError
from curvops.plotting.logdet import logdet as draw_logdet
from curvops.report.blocks import Block, Note, Number, Paragraph, SectionResult, Table, digits
from curvops.report.context import Context
from curvops.report.dense import DenseHessian, dense_hessian, dense_seconds
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.volume.logdet import LogDet, logdet_from_eigenvalues

_DECADES = 7


@section("logdet", "Log-determinant", order=50, estimate=dense_seconds)
def logdet(context: Context) -> SectionResult:
    """Tabulate the log-determinant, or say why it has no value."""
    dense = dense_hessian(context)
    results: list[LogDet] = []
    failure: IndefiniteError | None = None
    numbers: dict[str, Number] = {}
    rows: list[tuple[str, str, str]] = []
    for shift in _shifts(dense):
        name = f"logdet_shift_{shift:g}"
        call = (
            "logdet_from_eigenvalues(torch.linalg.eigvalsh(hessian.to_dense().double()), "
            f"{shift!r}, noise={dense.noise!r}).value"
        )
        try:
            result = logdet_from_eigenvalues(dense.eigenvalues, shift, noise=dense.noise)
        except IndefiniteError as error:
            failure = error if failure is None else failure
            numbers[name] = Number(None, _label(shift), note=str(error), cost=dense.cost)
            rows.append((f"{shift:g}", "no value", f"{error.num_bad:,} eigenvalues at or below −c"))
        else:
            results.append(result)
            numbers[name] = Number(
                result.value,
                _label(shift),
                result.error,
                "nats",
                call=call,
                headline=len(results) == 1,
                cost=dense.cost,
            )
            rows.append((f"{shift:g}", f"{result.value:.6f}", f"± {result.error:.1e}"))
    blocks: list[Block] = [
        Paragraph(
            "Σ log(λᵢ + c) over all eigenvalues of the dense Hessian, in double precision. The "
            "error is what rounding may have made up, given the noise of an eigenvalue "
            f"({dense.noise:.1e})." + _inside(context)
        )
    ]
    if failure is not None:
        blocks.append(Note(str(failure), "warning"))
    if any(result.shift > 0 for result in results):
        below = None if failure is None else failure.sufficient_shift
        blocks.append(
            picture(
                "logdet",
                "The log-determinant against the shift.",
                lambda ax: draw_logdet(results, undefined_below=below, ax=ax),
            )
        )
    blocks.append(Table(("shift c", "log det(H + cI)  [nats]", "error"), rows))
    return SectionResult(blocks, numbers)


def _shifts(dense: DenseHessian) -> list[float]:
    """Return zero and one shift a decade, up to the first above every eigenvalue's magnitude.

    That one is enough for any Hessian. Where hardly another is, two decades more are shown.
    """
    largest = float(dense.eigenvalues.abs().max())
    top = math.floor(math.log10(largest)) + 1 if largest > 0 else 0
    smallest = float(dense.eigenvalues[0])
    more = 2 if smallest + 10.0 ** (top - 1) <= dense.noise else 0
    return [0.0, *(float(f"1e{top - i}") for i in reversed(range(-more, _DECADES)))]


def _label(shift: float) -> str:
    return f"log det(H + {shift:g} I)" if shift else "log det H"


def _inside(context: Context) -> str:
    decay = context.risk.weight_decay
    return f" H holds the risk's weight decay, {digits(decay)}, already." if decay else ""
