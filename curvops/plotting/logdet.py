"""Log-determinants against the shift that makes them ones, with brackets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from curvops.errors import InputError
from curvops.linalg.estimate import Estimate
from curvops.plotting.style import current, full_tick_labels, plain, resolve
from curvops.volume.logdet import LogDet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = Mapping[float, "Estimate | LogDet"]
"""Results by shift."""


def logdet(
    results: Sequence[LogDet] | Series | Mapping[str, Series],
    *,
    exact: Mapping[str, Series] | None = None,
    difference: bool = False,
    undefined_below: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw log det(A + cI) against the shift c, with brackets or error bars.

    An end of a bracket that is infinite is an arrow; an open marker has not converged.

    Args:
        results: Results that know their shift (:class:`~curvops.volume.logdet.LogDet`), or
            results by shift, or several such series by name. Those of shift zero are left out of
            the logarithmic axis.
        exact: Exact values to draw as rings, by the names of ``results`` and by shift.
        difference: Draw results minus the exact values, where there are any: brackets that hold
            the truth then cross zero.
        undefined_below: The shift up to which H + cI is not positive definite; shaded.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is no result with a positive shift to draw.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting, volume
        >>> results = [volume.logdet_from_eigenvalues(torch.ones(3), c) for c in (0.1, 1.0)]
        >>> plotting.logdet(results, ax=plotting.new_axes()).get_ylabel()
        'log det(H + cI)  [nats]'
    """
    exact = exact or {}
    drawn = {
        name: [(c, found[c]) for c in sorted(found) if c > 0]
        for name, found in _by_name(results).items()
    }
    if difference:
        drawn = {
            name: [(c, result) for c, result in pairs if c in exact.get(name, {})]
            for name, pairs in drawn.items()
        }
    if not any(drawn.values()):
        what = "and an exact value " if difference else ""
        raise InputError(f"There is no log-determinant with a positive shift {what}to draw.")
    ax, colours = resolve(ax), current()
    ax.set_xscale("log")
    shifts = {c for pairs in drawn.values() for c, _ in pairs}
    if len(shifts) == 1:
        ax.set_xlim(min(shifts) / 3, max(shifts) * 3)
    series_colours = (colours.primary, colours.third, colours.fourth, colours.muted)
    for number, (name, pairs) in enumerate(drawn.items()):
        true = exact.get(name, {})
        zeros = [true[c].value if difference else 0.0 for c, _ in pairs]
        _series(ax, name, pairs, zeros, series_colours[number % len(series_colours)])
        rings = [c for c in sorted(true) if c > 0]
        if rings and not difference:
            ax.plot(
                rings,
                [true[c].value for c in rings],
                linestyle="none",
                marker="o",
                markersize=10,
                markerfacecolor="none",
                markeredgewidth=1.3,
                color=colours.accent,
                label="exact" if number == len(drawn) - 1 else None,
            )
    if difference:
        ax.axhline(0, color=colours.accent, linestyle="--", linewidth=1.4, label="exact")
    if undefined_below is not None and undefined_below > 0:
        left, right = ax.get_xlim()
        left = min(left, undefined_below / 3)
        ax.axvspan(
            left, undefined_below, color=colours.grid, zorder=0, label="not positive definite"
        )
        ax.set_xlim(left, max(right, undefined_below * 3))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, columnspacing=1.4)
    full_tick_labels(ax)
    symbol = next(iter(drawn)) if len(drawn) == 1 else "A"
    ax.set_xlabel("shift c")
    minus = ", minus exact" if difference else ""
    ax.set_ylabel(f"log det({plain(symbol) or 'H'} + cI){minus}  [nats]")
    return ax


def _by_name(results: Sequence[LogDet] | Series | Mapping[str, Series]) -> dict[str, Series]:
    """Return series by name, a single one without a name."""
    if not isinstance(results, Mapping):
        return {"": {result.shift: result for result in results}}
    named = {name: found for name, found in results.items() if isinstance(found, Mapping)}
    if named:
        return {str(name): found for name, found in named.items()}
    single = {c: r for c, r in results.items() if isinstance(r, (Estimate, LogDet))}
    return {"": {float(c): r for c, r in single.items()}}


def _series(
    ax: Axes,
    name: str,
    pairs: list[tuple[float, Estimate | LogDet]],
    zeros: list[float],
    colour: str,
) -> None:
    """Draw one series: a line, brackets, markers."""
    if not pairs:
        return
    shifts = [c for c, _ in pairs]
    values = [result.value - zero for (_, result), zero in zip(pairs, zeros, strict=True)]
    below, above = zip(*(_arms(result) for _, result in pairs), strict=True)
    ax.errorbar(
        shifts,
        values,
        yerr=[[_finite(arm) for arm in below], [_finite(arm) for arm in above]],
        color=colour,
        capsize=3,
        label=plain(name) or None,
    )
    for c, value, (_, result), low, high in zip(shifts, values, pairs, below, above, strict=True):
        sure = result.converged if isinstance(result, Estimate) else True
        face = colour if sure else current().paper
        ax.plot(c, value, marker="o", markersize=5, color=colour, markerfacecolor=face)
        for arm, direction in ((low, -1), (high, 1)):
            if math.isinf(arm):
                ax.annotate(
                    "",
                    (c, value),
                    xytext=(0, 22 * direction),
                    textcoords="offset points",
                    arrowprops={"arrowstyle": "<-", "color": colour},
                )


def _arms(result: Estimate | LogDet) -> tuple[float, float]:
    """Return how far the bracket reaches down and up."""
    if isinstance(result, LogDet):
        return result.error, result.error
    return max(result.value - result.lower, 0.0), max(result.upper - result.value, 0.0)


def _finite(arm: float) -> float:
    return arm if math.isfinite(arm) else 0.0
