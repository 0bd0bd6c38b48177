"""The loss on the plane of the two leading eigenvectors."""

from __future__ import annotations

import math

from curvops.landscape.directions import Wanted, along
from curvops.landscape.plane import plane as scan_plane
from curvops.landscape.plane_result import Plane
from curvops.plotting.plane import plane as draw_plane
from curvops.report.blocks import (
    Cost,
    Number,
    Paragraph,
    SectionResult,
    Table,
    digits,
)
from curvops.report.context import Context
from curvops.report.pictures import picture
from curvops.report.registry import Skipped, section
from curvops.report.sections.rays import top_vectors
from curvops.report.speed import speed
from curvops.report.top import top_eigenpairs, top_seconds

_RESOLUTION = 31


def _estimate(context: Context) -> float:
    return top_seconds(context) + (_RESOLUTION**2 + 2) * speed(context).loss


@section("plane", "Loss on a plane", order=74, estimate=_estimate)
def plane(context: Context) -> SectionResult:
    """Scan the loss on a plane through the point."""
    if context.num_params < 2:
        raise Skipped("A plane needs at least two parameters; here is one.")
    risk, seed = context.risk, context.options.seed
    u, v, arguments, extent = _axes(context)
    context.tick(0, None, "losses")
    with context.measure("loss on a plane"):
        scan = scan_plane(risk, u, v, extent=extent, resolution=_RESOLUTION, seed=seed)
    call = f"plane(risk, {arguments}, extent={extent!r}, resolution={_RESOLUTION}, seed={seed})"
    losses = scan.losses.flatten()
    finite = losses[losses.isfinite()]
    numbers = {
        "plane_losses": Number(
            [value if math.isfinite(value) else None for value in losses.tolist()],
            "losses on the plane, row by row",
            cost=Cost(seconds=scan.seconds),
            call=f"{call}.losses.flatten().tolist()" if len(finite) == len(losses) else "",
        ),
        "plane_x": Number(scan.x.tolist(), f"along {scan.labels[0]}"),
        "plane_y": Number(scan.y.tolist(), f"along {scan.labels[1]}"),
        "plane_lowest": Number(_lowest(scan), "lowest loss on the plane"),
    }
    rows = [
        (label, digits(float(ends[-1]), 3), digits(_at(scan, k, 0)), digits(_at(scan, k, -1)))
        for k, (label, ends) in enumerate(zip(scan.labels, (scan.x, scan.y), strict=True))
    ]
    return SectionResult(
        [
            Paragraph(
                f"L(θ + xu + yv) with the unit vectors u, {scan.labels[0]}, and v, "
                f"{scan.labels[1]}. θ is in the middle, where the loss is {digits(scan.loss)}; "
                f"the lowest on the plane is {digits(_lowest(scan))}."
            ),
            picture(
                "plane",
                "Contours of the loss on a plane through the point.",
                lambda ax: draw_plane(scan, levels=14, ax=ax),
                width=5.6,
                height=4.0,
            ),
            Table(("axis", "radius", "loss at −r", "loss at +r"), rows, "Along the axes."),
        ],
        numbers,
    )


def _axes(context: Context) -> tuple[Wanted, Wanted, str, tuple[float, float]]:
    """Return the axes, the expression that gives them again, and how far to go along each."""
    farthest = 0.5 * float(context.risk.theta.norm()) or 1.0
    vectors = top_vectors(context, 2)
    if vectors is None:
        return "random", "random", "'random', 'random'", (farthest, farthest)
    rise = max(abs(float(context.risk.loss())), 0.1)
    values = top_eigenpairs(context).eigenvalues[:2].tolist()
    # To where the quadratic model has risen by four times the loss, if that is not too far.
    radii = [min(math.sqrt(8 * rise / abs(v)), farthest) if v else farthest for v in values]
    axes = [along(vectors[:, k], f"eigenvector {k}") for k in range(2)]
    return axes[0], axes[1], "eigenvector(0), eigenvector(1)", (max(radii), max(radii))


def _lowest(scan: Plane) -> float:
    finite = scan.losses[scan.losses.isfinite()]
    return float(finite.min()) if len(finite) else math.nan


def _at(scan: Plane, axis: int, end: int) -> float:
    """Return the loss at an end of an axis."""
    middle = _RESOLUTION // 2
    place = (middle, end) if axis == 0 else (end, middle)
    return float(scan.losses[place])
