"""α of every step, from the mini-batches at its ends; and of the risk itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.training.individual import Batch, Overwritten, Request, Statistics
from curvops.training.mean_variance import variance_of_mean
from curvops.training.quantity import Every, Measured, Quantity, Setting
from curvops.training.step_size import StepSize, exact_step, fit_step
from curvops.training.update import Update

if TYPE_CHECKING:
    from curvops.training.curvature import Curvature


@dataclass(frozen=True)
class _End:
    """Loss and slope at one end of a step, with the variances of these means."""

    loss: float
    slope: float
    loss_variance: float | None
    slope_variance: float | None


class Alpha(Quantity):
    r"""The effective step length α = t/t* − 1 (see :mod:`curvops.training.step_size`).

    f(0) and f'(0) = ⟨g, d⟩/‖d‖ come from the mini-batch of the step, f(t) and f'(t) from the next
    one, at the parameters where it arrives. Their noise is the unbiased variance of the individual
    losses ℓ_n and of ⟨g_n, d⟩/‖d‖ over each batch, divided by its size, for they are means. The
    value of step ``n`` is known when the mini-batch ``n + 1`` has been differentiated.

    Cost: no pass over the data with BackPACK, at most two products of the layers' inputs with the
    step; otherwise two derivatives of the individual losses along the step, each about two to
    four plain steps, or individual gradients where layers draw at random. A copy of the
    parameters.

    Args:
        every: Measure the steps 0, ``every``, 2 ``every``, ...
        end: Where f(t) and f'(t) come from: ``"next"``, the next mini-batch, or ``"own"``, the
            mini-batch of the step again, which costs a forward pass and another derivative, and
            leaves out what differs between mini-batches.

    Raises:
        InputError: If an argument is impossible.

    Source:
        Schneider, Dangel & Hennig 2021, Cockpit (arXiv:2102.06604), section 2.

    Example:
        >>> Alpha(every=10).due(20), Alpha(every=10).due(21)
        (True, False)
    """

    name = "alpha"

    def __init__(self, every: Every = 1, *, end: Literal["next", "own"] = "next") -> None:
        super().__init__(every)
        if end not in ("next", "own"):
            raise InputError(f'end must be "next" or "own", got {end!r}.')
        self.end = end
        self._eps = 0.0
        self._open: tuple[Update, _End] | None = None

    def bind(self, setting: Setting) -> None:
        """Learn the rounding of the parameters."""
        self._eps = setting.eps
        self._open = None

    def request(self, step: int) -> Request:
        """Ask for the slopes along a step that is waiting for its end."""
        if not self._ends(step):
            return Request()
        assert self._open is not None
        return Request(directions=(self._open[0].blocks,))

    def wants_individual(self, step: int) -> bool:
        """Ask for the data at both ends of a step."""
        return self.due(step) or self._ends(step)

    def abandon(self, step: int) -> list[int]:
        """Give up the step that is waiting for its end, and the one that starts."""
        waiting = [step - 1] if self._ends(step) else []
        self._open = None
        return [*waiting, step] if self.due(step) else waiting

    def wants_update(self, step: int) -> bool:
        """Ask for what the step did."""
        return self.due(step)

    def at_batch(self, step: int, batch: Batch, found: Statistics) -> Iterable[Measured]:
        """Close the step that is waiting."""
        if self._open is None:
            return
        (update, start), self._open = self._open, None
        end = _end(batch.losses, found.projections[0] / update.unit)
        yield Measured(update.step, self._fit(start, end, update.length))

    def at_update(
        self, update: Update, batch: Batch | None, curvature: Curvature
    ) -> Iterable[Measured]:
        """Open the step: project the gradients at its start."""
        assert batch is not None
        self._open = None
        losses = batch.losses
        if update.length == 0.0:
            start = _end(losses, torch.zeros_like(losses))
            yield Measured(update.step, self._fit(start, start, 0.0))
            return
        try:
            start = _end(losses, batch.project(update.blocks) / update.unit)
            if self.end == "own":
                again = batch.at(update.now)
                end = _end(again.losses, again.project(update.blocks) / update.unit)
                yield Measured(update.step, self._fit(start, end, update.length))
                return
        except Overwritten as error:
            nothing = StepSize(
                float("nan"), 0.0, "undetermined", update.length, (0.0, 0.0, 0.0),
                (float(losses.mean()), 0.0), (0.0, 0.0), notes=(str(error),),
            )  # fmt: skip
            yield Measured(update.step, nothing)
            return
        self._open = (update, start)

    def _ends(self, step: int) -> bool:
        """Tell whether the mini-batch of a step is where the one before has ended."""
        return self._open is not None and self._open[0].step == step - 1

    def _fit(self, start: _End, end: _End, length: float) -> StepSize:
        variances = [
            start.loss_variance, end.loss_variance, start.slope_variance, end.slope_variance
        ]  # fmt: skip
        known = [v for v in variances if v is not None]
        return fit_step(
            (start.loss, end.loss),
            (start.slope, end.slope),
            length,
            known if len(known) == 4 else None,
            eps=self._eps,
        )


class ExactAlpha(Quantity):
    r"""α of the step on the risk itself, without noise (see :func:`exact_step`).

    .. math:: \alpha = -\frac{d^T H d}{g^T d} - 1

    with gradient and Hessian of the data looked at, at the start of the step: what
    :class:`Alpha` estimates from two mini-batches.

    Cost: one gradient and one product of the data looked at. A copy of the parameters.

    Args:
        every: Measure the steps 0, ``every``, 2 ``every``, ...

    Source:
        Schneider, Dangel & Hennig 2021, Cockpit (arXiv:2102.06604), section 2.

    Example:
        >>> ExactAlpha(every=20).due(40)
        True
    """

    name = "exact_alpha"
    looks_at_risk = True

    def __init__(self, every: Every = 50) -> None:
        super().__init__(every)

    def wants_update(self, step: int) -> bool:
        """Ask for what the step did."""
        return self.due(step)

    def at_update(
        self, update: Update, batch: Batch | None, curvature: Curvature
    ) -> Iterable[Measured]:
        """Multiply the Hessian with the step."""
        if not curvature.ready:
            return
        with curvature.at_current_point():
            risk = curvature.risk.at(dict(update.start))
            step = [b.double() * (update.length / update.unit) for b in update.blocks]
            yield Measured(update.step, exact_step(risk, step))


def _end(losses: Tensor, slopes: Tensor) -> _End:
    # numpy's calls cost a tenth of torch's, and these are short vectors.
    f, g = losses.numpy(force=True), slopes.numpy(force=True)
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges
        means = float(f.mean()), float(g.mean())
    if len(f) < 2:
        return _End(*means, None, None)
    return _End(*means, variance_of_mean(f), variance_of_mean(g))
