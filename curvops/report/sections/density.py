"""The spectral density by Lanczos quadrature, its outliers named, beside the true spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvops.linalg.density import spectral_density
from curvops.linalg.density_result import SpectralDensity
from curvops.plotting.cumulative import cumulative
from curvops.plotting.density import density as draw_density
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
from curvops.report.dense import dense_hessian, dense_seconds, is_affordable
from curvops.report.estimates import Watched
from curvops.report.native import NativeEigenpairs, native_eigenpairs, native_seconds
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.speed import speed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_PROBES, NUM_STEPS = 10, 50
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def _estimate(context: Context) -> float:
    products = NUM_PROBES * NUM_STEPS * speed(context).column
    return native_seconds(context) + dense_seconds(context) + products


@section("density", "Spectral density", order=42, estimate=_estimate)
def density(context: Context) -> SectionResult:
    """Estimate the distribution of all eigenvalues, and compare it with the true one."""
    native, seed = native_eigenpairs(context), context.options.seed
    with context.measure("spectral density") as task:
        operator = Watched(context.hessian, context, task)
        result = spectral_density(operator, NUM_PROBES, NUM_STEPS, seed, deflate=native.result)
    cost = Cost(task.products, task.seconds)
    call = f"spectral_density(hessian, {NUM_PROBES}, {NUM_STEPS}, {seed}, deflate={native.call})"
    true = dense_hessian(context).eigenvalues if is_affordable(context) else None
    low, high = result.bulk
    numbers = {
        "outliers": Number(
            result.outliers.flip(0).tolist(),
            "eigenvalues taken out of the bulk",
            error=float(native.result.residuals.max()),
            cost=native.cost,
            call=f"{call}.outliers.flip(0).tolist()",
        ),
        "bulk": Number([low, high], "ends of the bulk", cost=cost, call=f"{call}.bulk"),
        "wasserstein_bound": Number(
            result.wasserstein,
            "Wasserstein distance from the true spectrum, at most",
            cost=cost,
            call=f"{call}.wasserstein",
            note="with a probability of 95 %",
        ),
    }
    blocks: list[Block] = [
        Paragraph(
            f"Stochastic Lanczos quadrature: {result.nodes.shape[0]} random vectors, "
            f"{result.nodes.shape[1]} steps each, after the {len(result.outliers)} largest "
            f"eigenpairs were taken out; {digits(task.products)} more products in "
            f"{duration(task.seconds)}. The other {digits(result.dim - len(result.outliers))} "
            f"eigenvalues are in [{low:.4g}, {high:.4g}]. The curve is smoothed with a "
            f"bandwidth of {digits(result.bandwidth, 2)}."
        )
    ]
    if len(result.outliers):
        blocks.append(_outliers(result, native))
    if true is not None:
        blocks.append(_compared(result, true, call, cost, numbers))
    if low < 0:
        blocks.append(
            Note(f"The density reaches down to {low:.4g}: the Hessian has negative eigenvalues.")
        )

    def draw(ax: Axes) -> None:
        draw_density(result, scale="log", eigenvalues=true, ax=ax)

    def draw_cumulative(ax: Axes) -> None:
        cumulative(result, eigenvalues=true, ax=ax)

    for name, alt, drawing, caption in (
        (
            "density",
            f"Density of {result.dim} eigenvalues from {low:.3g} to {result.interval[1]:.3g}.",
            draw,
            "Ticks at the top: the eigenvalues that were taken out, λ₁ on the right.",
        ),
        (
            "cumulative",
            "Share of the eigenvalues that are at most x, with a band of 95 %.",
            draw_cumulative,
            "Small eigenvalues, which the density hides in one peak, on a logarithmic axis.",
        ),
    ):
        blocks.append(picture(name, alt, drawing, caption=caption))
    return SectionResult(blocks, numbers)


def _outliers(result: SpectralDensity, native: NativeEigenpairs) -> Table:
    """Name the eigenvalues that were taken out, and say how far out they are."""
    high = result.bulk[1] if result.nodes.numel() else 0.0
    residuals = native.result.residuals[native.result.converged].cpu().flip(0).tolist()
    rows = [
        (f"λ{_subscript(i + 1)}", f"{value:.6g} ± {residual:.0e}", f"{value - high:.3g}")
        for i, (value, residual) in enumerate(
            zip(result.outliers.flip(0).tolist(), residuals, strict=True)
        )
    ]
    return Table(
        ("outlier", "value", "above the largest node of the bulk"),
        rows,
        "Eigenvalues that were taken out, largest first.",
    )


def _compared(
    result: SpectralDensity, true: Tensor, call: str, cost: Cost, numbers: dict[str, Number]
) -> Table:
    """Tabulate the estimate at quantiles of the truth; add both to the numbers."""
    distance = _wasserstein(result, true)
    numbers["wasserstein_distance"] = Number(
        distance,
        "Wasserstein distance from the dense eigenvalues",
        note=f"the bound was {result.wasserstein:.3g}",
    )
    # In the middle between two eigenvalues, where rounding moves none across.
    ranks = [min(max(round(q * len(true)), 1), len(true)) for q in _QUANTILES]
    after = torch.cat([true, true[-1:]])
    places = torch.tensor([float(after[r - 1] + after[r]) / 2 for r in ranks], dtype=torch.float64)
    curve = result.cdf(places)
    at = f"torch.tensor({places.tolist()!r}, dtype=torch.float64)"
    exact = [float((true <= x).double().mean()) for x in places]
    numbers["cdf"] = Number(
        curve.values.tolist(),
        "share of the eigenvalues at most x",
        error=float((curve.upper - curve.values).max()),
        cost=cost,
        call=f"{call}.cdf({at}).values.tolist()",
        note=f"x = {', '.join(f'{x:.6g}' for x in places.tolist())}",
    )
    numbers["cdf_dense"] = Number(exact, "the same of the dense eigenvalues")
    rows = [
        (f"{x:.4g}", f"{share:.4f}", f"{value:.4f}", f"[{lower:.4f}, {upper:.4f}]")
        for x, share, value, lower, upper in zip(
            places.tolist(),
            exact,
            curve.values.tolist(),
            curve.lower.tolist(),
            curve.upper.tolist(),
            strict=True,
        )
    ]
    return Table(
        ("x", "share at most x, dense", "estimate", "95 % band of the probes"),
        rows,
        f"Wasserstein distance from the true distribution: {distance:.2g}; the bound is "
        f"{result.wasserstein:.2g}. The band holds the scatter of the probes alone: a rule has its "
        "weight at nodes, and between two of them it can miss the exact share.",
    )


def _wasserstein(result: SpectralDensity, true: Tensor) -> float:
    """Return ∫|F − F̂| of two step functions."""
    points = torch.cat([true, result.nodes.flatten(), result.outliers]).sort().values
    estimated = result.cdf(points).values
    exact = torch.searchsorted(true, points, right=True) / len(true)
    return float(((estimated - exact).abs()[:-1] * points.diff()).sum())


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
