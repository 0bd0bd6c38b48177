"""The loss along the top and a bulk eigenvector, beside the quadratic model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvops.landscape.line import Lines, line
from curvops.plotting.line import line as draw_line
from curvops.report.blocks import Cost, Number, Paragraph, SectionResult, Table, digits
from curvops.report.context import Context
from curvops.report.dense import dense_hessian, dense_seconds, is_affordable
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.speed import speed
from curvops.report.top import top_eigenpairs, top_seconds

_STEPS = 41


def _estimate(context: Context) -> float:
    losses = 3 * _STEPS * speed(context).loss
    return top_seconds(context) + dense_seconds(context) + losses


@section("lines", "Loss along eigenvectors", order=70, estimate=_estimate)
def lines(context: Context) -> SectionResult:
    """Scan the loss along two or three eigenvectors."""
    names, values, columns = _directions(context)
    risk = context.risk
    radii = [_radius(context, value) for value in values]
    with context.measure("loss along eigenvectors") as task:
        scan = line(
            risk,
            columns,
            radius=radii,
            num=_STEPS,
            curvatures=values,
            labels=[f"{name}, λ = {value:.3g}" for name, value in zip(names, values)],
        )
        task.products = scan.num_matvecs
    numbers: dict[str, Number] = {}
    for k, name in enumerate(names):
        key = name.replace(" ", "_")
        numbers[f"{key}_eigenvalue"] = Number(values[k], f"eigenvalue, {name}")
        numbers[f"{key}_steps"] = Number(scan.steps[:, k].tolist(), f"steps, {name}")
        numbers[f"{key}_losses"] = Number(
            scan.losses[:, k].tolist(), f"losses, {name}", cost=Cost(seconds=scan.seconds)
        )
        numbers[f"{key}_quadratic"] = Number(
            scan.quadratic[:, k].tolist(), f"quadratic model, {name}"
        )
        numbers[f"{key}_follows_to"] = Number(
            _follows_to(scan, k),
            f"distance up to which the model is within a tenth, {name}",
            note="of the rise of the loss",
        )
    rows = [
        (
            name,
            digits(values[k]),
            digits(radii[k], 3),
            digits(float(scan.losses[0, k])),
            digits(float(scan.losses[-1, k])),
            digits(float(scan.quadratic[-1, k])),
            digits(_follows_to(scan, k), 2),
        )
        for k, name in enumerate(names)
    ]
    columns_of_table = (
        "direction",
        "λ",
        "radius",
        "loss at −r",
        "loss at +r",
        "quadratic at +r",
        "follows to",
    )
    draws = [lambda ax, k=k: draw_line(scan, index=k, ax=ax) for k in range(len(names))]
    return SectionResult(
        [
            Paragraph(
                "The loss along unit eigenvectors v through θ, and L + s ∇Lᵀv + ½ s² λ beside it. "
                "The radius is where the model has risen by the loss itself (at least by 0.1), but "
                "no more than half of |θ|."
            ),
            picture(
                "lines",
                "The loss along eigenvectors beside its quadratic model.",
                *draws,
                width=3.4 * min(len(draws), 2),
                height=2.9 * -(-len(draws) // 2),
            ),
            Table(
                columns_of_table,
                rows,
                "Up to “follows to” the model's rise is within a tenth of the loss's.",
            ),
        ],
        numbers,
    )


def _directions(context: Context) -> tuple[list[str], list[float], Tensor]:
    """Return names, eigenvalues and unit eigenvectors ``[P, K]`` of the lines."""
    risk = context.risk
    if is_affordable(context):
        dense = dense_hessian(context)
        size = len(dense.eigenvalues)
        chosen = {"top": size - 1, "bulk": (size - 1) // 2}
        if float(dense.eigenvalues[0]) < -dense.noise:
            chosen["most negative"] = 0
        values = [float(dense.eigenvalues[i]) for i in chosen.values()]
        columns = dense.eigenvectors[:, list(chosen.values())]
        return list(chosen), values, columns.to(risk.device, risk.dtype)
    top = top_eigenpairs(context)
    last = len(top.eigenvalues) - 1
    picked = [0, last] if last else [0]
    names = ["top", f"rank {last + 1}"][: len(picked)]
    return names, [float(top.eigenvalues[i]) for i in picked], top.eigenvectors[:, picked]


def _radius(context: Context, value: float) -> float:
    """Return how far to go: to a visible rise of the loss, if that is not out of the world."""
    risk = context.risk
    rise = max(abs(float(risk.loss())), 0.1)
    farthest = 0.5 * float(risk.theta.norm()) or 1.0
    return min(math.sqrt(2 * rise / abs(value)), farthest) if value else farthest


def _follows_to(scan: Lines, k: int) -> float:
    """Return the distance up to which the model's rise is within a tenth of the loss's."""
    steps, losses = scan.steps[:, k], scan.losses[:, k] - scan.loss
    wrong = (losses - (scan.quadratic[:, k] - scan.loss)).abs() > 0.1 * losses.abs()
    wrong |= ~torch.isfinite(losses)
    wrong[len(steps) // 2] = False
    distances = steps.abs()
    inside = distances < (float(distances[wrong].min()) if bool(wrong.any()) else math.inf)
    return float(distances[inside].max())
