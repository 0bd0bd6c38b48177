"""The basin's volume by method: quadratic model, star domain, bridge, under one measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from curvops.errors import CurvopsError
from curvops.plotting.volumes import volumes as draw_volumes
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
from curvops.report.estimates import quietly
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.speed import speed
from curvops.volume.basin import basin_volume
from curvops.volume.ellipsoid import gaussian_volume
from curvops.volume.preconditioner import Preconditioner
from curvops.volume.spectral_form import SpectralForm

THRESHOLD = 1e-2
_SMALL = 300
"""Up to so many parameters all methods are run."""

_DIRECTIONS, _LEAST_DIRECTIONS = 40, 10
_EVALUATIONS = 30
"""Losses that a direction takes, fewer than so many where points are evaluated together."""

_BRIDGE: dict[str, Any] = {
    "num_runs": 2,
    "num_chains": 4,
    "num_moves": 8,
    "num_leapfrog": 4,
    "max_rungs": 60,
}
_GRADIENTS = 4000
_LONG = 20.0
"""Seconds beyond which a method is left to whoever wants it."""


@dataclass
class Part:
    """Parameters whose volume is measured.

    Attributes:
        name: Of its numbers.
        title: In words.
        scope: Their names; all of them if ``None``.
        dim: How many numbers they are.
        results: By method.
        calls: What gives them again.
        missing: Why a method is not there.
    """

    name: str
    title: str
    scope: list[str] | None
    dim: int
    results: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def _estimate(context: Context) -> float:
    unit = speed(context)
    first = dense_seconds(context) if is_affordable(context) else 0.0
    return first + 3 * _DIRECTIONS * _EVALUATIONS * unit.loss + _GRADIENTS * unit.gradient


@section("basin", "Basin volume by method", order=61, estimate=_estimate)
def basin(context: Context) -> SectionResult:
    """Measure the basin with each method that is affordable, the whole of it and of the end."""
    if float(context.risk.theta.double().square().sum()) == 0.0:
        text = "All parameters are zero, so that nothing says how wide a prior would be."
        return SectionResult([Note(text)])
    parts = _parts(context)
    for part in parts:
        _measure(context, part)
    blocks: list[Block] = [Paragraph(_explanation(context))]
    numbers: dict[str, Number] = {}
    for part in parts:
        numbers |= _numbers(part)
        if part.results:
            blocks += [_table(part), _picture(part)]
        blocks += [Note(text) for text in part.missing]
    return SectionResult(blocks, numbers)


def _parts(context: Context) -> list[Part]:
    """Return the whole network, and its last parameters where the whole is large."""
    space = context.risk.space
    parts = [Part("whole", "all parameters", None, space.dim)]
    if space.dim > _SMALL:
        names: list[str] = []
        count = 0
        for name, numel in reversed(list(zip(space.names, space.numels, strict=True))):
            if count + numel > _SMALL:
                break
            names, count = [name, *names], count + numel
        if names:
            parts.append(
                Part("last", f"the last parameters alone, {', '.join(names)}", names, count)
            )
    return parts


def _measure(context: Context, part: Part) -> None:
    """Run the methods on a part, each one's failure a remark."""
    unit, small = speed(context), part.dim <= _SMALL
    of_one = _EVALUATIONS * unit.loss
    count = min(_DIRECTIONS, int(_LONG / of_one))
    if count < _LEAST_DIRECTIONS:
        part.missing.append(
            f"Looking along one direction takes about {duration(of_one)} here. "
            f"{_call(part, 'star')} does it at leisure."
        )
        return
    dense = small or is_affordable(context)
    if dense:
        _try(context, part, "quadratic model", "quadratic", {"curvature": "hessian"})
    options: dict[str, Any] = {
        "preconditioner": "dense" if dense else "lowrank",
        "curvature": "hessian" if dense else "ggn",
        "num_directions": 2 * count if small else count,
        "num_pilot": 0,
    }
    _try(context, part, "star domain", "star", options)
    if not small:
        return
    isotropic = {"preconditioner": "none", "num_directions": count // 2}
    _try(context, part, "star, isotropic", "star", isotropic)
    if "quadratic model" not in part.results:
        part.missing.append(
            "The bridge is left out: θ is no minimum, and where the loss falls without bound there "
            "is no basin to bridge to."
        )
        return
    if _GRADIENTS * unit.gradient > _LONG:
        part.missing.append(
            f"The bridge takes some {_GRADIENTS:,} gradients, here about "
            f"{duration(_GRADIENTS * unit.gradient)}. {_call(part, 'bridge')} does it at leisure."
        )
        return
    bridge = {"preconditioner": "dense", "curvature": "hessian"} | _BRIDGE
    _try(context, part, "bridge", "bridge", bridge)


def _try(context: Context, part: Part, name: str, method: str, options: dict[str, Any]) -> None:
    """Run one method, and book it."""
    if method != "quadratic":
        options = {**options, "seed": context.options.seed}
    context.tick(len(part.results), None, "methods")
    try:
        with context.measure(f"basin volume, {name}, {part.title}") as task, quietly():
            result = _run(context, part, method, options)
            task.products = int(getattr(result, "num_matvecs", 0))
    except CurvopsError as error:
        part.missing.append(f"The {name} has no volume here: {error}")
        return
    part.results[name] = result
    part.calls[name] = _call(part, method, **options) + ".log_volume"


def _call(part: Part, method: str, **options: Any) -> str:
    """Return the call in Python."""
    arguments = {"threshold": THRESHOLD, "measure": "gaussian"} | options
    if part.scope is not None:
        arguments["scope"] = part.scope
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"basin_volume(risk, {method!r}, {written})"


def _run(context: Context, part: Part, method: str, options: dict[str, Any]) -> Any:
    """Make the call, with the eigenpairs that other sections have paid for."""
    given = {"threshold": THRESHOLD, "measure": "gaussian", "scope": part.scope} | options
    if part.scope is None and is_affordable(context) and options.get("curvature") == "hessian":
        dense, risk = dense_hessian(context), context.risk
        std = float(risk.theta.double().square().mean().sqrt())
        if method == "quadratic":
            offsets = dense.eigenvectors.T @ risk.theta.to(dense.eigenvectors)
            volume = gaussian_volume(
                dense.eigenvalues, offsets, std, threshold=THRESHOLD, noise=dense.noise
            )
            return replace(volume, curvature="hessian", num_matvecs=dense.cost.products)
        vectors = dense.eigenvectors.to(risk.device, risk.dtype)
        form = SpectralForm(part.dim, dense.eigenvalues.abs().to(risk.device), vectors)
        given |= {"preconditioner": Preconditioner.of(form, threshold=THRESHOLD, std=std)}
    return basin_volume(context.risk, method, **given)  # type: ignore[call-overload]


def _numbers(part: Part) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for name, result in part.results.items():
        key = f"log_p_{part.name}_{name.replace(', ', '_').replace(' ', '_')}"
        sampled = result.method if hasattr(result, "method") else "bridge"
        note = "" if result.converged else "a lower bound"
        if sampled == "bridge":
            # Chains amplify rounding, so that the call gives the number within its error only.
            note = f"within its error again by {part.calls[name]}" + (
                "" if result.converged else "; not converged: " + " ".join(result.reasons)
            )
        found[key] = Number(
            result.log_volume,
            f"log p, {name}, {part.title}",
            _finite(result.stderr) or _finite((result.upper - result.lower) / 2),
            "nats",
            cost=Cost(int(getattr(result, "num_matvecs", 0)), result.seconds),
            call="" if sampled == "bridge" else part.calls[name],
            note=note,
            headline=name == "star domain" and part.name == "whole",
        )
        if sampled == "star":
            found[f"{key}_ess"] = Number(result.ess, f"effective sample size, {name}, {part.title}")
            share = f"share of the heaviest direction, {name}, {part.title}"
            found[f"{key}_largest_weight"] = Number(result.largest_weight, share)
        bound = getattr(result, "chernoff", None)
        if bound is not None:
            found[f"{key}_chernoff"] = Number(
                float(bound), f"Chernoff's upper bound, {part.title}", _finite(bound.stderr), "nats"
            )
    return found


def _table(part: Part) -> Table:
    rows = []
    for name, result in part.results.items():
        error = _finite(result.stderr)
        sample = f"{result.ess:.3g}" if hasattr(result, "ess") else "–"
        verdict = "converged" if result.converged else "not converged"
        if hasattr(result, "largest_weight") and not result.converged:
            verdict = "lower bound"
        rows.append(
            [
                name,
                f"{result.log_volume:.2f}" + (f" ± {error:.2g}" if error else ""),
                sample,
                verdict,
                duration(result.seconds),
            ]
        )
    columns = ["method", "log p [nats]", "effective sample", "", "time"]
    return Table(columns, rows, f"The basin of {part.title} (P = {part.dim:,}).")


def _picture(part: Part) -> Block:
    results = dict(part.results)
    draw: Callable[[Any], object] = lambda ax: draw_volumes(results, ax=ax)  # noqa: E731
    values = ", ".join(f"{name} {result.log_volume:.1f}" for name, result in results.items())
    return picture(
        f"basin-{part.name}",
        f"log p by method for {part.title}: {values} nats.",
        draw,
        caption=f"The basin of {part.title}. Open markers with an arrow are lower bounds.",
        height=1.2 + 0.42 * len(results),
    )


def _explanation(context: Context) -> str:
    spread = float(context.risk.theta.double().square().mean().sqrt())
    return (
        f"How likely a draw of N(0, σ²I), σ = {digits(spread)} (the root mean square of θ), is to "
        f"fall where the loss rises by at most {THRESHOLD:g}. The quadratic model says it of its "
        "ellipsoid, exactly; the star domain is what can be seen from θ in straight lines, a lower "
        "bound where the effective sample size is below 10; the bridge anneals from a Gaussian to "
        "the basin itself, and stands below Chernoff's bound."
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None
