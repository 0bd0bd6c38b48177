"""A log-determinant against the shift that makes it one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from curvops.errors import InputError
from curvops.plotting.style import current, full_tick_labels, resolve
from curvops.volume.logdet import LogDet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def logdet(
    results: Sequence[LogDet], *, undefined_below: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw log det(H + cI) against the shift c, with error bars.

    Args:
        results: One result a shift; those of shift zero are left out of the logarithmic axis.
        undefined_below: The shift up to which H + cI is not positive definite; shaded.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is no result with a positive shift.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting, volume
        >>> results = [volume.logdet_from_eigenvalues(torch.ones(3), c) for c in (0.1, 1.0)]
        >>> plotting.logdet(results, ax=plotting.new_axes()).get_ylabel()
        'log det(H + cI)  [nats]'
    """
    drawn = sorted((r for r in results if r.shift > 0), key=lambda r: r.shift)
    if not drawn:
        raise InputError("There is no log-determinant with a positive shift to draw.")
    ax, colours = resolve(ax), current()
    ax.set_xscale("log")
    ax.errorbar(
        [r.shift for r in drawn],
        [r.value for r in drawn],
        yerr=[r.error for r in drawn],
        color=colours.primary,
        marker="o",
        markersize=5,
        capsize=3,
    )
    if undefined_below is not None and undefined_below > 0:
        left, right = ax.get_xlim()
        left = min(left, undefined_below / 3)
        ax.axvspan(
            left, undefined_below, color=colours.grid, zorder=0, label="not positive definite"
        )
        ax.set_xlim(left, max(right, undefined_below * 3))
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0))
    full_tick_labels(ax)
    ax.set_xlabel("shift c")
    ax.set_ylabel("log det(H + cI)  [nats]")
    return ax
