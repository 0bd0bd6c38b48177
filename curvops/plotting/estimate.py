"""Estimates side by side, each with its error bar and its bracket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from curvops.errors import InputError
from curvops.linalg.estimate import Estimate
from curvops.plotting.style import current, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def estimates(
    results: Mapping[str, Estimate],
    *,
    truth: float | Mapping[str, float] | None = None,
    xlabel: str = "estimate",
    ax: Axes | None = None,
) -> Axes:
    """Draw estimates, one a row: value, standard error, bracket.

    A thick bar is one standard error, a thin one with caps the bracket; an open marker has not
    converged, and an end of a bracket that is infinite is not drawn.

    Args:
        results: Estimates by name, the first on top.
        truth: The exact value, where it is known: one for all, or by name where rows are of
            different numbers.
        xlabel: What the number is.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is nothing to draw, or a value or ``truth`` is not finite.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops.linalg.trace import trace
        >>> from curvops.plotting.style import new_axes
        >>> A = torch.diag(torch.rand(200, generator=torch.Generator().manual_seed(0)))
        >>> rows = {name: trace(A, name, num_matvecs=40) for name in ("hutch++", "xtrace")}
        >>> ax = estimates(rows, truth=float(A.trace()), xlabel="trace", ax=new_axes())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['hutch++', 'xtrace']
    """
    if not results:
        raise InputError("results is empty; expected estimates by name.")
    for name, result in results.items():
        if not math.isfinite(result.value):
            raise InputError(f"results[{name!r}] has the value {result.value}; expected a number.")
    exact = truth if isinstance(truth, Mapping) else {} if truth is None else {"": truth}
    if not all(math.isfinite(value) for value in exact.values()):
        raise InputError(f"truth must be finite, got {truth!r}.")
    unknown = [name for name in exact if name not in results]
    if isinstance(truth, Mapping) and unknown:
        raise InputError(f"truth has {unknown[0]!r}, which is none of results: {list(results)}.")
    ax, colours = resolve(ax), current()
    for row, result in enumerate(results.values()):
        below, above = (
            abs(end - result.value) if math.isfinite(end) else 0.0
            for end in (result.lower, result.upper)
        )
        stderr = result.stderr if math.isfinite(result.stderr) else 0.0
        ax.errorbar(
            result.value,
            row,
            xerr=[[below], [above]],
            fmt="none",
            ecolor=colours.primary,
            elinewidth=1.2,
            capsize=4,
        )
        ax.plot(
            [result.value - stderr, result.value + stderr],
            [row, row],
            color=colours.primary,
            linewidth=4,
            solid_capstyle="butt",
        )
        ax.plot(
            result.value,
            row,
            linestyle="none",
            marker="o",
            markersize=6,
            color=colours.primary,
            markerfacecolor=colours.primary if result.converged else colours.paper,
        )
    if isinstance(truth, Mapping):
        rows = [row for row, name in enumerate(results) if name in truth]
        ax.plot(
            [truth[name] for name in results if name in truth],
            rows,
            linestyle="none",
            marker="|",
            markersize=16,
            markeredgewidth=2,
            color=colours.accent,
            label="exact",
        )
        if rows:
            ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0))
    elif truth is not None:
        ax.axvline(truth, color=colours.accent, linestyle="--", linewidth=1.4, label="exact")
        ax.legend(loc="best")
    ax.set_yticks(range(len(results)), [plain(name) for name in results])
    ax.set_ylim(len(results) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    ax.grid(axis="y", visible=False)
    return ax
