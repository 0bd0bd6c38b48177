"""Rays from the point: roughness and grit over distances that double, and where rounding ends."""

from __future__ import annotations

import math

from torch import Tensor

from curvops.landscape.directions import Wanted, along
from curvops.landscape.ray import rays as scan_rays
from curvops.landscape.ray_result import Rays
from curvops.plotting.grit import grit
from curvops.plotting.roughness import roughness
from curvops.report.blocks import (
    Block,
    Cost,
    Note,
    Number,
    Paragraph,
    SectionResult,
    Table,
    digits,
)
from curvops.report.context import Context
from curvops.report.pictures import picture
from curvops.report.registry import Skipped, section
from curvops.report.speed import speed

_DISTANCES = 21
_NUM_RANDOM = 4
_NUM_NOISE = 24


def _estimate(context: Context) -> float:
    # Four directions of which one stands for several; the noise is measured at some points too.
    losses = (3 + _NUM_RANDOM) * _DISTANCES + _NUM_NOISE
    return losses * speed(context).loss + 40 * speed(context).product


@section("rays", "Rays: roughness and grit", order=72, estimate=_estimate)
def rays(context: Context) -> SectionResult:
    """Scan the loss along rays in named directions."""
    risk, seed = context.risk, context.options.seed
    wanted, calls, left_out = _directions(context)
    farthest = 0.5 * float(risk.theta.norm()) or 1.0
    base = farthest / 2 ** (_DISTANCES - 1)
    context.tick(0, None, "losses")
    with context.measure("loss along rays") as task:
        scan = scan_rays(risk, wanted, base=base, num=_DISTANCES, num_random=_NUM_RANDOM, seed=seed)
        task.products = scan.num_matvecs
    call = (
        f"rays(risk, [{', '.join(calls)}], base={base!r}, num={_DISTANCES}, "
        f"num_random={_NUM_RANDOM}, seed={seed})"
    )
    is_finite = bool(scan.losses.isfinite().all())
    cost = Cost(scan.num_matvecs, scan.seconds)
    numbers: dict[str, Number] = {
        "ray_losses": Number(
            _known(scan.losses.T.flatten()),
            "losses, ray by ray",
            cost=cost,
            call=f"{call}.losses.T.flatten().tolist()" if is_finite else "",
        ),
        "ray_distances": Number(scan.distances.T.flatten().tolist(), "distances, ray by ray"),
        "ray_noise": Number(
            scan.noise.point_loss,
            "rounding error of the loss at the point",
            cost=cost,
            note="measured in another precision, and covered with four standard deviations",
        ),
    }
    rows: list[list[str]] = []
    for k, label in enumerate(scan.labels):
        row, found = _row(scan, k)
        rows.append(row)
        key = "ray_" + label.replace(" ", "_").replace("-", "minus_")
        for name, value in found.items():
            numbers[f"{key}_{name}"] = Number(value, f"{label}, {name.replace('_', ' ')}")
        for name, values in (("roughness", scan.roughness), ("grit", scan.grit)):
            numbers[f"{key}_{name}"] = Number(_known(values[:, k]), f"{name}, {label}")
    blocks: list[Block] = [Paragraph(_explanation(scan))]
    blocks += [Note(text) for text in left_out]
    blocks.append(
        picture(
            "rays",
            "Roughness and grit along rays against the distance, on logarithmic axes.",
            lambda ax: roughness(scan, ax=ax),
            lambda ax: grit(scan, ax=ax),
            caption="Hollow, and within the shade: what rounding alone would show.",
            width=7.2,
            height=3.6,
        )
    )
    columns = (
        "direction",
        "seen from",
        "curvature there",
        "grit follows λh to",
        "largest roughness",
        "at distance",
        "loss at the end",
    )
    caption = (
        "Up to “grit follows λh to” the grit is within a tenth of the first curvature times the "
        "distance: so far the loss is a parabola along the ray."
    )
    return SectionResult([*blocks, Table(columns, rows, caption)], numbers)


def _directions(context: Context) -> tuple[list[Wanted], list[str], list[str]]:
    """Return directions, the expressions that give them again, and why others are left out."""
    risk = context.risk
    wanted: list[Wanted] = ["random"]
    calls, left_out = ["'random'"], []
    gradient = risk.gradient()
    if bool(gradient.any()) and bool(gradient.isfinite().all()):
        wanted.append("ascent")
        calls.append("'ascent'")
    else:
        left_out.append("The gradient is zero or not finite, so there is no direction of ascent.")
    if bool(risk.theta.any()):
        wanted.append("radial_out")
        calls.append("'radial_out'")
    vectors = top_vectors(context, 1)
    if vectors is None:
        left_out.append("Without top eigenpairs (see above) there is no ray along the first.")
    else:
        wanted.append(along(vectors[:, 0], "eigenvector 0"))
        calls.append("eigenvector(0)")
    return wanted, calls, left_out


def top_vectors(context: Context, count: int) -> Tensor | None:
    """Return eigenvectors of the largest eigenvalues ``[P, count]``; None without so many.

    Their signs are those of :func:`curvops.landscape.directions.eigenvector`.
    """
    from curvops.report.top import top_eigenpairs

    if context.num_params <= count:
        return None
    try:
        top = top_eigenpairs(context)
    except Skipped:
        raise
    except Exception:  # its own section says why
        return None
    vectors = top.eigenvectors[:, :count]
    if vectors.shape[1] < count:
        return None
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    return vectors * vectors.gather(0, largest).sign()


def _row(scan: Rays, k: int) -> tuple[list[str], dict[str, float | None]]:
    """Return the table's row of a ray, and the numbers in it."""
    h, rough = scan.distances[:-1, k], scan.roughness[:, k]
    seen = scan.resolved[:, k].nonzero()[:, 0]
    found: dict[str, float | None] = dict.fromkeys(
        ("seen_from", "first_curvature", "follows_to", "largest_roughness", "roughest_at")
    )
    if len(seen):
        # The first that stands out of the rounding is still half made of it.
        settled = (scan.difference[:, k].abs() > 20 * scan.difference_floor[:, k]).nonzero()[:, 0]
        first = int(settled[0]) if len(settled) else int(seen[0])
        curvature = float(scan.curvature[first, k])
        wrong = (scan.curvature[first:, k] / curvature - 1).abs() > 0.1
        last = first + int(wrong.nonzero()[0, 0]) - 1 if bool(wrong.any()) else len(h) - 1
        roughest = int(seen[rough[seen].argmax()])
        found = {
            "seen_from": float(h[seen[0]]),
            "first_curvature": curvature,
            "follows_to": float(h[last]),
            "largest_roughness": float(rough[roughest]),
            "roughest_at": float(h[roughest]),
        }
    cells = [digits(value, 3) for value in found.values()]
    end = float(scan.losses[-1, k])
    return [scan.labels[k], *cells, digits(end) if math.isfinite(end) else str(end)], found


def _known(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _explanation(scan: Rays) -> str:
    return (
        "The loss at θ + hd over distances h that double. Roughness is how much longer the path "
        "over the loss at h is than the straight line from 0 to 2h; grit is how much the slope "
        "changes, (l(0) − 2l(h) + l(2h))/h. Where the loss is a parabola of curvature λ along d, "
        "grit is λh and roughness about (λh)²/8; a kink makes both level. Rounding moves the loss "
        f"at θ by at most {digits(scan.noise.point_loss, 2)} here, as measured in another "
        "precision."
    )
