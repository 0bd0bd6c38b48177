r"""The noise of a scan: how far rounding moves a loss, measured and not guessed.

Some points of the scan are evaluated in another precision too. For float32 (or less) float64 shows
the rounding errors themselves. For float64 there is nothing to compare with, but to first order
the errors of one program are proportional to the unit roundoff: those of float32 are measured, and
scaled by :math:`2^{-29}`. Everything that rounds is in them: the parameters of the moved point, the
layers, the loss, the sums over the data.

Errors have a part that neighbouring points share (losses below the last digit of 1 that vanish in
a log-sum-exp, say) and one that looks random. The shared part moves a loss, but cancels in a
difference. So both are kept, m and s, from the samples that are nearest in distance and loss:

.. math::
    |\hat l - l| \le 4 s + |m|, \qquad
    |\hat\Delta - \Delta| \le 4 \sqrt{s_0^2 + 4 s_1^2 + s_2^2} + |m_0 - 2 m_1 + m_2|
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvops.landscape.scan import Bar, evaluate, on_rays
from curvops.landscape.storage import Stored

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

COVER = 4.0
"""Standard deviations in a floor."""

_NEAREST = 8
_UNIT = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.float32, torch.float64)}


@dataclass(frozen=True, eq=False)
class Noise(Stored):
    """Rounding errors of the losses of a scan along rays, float64.

    Attributes:
        spread: Standard deviation of what looks random in each loss ``[S, K]``; NaN where the loss
            is not finite, or nothing could be measured.
        shift: What neighbouring losses share ``[S, K]``.
        point_spread: The standard deviation of the loss at the point the rays start from.
        point_shift: The shared part there.
        num_losses: How many losses were evaluated to find out.
    """

    spread: Tensor
    shift: Tensor
    point_spread: float
    point_shift: float
    num_losses: int

    @property
    def loss(self) -> Tensor:
        """The floor of each loss, ``[S, K]``."""
        return COVER * self.spread + self.shift.abs()

    @property
    def point_loss(self) -> float:
        """The floor of the loss at the point."""
        return COVER * self.point_spread + abs(self.point_shift)

    @property
    def rise(self) -> Tensor:
        """The floor of each loss less that at the point, ``[S, K]``."""
        spread = (self.spread**2 + self.point_spread**2).sqrt()
        return COVER * spread + (self.shift - self.point_shift).abs()

    @property
    def difference(self) -> Tensor:
        r"""The floor of each :math:`l_0 - 2 l(h) + l(2h)`, ``[S − 1, K]``."""
        s, m = self.spread, self.shift
        spread = (self.point_spread**2 + 4 * s[:-1] ** 2 + s[1:] ** 2).sqrt()
        return COVER * spread + (self.point_shift - 2 * m[:-1] + m[1:]).abs()

    @property
    def two_sided_difference(self) -> Tensor:
        r"""The floor of each :math:`l(-h) - 2 l_0 + l(h)`, ``[S, K]``, behind as noisy as ahead."""
        spread = (2 * self.spread**2 + 4 * self.point_spread**2).sqrt()
        return COVER * spread + 2 * (self.shift - self.point_shift).abs()


def measure_noise(
    risk: EmpiricalRisk,
    columns: Tensor,
    distances: Tensor,
    losses: Tensor,
    loss: float,
    num_samples: int,
    bar: Bar | None = None,
) -> Noise:
    """Measure the rounding errors of losses along rays.

    Args:
        risk: The risk that the losses are of, at the point where the rays start.
        columns: Their directions ``[P, K]``.
        distances: ``[S, K]``, each row twice the one above.
        losses: Losses there ``[S, K]``.
        loss: The loss at the point itself, finite.
        num_samples: How many points to evaluate in the other precision beside the point itself.
        bar: Told how many of them are done.
    """
    unit = max(torch.finfo(p.dtype).eps for p in risk.params.values()) / 2
    is_double = unit == _UNIT[torch.float64]
    other = risk.to(torch.float32 if is_double else torch.float64)
    # The point itself comes first, one step before the rays.
    values = torch.cat([torch.tensor([loss], dtype=torch.float64), losses.flatten()])
    places = _places(losses, values)
    far = torch.cat([torch.zeros(1, dtype=torch.float64), distances.flatten()])
    reached = far < torch.finfo(other.dtype).max / 4
    chosen = _spread_out(places, values.isfinite() & reached, num_samples + 1)
    # By ray, so that each direction is converted and followed once.
    rays = (chosen - 1) % losses.shape[1]
    order = rays.argsort(stable=True)
    chosen, rays = chosen[order], rays[order]
    used, counts = rays.unique_consecutive(return_counts=True)
    moved = on_rays(
        other.theta, columns[:, used].to(other.dtype), far[chosen].split(counts.tolist())
    )
    errors = evaluate(other, moved, bar=bar).losses - values[chosen]
    errors *= unit / _UNIT[torch.float32] if is_double else -1.0
    known = errors.isfinite()
    spread, shift = _nearby(places, values, chosen[known], errors[known], unit)
    return Noise(
        spread=spread[1:].reshape(losses.shape),
        shift=shift[1:].reshape(losses.shape),
        point_spread=float(spread[0]),
        point_shift=float(shift[0]),
        num_losses=len(chosen),
    )


def _places(losses: Tensor, values: Tensor) -> Tensor:
    """Return where points are, ``[N, 2]``: in octaves of distance, and of the loss."""
    steps = torch.arange(len(losses)).repeat_interleave(losses.shape[1])
    octaves = torch.cat([torch.tensor([-1]), steps]).double()
    size = values.abs()
    # A loss of zero is as near to a tiny one as it can be told from it.
    tiny = max(float(size[0]) * 2.0**-30, torch.finfo(torch.float64).tiny)
    return torch.stack([octaves, size.clamp(min=tiny).log2()], dim=1)


def _spread_out(places: Tensor, allowed: Tensor, num: int) -> Tensor:
    """Return indices of points, each the farthest from those before it; the first is 0."""
    chosen = [0]
    gap = torch.where(allowed, math.inf, -1.0)
    for _ in range(min(num, int(allowed.sum())) - 1):
        apart = (places - places[chosen[-1]]).square().sum(1)
        gap = torch.where(allowed, torch.minimum(gap, apart), -1.0)
        gap[chosen] = -1.0
        chosen.append(int(gap.argmax()))
    return torch.tensor(chosen)


def _nearby(
    places: Tensor, values: Tensor, chosen: Tensor, errors: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """Return standard deviation and mean of the errors near each place."""
    if len(chosen) < 2:
        nothing = torch.full_like(values, math.nan)
        return nothing, nothing.clone()
    apart = torch.cdist(places.nan_to_num(), places[chosen])
    nearest = apart.topk(min(_NEAREST, len(chosen)), largest=False).indices
    # A loss larger than that of a sample may have errors larger by as much; a smaller loss need
    # not have smaller ones.
    size, of_samples = values.abs().unsqueeze(1), values[chosen].abs()[nearest]
    growth = (size / of_samples).nan_to_num(1.0, posinf=1.0).clamp(min=1.0)
    near = errors[nearest] * growth
    # To a few samples errors may look equal that are not: the last rounding is always there.
    last = (unit * values.abs()) ** 2 / 3
    spread = (near.var(1) + last).sqrt()
    shift = near.mean(1)
    finite = values.isfinite()
    return torch.where(finite, spread, math.nan), torch.where(finite, shift, math.nan)
