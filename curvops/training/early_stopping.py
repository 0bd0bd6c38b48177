"""The evidence that a gradient is nothing but noise: a reason to stop without validation data."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from curvops.training.gradient_noise import SignalToNoise
from curvops.training.individual import Batch, Request, Statistics
from curvops.training.quantity import Every, Measured, Quantity, Setting
from curvops.training.run import plain_fields


@dataclass(frozen=True)
class EarlyStoppingResult:
    """The evidence criterion.

    Attributes:
        evidence: 1 − (B/P) Σ_j g_j²/Σ_jj: above 0, the gradient is as expected of noise alone.
        stop: Whether it is above 0.
        batch_size: B.
        status: ``"ok"``, or ``"undetermined"`` for one datum, where no parameter has noise, or
            where Σ g_n² holds NaN or infinity.
        seconds: How long it took.
        notes: What to know.
    """

    evidence: float | None
    stop: bool
    batch_size: int
    status: str
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the evidence and what it says."""
        if self.evidence is None:
            return f"early stopping: {self.status}"
        return f"evidence to stop {self.evidence:.3g} ({'stop' if self.stop else 'go on'})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return plain_fields(self)


class EarlyStopping(Quantity):
    r"""Evidence that the mini-batch gradient is what noise around zero looks like.

    .. math:: 1 - \frac{B}{P} \sum_{j=1}^{P} \frac{g_j^2}{\hat\Sigma_{jj}} > 0

    If the true gradient is zero, B g_j²/Σ_jj is 1 on average; where its mean over the parameters
    falls below, the gradient holds no more signal. Parameters that no datum reaches do not count.

    Cost: no pass over the data with BackPACK, but Σ g_n² of all parameters, about a weight
    gradient; otherwise one gradient of every datum of the mini-batch.

    Args:
        every: Measure at steps 0, ``every``, 2 ``every``, ...

    Source:
        Mahsereci, Balles, Lassner & Hennig 2017, Early stopping without a validation set
        (arXiv:1703.09580), equation 7.

    Example:
        >>> EarlyStopping(every=10).due(10)
        True
    """

    name = "early_stopping"

    def __init__(self, every: Every = 10) -> None:
        super().__init__(every)
        self._ratio: SignalToNoise | None = None

    def bind(self, setting: Setting) -> None:
        """Learn about the parameters."""
        everything = [None] * len(setting.shapes)
        self._ratio = SignalToNoise(setting.shapes, everything, setting.eps)

    def request(self, step: int) -> Request:
        """Ask for the second moments of all parameters."""
        if not self.due(step) or self._ratio is None:
            return Request()
        return Request(moments=self._ratio.rows)

    def at_batch(self, step: int, batch: Batch, found: Statistics) -> Iterable[Measured]:
        """Evaluate."""
        if not self.due(step):
            return
        begin = time.perf_counter()
        ratio = None
        if batch.size > 1 and self._ratio is not None:
            ratio, _ = self._ratio(found.sums, found.squares, batch.size)
        evidence = None if ratio is None else 1.0 - batch.size * ratio
        yield Measured(
            step,
            EarlyStoppingResult(
                evidence=evidence,
                stop=evidence is not None and evidence > 0.0,
                batch_size=batch.size,
                status="undetermined" if evidence is None else "ok",
                seconds=time.perf_counter() - begin,
                notes=batch.notes,
            ),
        )
