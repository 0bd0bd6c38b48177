"""The chains behind a learning coefficient: where they were, burn-in and all, and the estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from curvops.plotting.style import current, resolve
from curvops.volume.coefficient_result import LearningCoefficient

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_POINTS = 300
"""More draws than this are averaged in blocks, or nothing would be seen of the chains."""
_CHAINS = 12


def learning_coefficient(result: LearningCoefficient, *, ax: Axes | None = None) -> Axes:
    """Draw the traces ``nβ (L - L*)`` of the chains, their mean and the estimate's interval.

    Draws before 0 are the burn-in. Of many chains the first 12 are drawn; the thick line is the
    mean of all. Chains that have mixed look alike and lie around the estimate from 0 on.

    Args:
        result: The result of :func:`curvops.volume.local_learning_coefficient`.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting
        >>> from curvops.risk import EmpiricalRisk
        >>> from curvops.volume.learning_coefficient import local_learning_coefficient
        >>> data, zero = [(torch.eye(4), torch.zeros(4))], {"w": torch.zeros(4)}
        >>> risk = EmpiricalRisk(lambda p, x: x @ p["w"], torch.nn.MSELoss(), zero, data)
        >>> result = local_learning_coefficient(risk, inverse_temperature=1e4, num_leapfrog=3)
        >>> plotting.learning_coefficient(result, ax=plotting.new_axes()).get_ylabel()
        'nβ (L − L*)'
    """
    ax, colours = resolve(ax), current()
    parts = [(result.samples, 0)]
    if result.burnin.shape[1]:
        parts.insert(0, (result.burnin, -result.burnin.shape[1]))
    for values, start in parts:
        x, chains = _averaged(values, start)
        for chain in chains[:_CHAINS]:
            ax.plot(x, chain, color=colours.primary, alpha=0.35, linewidth=0.7)
        is_kept = start == 0
        ax.plot(
            x,
            chains.mean(0),
            color=colours.primary if is_kept else colours.muted,
            label="mean of the chains" if is_kept else "burn-in",
        )
    if result.burnin.shape[1]:
        ax.axvspan(-result.burnin.shape[1], 0, color=colours.grid, alpha=0.5, linewidth=0)
    ax.axhspan(result.lower, result.upper, color=colours.accent, alpha=0.2, linewidth=0)
    doubt = "" if result.converged else ", not converged"
    ax.axhline(
        result.value,
        color=colours.accent,
        linestyle="--",
        linewidth=1.3,
        label=f"λ̂ = {result.value:.4g} ± {result.stderr:.2g}{doubt}",
    )
    ax.margins(x=0)
    ax.set_xlabel("draw" if result.method == "hmc" else "step")
    ax.set_ylabel("nβ (L − L*)")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, columnspacing=1.4)
    return ax


def _averaged(values: Tensor, start: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return places and traces ``[C, points]``, averaged in blocks where there are many draws."""
    size = -(-values.shape[1] // _POINTS)
    count = values.shape[1] // size
    blocks = values[:, : count * size].reshape(len(values), count, size).mean(2)
    places = start + size * (np.arange(count, dtype=np.float64) + 0.5) - 0.5
    return places, np.asarray(blocks.numpy(), dtype=np.float64)
