"""log det(H + cI) and log det(G + cI) over shifts: brackets, and the exact values beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from curvops.errors import CurvopsError, IndefiniteError
from curvops.linalg.estimate import Estimate
from curvops.linalg.logdet import logdet as estimate_logdet
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.plotting.logdet import logdet as draw_logdet
from curvops.report.blocks import (
    Block,
    Cost,
    Note,
    Number,
    Paragraph,
    SectionResult,
    Table,
    digits,
    duration,
)
from curvops.report.context import Context
from curvops.report.dense import (
    DenseHessian,
    DenseSpectrum,
    dense_ggn,
    dense_hessian,
    dense_seconds,
    is_affordable,
)
from curvops.report.estimates import Watched, bracket, numbers_of, quietly
from curvops.report.native import native_eigenpairs, native_seconds
from curvops.report.pictures import picture
from curvops.report.registry import BudgetSpent, section
from curvops.report.speed import speed
from curvops.volume.logdet import LogDet, logdet_from_eigenvalues

_DECADES = 7
_TYPICAL_PRODUCTS = 300


@dataclass
class Found:
    """The log-determinants of one matrix.

    Attributes:
        name: Of the matrix, in words.
        symbol: Of the matrix, in formulas.
        prefix: Of its numbers.
        code: A Python expression of the matrix.
        noise: Of one dense eigenvalue.
        exact: From all eigenvalues, by shift.
        estimates: With brackets, by shift.
        call: The call that gives the estimates, in the order of their shifts.
        failure: Why the smallest shifts have no value.
        cost: What the estimates took, together.
    """

    name: str
    symbol: str
    prefix: str
    code: str
    noise: float = 0.0
    exact: dict[float, LogDet] = field(default_factory=dict)
    estimates: dict[float, Estimate] = field(default_factory=dict)
    call: str = ""
    failure: IndefiniteError | None = None
    cost: Cost = field(default_factory=Cost)

    def label(self, shift: float) -> str:
        """Return what a person calls the value at a shift."""
        return f"log det({self.symbol} + {shift:g} I)" if shift else f"log det {self.symbol}"


def _estimate(context: Context) -> float:
    unit = speed(context)
    second = context.num_params * unit.column if is_affordable(context) else 0.0
    first = dense_seconds(context) if is_affordable(context) else native_seconds(context)
    return first + second + 2 * _TYPICAL_PRODUCTS * unit.column


@section("logdet", "Log-determinant", order=50, estimate=_estimate)
def logdet(context: Context) -> SectionResult:
    """Tabulate the log-determinants of Hessian and GGN, or say why they have no value."""
    shifts = _shifts(context)
    numbers: dict[str, Number] = {}
    blocks: list[Block] = [
        Paragraph(
            "Each matrix in one run for all shifts. The brackets are Gauss quadrature from above "
            "and Gauss–Radau from below, with three standard errors of the probes. ∞ as an end "
            "says that nothing seen bounds the value there." + _beside(context) + _inside(context)
        )
    ]
    hessian = Found("Hessian", "H", "logdet", "hessian")
    dense = dense_hessian(context) if is_affordable(context) else None
    _exact(hessian, shifts, dense)
    _estimates(hessian, context, context.hessian, shifts)
    found = [hessian]
    blocks += _told(hessian, shifts, numbers, dense.cost if dense else None)
    try:
        ggn = _ggn(context, shifts, numbers, blocks)
    except BudgetSpent:
        raise
    except CurvopsError as error:
        blocks.append(Note(f"The GGN has no log-determinant here: {error}", "warning"))
    else:
        found.append(ggn)
    blocks += _pictures(found)
    return SectionResult(blocks, numbers)


def _ggn(
    context: Context, shifts: list[float], numbers: dict[str, Number], blocks: list[Block]
) -> Found:
    """Return those of the generalised Gauss-Newton matrix."""
    code = "GGNLinearOperator.from_risk(risk)"
    ggn = Found("generalised Gauss–Newton matrix", "G", "ggn_logdet", code)
    operator = GGNLinearOperator.from_risk(context.risk)
    dense = dense_ggn(context) if is_affordable(context) else None
    _exact(ggn, shifts, dense)
    _estimates(ggn, context, operator, shifts)
    blocks += _told(ggn, shifts, numbers, dense.cost if dense else None)
    return ggn


def _exact(found: Found, shifts: list[float], dense: DenseHessian | DenseSpectrum | None) -> None:
    """Sum over all eigenvalues, where they are known."""
    if dense is None:
        return
    found.noise = dense.noise
    for shift in shifts:
        try:
            found.exact[shift] = logdet_from_eigenvalues(
                dense.eigenvalues, shift, noise=dense.noise
            )
        except IndefiniteError as error:  # noqa: PERF203 - each shift for itself
            found.failure = found.failure or error


def _estimates(
    found: Found, context: Context, operator: LinearOperator, shifts: list[float]
) -> None:
    """Estimate all shifts in one run, and again without those that turn out too small."""
    seed = context.options.seed
    allowed = [c for c in shifts if c in found.exact] if found.failure else list(shifts)
    with context.measure(f"log-determinants, {found.name}") as task, quietly():
        while allowed:
            try:
                results = estimate_logdet(Watched(operator, context, task), allowed, seed=seed)
            except IndefiniteError as error:  # noqa: PERF203 - ends at the first success
                found.failure = found.failure or error
                least = max(error.sufficient_shift, error.shift)
                # At least the smallest shift goes, so that this ends.
                allowed = [c for c in allowed[1:] if c >= least]
            else:
                task.products = max(task.products, results[0].num_matvecs)
                found.estimates = dict(zip(allowed, results, strict=True))
                found.call = f"logdet({found.code}, {allowed!r}, seed={seed})"
                break
    found.cost = Cost(task.products, task.seconds)


def _told(
    found: Found, shifts: list[float], numbers: dict[str, Number], dense: Cost | None
) -> list[Block]:
    """Return the table, and the numbers behind it."""
    rows = []
    places = {shift: i for i, shift in enumerate(found.estimates)}
    for shift in shifts:
        name, label = f"{found.prefix}_shift_{shift:g}", found.label(shift)
        exact, estimate = found.exact.get(shift), found.estimates.get(shift)
        if exact is not None:
            numbers[name] = _dense_number(found, shift, exact, dense or Cost())
        elif estimate is None:
            numbers[name] = Number(None, label, note=str(found.failure), cost=dense or found.cost)
        if estimate is not None:
            numbers |= numbers_of(
                f"{name}_estimate",
                estimate,
                f"{label}, estimate",
                f"{found.call}[{places[shift]}]",
                unit="nats",
                headline=shift == min(found.estimates) and found.symbol == "H",
            )
        row = [f"{shift:g}"]
        if dense is not None:
            row.append("–" if exact is None else f"{exact.value:.6f} ± {exact.error:.0e}")
        if estimate is None:
            rows.append([*row, "no value", "A + cI is not positive definite"])
        else:
            doubt = "" if estimate.converged else " (not converged)"
            rows.append([*row, f"{estimate.value:.6g}{doubt}", bracket(estimate)])
    how = next((e.method for e in found.estimates.values()), "none")
    caption = (
        f"log det({found.symbol} + cI) of the {found.name}, in nats. Method: {how}, "
        f"{digits(found.cost.products)} products, {duration(found.cost.seconds)}."
    )
    columns = ["shift c", *(["exact (dense)"] if dense else []), "estimate", "bracket"]
    blocks: list[Block] = [Table(columns, rows, caption)]
    if found.failure is not None:
        blocks.insert(0, Note(str(found.failure), "warning"))
    return blocks


def _dense_number(found: Found, shift: float, exact: LogDet, cost: Cost) -> Number:
    """Return the exact value as a number of the report."""
    return Number(
        exact.value,
        f"{found.label(shift)}, exact",
        exact.error,
        "nats",
        call=f"logdet_from_eigenvalues(torch.linalg.eigvalsh({found.code}.to_dense().double()), "
        f"{shift!r}, noise={found.noise!r}).value",
        headline=shift == min(found.exact) and found.symbol == "H",
        cost=cost,
    )


def _pictures(found: list[Found]) -> list[Block]:
    """Draw the values, and how far they are from the exact ones."""
    series = {f.symbol: f.estimates for f in found if any(c > 0 for c in f.estimates)}
    exact = {f.symbol: f.exact for f in found if f.symbol in series and f.exact}
    if not series:
        return []
    failure = found[0].failure
    below = None if failure is None else failure.sufficient_shift
    blocks: list[Block] = [
        picture(
            "logdet",
            "The log-determinants against the shift, with brackets.",
            lambda ax: draw_logdet(series, exact=exact, undefined_below=below, ax=ax),
        )
    ]
    if exact:
        blocks.append(
            picture(
                "logdet-difference",
                "Estimates and brackets minus the exact values; brackets cross zero.",
                lambda ax: draw_logdet(series, exact=exact, difference=True, ax=ax),
                caption="The same minus the exact values: a bracket that crosses zero holds the "
                "truth.",
            )
        )
    return blocks


def _shifts(context: Context) -> list[float]:
    """Return zero and one shift a decade, up to the first above every eigenvalue's magnitude.

    That one is enough for any Hessian. Where hardly another is, two decades more are shown.
    """
    if is_affordable(context):
        dense = dense_hessian(context)
        values, noise = dense.eigenvalues, dense.noise
        smallest = float(values[0])
    else:
        values, noise = native_eigenpairs(context).result.eigenvalues, 0.0
        smallest = 0.0
    largest = float(values.abs().max())
    top = math.floor(math.log10(largest)) + 1 if largest > 0 else 0
    more = 2 if smallest + 10.0 ** (top - 1) <= noise else 0
    return [0.0, *(float(f"1e{top - i}") for i in reversed(range(-more, _DECADES)))]


def _beside(context: Context) -> str:
    if not is_affordable(context):
        return ""
    return (
        " Beside them Σ log(λᵢ + c) over all eigenvalues of the dense matrix, in double "
        "precision, with the error that rounding may have made up."
    )


def _inside(context: Context) -> str:
    decay = context.risk.weight_decay
    return f" Weight decay, {digits(decay)}, is part of both matrices already." if decay else ""
