"""What every answer about a basin's volume has in common, however it was found."""

from __future__ import annotations

import math
from typing import Any, Protocol


class VolumeResult(Protocol):
    """A log-volume with its error.

    Attributes:
        log_volume: In nats.
        stderr: Its Monte-Carlo error; 0 where nothing was sampled.
        lower: Lower end of an interval that holds the truth of the *method* with 95 % confidence.
        upper: Upper end; infinite where nothing is known.
        converged: Whether the error can be believed; if not the estimate is a lower bound.
        method: ``"quadratic"``, ``"star"``, ``"bridge"``.
        symbol: ``"log V"`` or ``"log p"``, by the measure.
        threshold: What the cost may rise by.
        dim: The number of parameters ``P``.
        seconds: How long it took.
    """

    @property
    def log_volume(self) -> float: ...  # noqa: D102
    @property
    def stderr(self) -> float: ...  # noqa: D102
    @property
    def lower(self) -> float: ...  # noqa: D102
    @property
    def upper(self) -> float: ...  # noqa: D102
    @property
    def converged(self) -> bool: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def symbol(self) -> str: ...  # noqa: D102
    @property
    def threshold(self) -> float: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def seconds(self) -> float: ...  # noqa: D102
    def to_dict(self) -> dict[str, Any]: ...  # noqa: D102


def with_error(value: float, error: float) -> str:
    """Return a value to two digits of its error, and the error.

    Example:
        >>> with_error(-410.2094, 0.0137), with_error(-6248.1, 0.9), with_error(1.5, 0.0)
        ('-410.209 ± 0.014', '-6248.10 ± 0.90', '1.5000')
    """
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4f}"
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 9)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
