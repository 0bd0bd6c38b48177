r"""Stochastic gradient Langevin dynamics: chains that look at one mini-batch a step.

.. math::
    \theta \leftarrow \theta - \tfrac{\eta}{2} \big(n\beta \nabla L_b(\theta)
        + \gamma (\theta - \theta^*)\big) + \sqrt{\eta} \, \xi,
    \qquad \xi \sim \mathcal{N}(0, I)

No proposal is rejected, so what the chains sample is off by an error of order :math:`\eta`, from
the discretisation and from the noise of the mini-batches. On a quadratic of curvature :math:`a`
the variance is :math:`1 / (a (1 - \eta a / 4))` in place of :math:`1/a`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvops.data import Batch, BatchStream
from curvops.errors import DivergenceError, InputError
from curvops.volume.localized import LocalizedPosterior
from curvops.volume.moves import Points, evaluate

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

_FAR = 100.0
"""Chains further out than this many times what the localisation alone allows have diverged."""
_ROUNDINGS = 1e3


class MiniBatches:
    r"""The posterior seen through one mini-batch at a time, without bias.

    The loss through batch :math:`b` of :math:`B` is :math:`\tfrac{B}{Z} \sum_{n \in b} \ell_n`
    (and the weight decay), whose average over batches is the risk. Batches that are kept in
    memory are drawn with replacement, so that the one to come does not depend on where the chains
    are; data that are read again for every pass come in their own order.

    Args:
        posterior: Over all data.
        batch_size: Re-cut the data to batches of at most so many; as the risk has them by default.
        generator: Draws the batches.

    Raises:
        InputError: If the batches' losses do not add up to the whole, because predictions depend
            on what else is in the batch.
    """

    def __init__(
        self, posterior: LocalizedPosterior, batch_size: int | None, generator: torch.Generator
    ) -> None:
        self._posterior = posterior
        self._generator = generator
        self._data = _recut(posterior.risk, batch_size)
        if len(self) == 1:
            return
        # At the centre, on the very data that the draws will see.
        self._losses = [
            _part(posterior.risk, batch, len(self)).loss().double() for batch in self._data
        ]
        mean, whole = float(torch.stack(self._losses).mean()), float(posterior.loss)
        slack = _ROUNDINGS * torch.finfo(posterior.risk.dtype).eps
        if abs(mean - whole) > slack * max(abs(loss) for loss in map(float, self._losses)):
            raise InputError(
                f"batch_size is {batch_size}, but the loss over such batches is {mean:.6g} where "
                f"that over the batches as given is {whole:.6g}: predictions depend on what else "
                "is in the batch. Leave batch_size out."
            )

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._data)

    def __iter__(self) -> Iterator[LocalizedPosterior]:
        """Yield the posterior through one batch after another, for ever."""
        if len(self) == 1:
            while True:
                yield self._posterior
        kept = list(self._data) if self._data.is_cached else None
        while kept is not None:
            order = torch.randint(len(kept), (len(kept),), generator=self._generator)
            for index in order.tolist():
                yield self._through(kept[index])
        while True:
            for batch in self._data:
                yield self._through(batch)

    def _through(self, batch: Batch) -> LocalizedPosterior:
        part = _part(self._posterior.risk, batch, len(self))
        return replace(self._posterior, risk=part, loss=self._losses[batch.index])


def langevin(
    posterior: LocalizedPosterior, x: Tensor, step_size: float, generator: torch.Generator
) -> tuple[Points, Tensor]:
    r"""Make one step of every chain, without rejections.

    Args:
        posterior: The density, seen through one mini-batch or all data.
        x: Where the chains are, ``[M, P]``.
        step_size: ``η``.
        generator: Draws the noise.

    Returns:
        What the density said at ``x``, and where the chains go, ``[M, P]``.

    Raises:
        DivergenceError: If a chain has met NaN or infinity, or is further from the centre than
            the localisation would let it be.

    Source:
        Welling & Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics; Lau et
        al. 2023, arXiv 2308.12108, for the localised form.
    """
    points = evaluate(posterior, x)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    moved = x + step_size / 2 * points.gradient + math.sqrt(step_size) * noise.to(x.device)
    lost = ~(torch.isfinite(points.value) & torch.isfinite(moved).all(1))
    if posterior.localization > 0:
        reach = _FAR * x.shape[1] / posterior.localization
        lost |= posterior.offset(moved).double().square().sum(1) > reach
    if bool(lost.any()):
        raise DivergenceError(
            f"{int(lost.sum())} of {len(x)} chains diverged at step_size={step_size:.3g}: "
            "NaN, infinity, or a distance that the localization does not allow. Pass a smaller "
            f'step_size (such as {step_size / 10:.1g}), or step_size="auto".'
        )
    return points, moved


class _OneBatch:
    """A stream of a single batch that is held already."""

    is_cached = True
    is_recut = False

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.sizes = [batch.size]
        self.num_data = batch.size

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self._batch


def _part(risk: EmpiricalRisk, batch: Batch, count: int) -> EmpiricalRisk:
    """Return the risk through one of ``count`` batches, scaled to the whole."""
    part = copy.copy(risk)
    part._data = _OneBatch(batch)  # type: ignore[assignment]
    part._normalizer = risk.normalizer / count
    part.progressbar = False
    return part


def _recut(risk: EmpiricalRisk, batch_size: int | None) -> BatchStream:
    """Return the risk's data in batches of the size asked for."""
    if batch_size is None:
        return risk._data
    data = copy.copy(risk._data)
    data.recut(batch_size)
    return data
