"""The volume of the basin in the quadratic model, with every choice that goes into it."""

from __future__ import annotations

from curvops.errors import IndefiniteError
from curvops.plotting.volume_terms import volume_terms
from curvops.report.blocks import Block, Note, Number, Paragraph, SectionResult, Table, digits
from curvops.report.context import Context
from curvops.report.dense import dense_hessian, dense_seconds
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.volume.quadratic import QuadraticVolume, quadratic_volume

THRESHOLDS = (1e-3, 1e-2, 1e-1)
_SHOWN_THRESHOLD = 1e-2


@section("volume", "Basin volume", order=60, estimate=dense_seconds)
def volume(context: Context) -> SectionResult:
    """Tabulate the quadratic log-volume over thresholds and shifts."""
    dense, risk = dense_hessian(context), context.risk
    spread = float(risk.theta.double().square().mean().sqrt())
    shown: QuadraticVolume | None = None
    failure: IndefiniteError | None = None
    numbers: dict[str, Number] = {
        "prior_std": Number(spread, "σ, the root mean square of θ"),
    }
    rows: list[list[str]] = []
    for name, meaning, count in _prior_counts(context, spread):
        row = [meaning]
        for threshold in THRESHOLDS:
            key = f"log_volume_{name}_threshold_{threshold:g}"
            choices = f"threshold={threshold!r}, prior_std={spread!r}, prior_count={count!r}"
            label = f"log V, T = {threshold:g}, {meaning}"
            try:
                result = quadratic_volume(
                    dense.eigenvalues,
                    threshold=threshold,
                    prior_std=spread or None,
                    prior_count=count,
                    noise=dense.noise,
                )
            except IndefiniteError as error:
                failure = error if failure is None else failure
                numbers[key] = Number(None, label, unit="nats", note=str(error), cost=dense.cost)
                row.append("no value")
                continue
            is_shown = shown is None and threshold == _SHOWN_THRESHOLD
            shown = result if is_shown else shown
            row.append(f"{result.log_volume:.3f}")
            numbers[key] = Number(
                result.log_volume,
                label,
                result.error,
                "nats",
                call="quadratic_volume(torch.linalg.eigvalsh(hessian.to_dense().double()), "
                f"{choices}, noise={dense.noise!r}).log_volume",
                headline=is_shown,
                cost=dense.cost,
            )
        rows.append([*row])
    blocks: list[Block] = [Paragraph(_explanation(context, spread))]
    if failure is not None:
        blocks.append(Note(f"Where there is no value: {failure}", "warning"))
    columns = ["shift", *(f"T = {threshold:g}" for threshold in THRESHOLDS)]
    blocks.append(
        Table(columns, rows, "log V, in nats, of the ellipsoid where L rises by at most T.")
    )
    if shown is not None:
        drawn = shown
        blocks.append(
            picture(
                "volume",
                f"The three terms of the log-volume, adding up to {drawn.log_volume:.1f} nats.",
                lambda ax: volume_terms(drawn, ax=ax),
                caption=f"T = {drawn.threshold:g}, k/σ² = {drawn.shift:.3g}.",
                height=2.6,
            )
        )
    return SectionResult(blocks, numbers)


def _prior_counts(context: Context, spread: float) -> list[tuple[str, str, float]]:
    """Return the choices of k: name, meaning with its number, value."""
    counts = [("no_prior", "k = 0", 0.0)]
    if spread > 0:
        normalizer = context.risk.normalizer
        if context.risk.reduction == "mean":
            # One prior against all data, in a risk that is divided by their number.
            value = f"k = 1/Z, k/σ² = {1 / normalizer / spread**2:.3g}"
            counts.append(("one_prior_per_data_set", value, 1 / normalizer))
        counts.append(("one_prior", f"k = 1, k/σ² = {1 / spread**2:.3g}", 1.0))
    return counts


def _explanation(context: Context, spread: float) -> str:
    decay = context.risk.weight_decay
    held = (
        f"The weight decay λ = {digits(decay)} is part of H, so that c = λ + k/σ² in all."
        if decay
        else "The risk has no weight decay, so that c = k/σ²."
    )
    return (
        "log V = log V_P + (P/2) log(2T) − ½ log det(H + cI): the ellipsoid on which the quadratic "
        f"model of the loss rises by at most T. {held} σ is the root mean square of θ, "
        f"{digits(spread)}; k is how many σ⁻² to count. Whether the loss follows its quadratic "
        "model so far out is seen along the lines below."
    )
