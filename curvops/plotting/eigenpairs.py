"""Eigenvalues by rank, each within the error that its residual leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from curvops.linalg.eigen_result import EighResult
from curvops.plotting.scree import rings
from curvops.plotting.style import as_array, current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike


def eigenpairs(
    result: EighResult,
    *,
    reference: ArrayLike | torch.Tensor | None = None,
    reference_label: str = "dense",
    ax: Axes | None = None,
) -> Axes:
    """Draw eigenvalues against their rank, largest first, with their residuals as error bars.

    There is an eigenvalue within each bar. An open marker has not converged.

    Args:
        result: What :func:`curvops.linalg.eigsh.eigsh` returned.
        reference: Values to compare with, ranked the same way.
        reference_label: What the legend calls them.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes; logarithmic if everything, bars included, is positive.

    Raises:
        InputError: If the reference is empty or not finite.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops.linalg.eigsh import eigsh
        >>> from curvops.plotting.style import new_axes
        >>> ax = eigenpairs(eigsh(torch.diag(torch.arange(1.0, 9.0)), 3), ax=new_axes())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['3 converged']
    """
    values = as_array(result.eigenvalues, "eigenvalues")
    residuals = as_array(result.residuals, "residuals")
    converged = result.converged.cpu().numpy()
    order = values.argsort()[::-1]
    values, residuals, converged = values[order], residuals[order], converged[order]
    ranks = np.arange(1, len(values) + 1)
    ax, colours = resolve(ax), current()
    from matplotlib.ticker import MaxNLocator

    lowest = (values - residuals).min()
    if reference is not None:
        expected = np.sort(as_array(reference, "reference"))[::-1]
        lowest = min(lowest, expected[-1])
        rings(ax, expected, reference_label)
    for chosen, face, name in (
        (converged, colours.primary, "converged"),
        (~converged, colours.paper, "not converged"),
    ):
        if chosen.any():
            ax.errorbar(
                ranks[chosen],
                values[chosen],
                yerr=residuals[chosen],
                linestyle="none",
                marker="o",
                markersize=5,
                markerfacecolor=face,
                color=colours.primary,
                capsize=3,
                label=f"{int(chosen.sum())} {name}",
            )
    if lowest > 0:
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank")
    ax.set_ylabel("eigenvalue")
    ax.legend(loc="upper right")
    return ax
