"""The local exponent of a basin's volume: P/2 in a regular minimum, less in a singular one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curvops.plotting.style import current, resolve
from curvops.plotting.volume_scaling import draw_points, threshold_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from curvops.volume.volume_scaling import VolumeScaling


def local_exponent(
    result: VolumeScaling, *, reference: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw d log V / d log ε against the threshold, with errors.

    Args:
        result: The result of :func:`curvops.volume.volume_scaling.volume_scaling`.
        reference: A known exponent to draw beside; ``P/2`` of a regular minimum if it fits into
            the picture, that is, if the exponents are above half of it.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import EmpiricalRisk, plotting, volume
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = [(torch.eye(3), torch.zeros(3, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), [torch.zeros(1, 3)], data)
        >>> result = volume.volume_scaling(risk, [0.1, 1.0], measure="lebesgue")
        >>> plotting.local_exponent(result, ax=plotting.new_axes()).get_xscale()
        'log'
    """
    ax, colours = resolve(ax), current()
    x, y = result.thresholds.numpy(), result.exponent.numpy()
    ax.errorbar(x, y, yerr=result.exponent_stderr.numpy(), color=colours.primary, capsize=3)
    draw_points(ax, x, y, result.converged.numpy())
    half = result.dim / 2
    label = "known"
    if reference is None and y.max() > half / 2:
        reference, label = half, "P/2"
    if reference is not None:
        ax.axhline(reference, color=colours.accent, linestyle="--", linewidth=1.4, label=label)
        ax.legend()
    ax.set_ylabel(f"d {result.symbol} / d log ε")
    threshold_axis(ax, result)
    return ax
