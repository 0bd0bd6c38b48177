"""Ladders: from a Gaussian to the soft basin, along the temperature, and on to the level set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from curvops.errors import DivergenceError
from curvops.volume.cloud import Rung
from curvops.volume.resampling import normalised
from curvops.volume.smc import Leg, Sampler
from curvops.volume.tilt import Hardened, Level, Tempered

_HARDEN = 0.6
"""Share of points that stay effective on a step to the level set: few, short steps, each of which
adds about 1/N to the variance."""

_SPLIT = math.exp(-1)
"""Of the points, what a level of splitting keeps."""

_NEAR = 0.05
"""A soft basin with less than this mean of β · cost is nearly all of the measure."""

_DETACHED = 100.0
"""The cost above the threshold, in units of P/β, at which a cloud has lost touch."""

_REACH = 4
"""Rungs to either side over which step sizes are averaged."""

_WIDTHS = 50.0
"""No step in β is longer than this many standard deviations of the cost: its weights are gone
long before."""

_HALVINGS = 60

Tick = Callable[[Sampler], None]
"""Called after every rung."""


@dataclass
class Pilot:
    """Who finds the way: where the next rung is, how to move there, where to stop.

    Attributes:
        sampler: Goes ahead.
        ess: Share of points that stay effective from rung to rung.
        max_rungs: Where to give up.
        tick: Called after every rung.
        legs: The way found.
    """

    sampler: Sampler
    ess: float
    max_rungs: int
    tick: Tick
    legs: list[Leg] = field(default_factory=list)

    def leave_reference(self, beta: float) -> None:
        """Go from the Gaussian to the soft basin at ``β``, along the geometric path."""
        mix = 0.0
        while mix < 1.0:
            start = mix

            def path(s: float, start: float = start) -> Rung:
                return Rung(start + s, Tempered((start + s) * beta))

            step = self.sampler.furthest(path, 1.0 - start, self.ess)
            mix = 1.0 if step >= 1.0 - start else start + step
            self._go(Rung(mix, Tempered(mix * beta)), "reference", beta=mix * beta)

    def temper(self, beta: float, threshold: float) -> float:
        """Go along the temperature to where the mean cost is ``ε``; return that ``β``.

        Zero if the cost stays below ε on average without any tilt.
        """
        mean = self.sampler.mean_cost
        direction = 1.0 if mean(self.sampler.rung) > threshold else -1.0
        while True:
            here = beta

            def path(s: float, here: float = here) -> Rung:
                return Rung(1.0, Tempered(max(here + direction * s, 0.0)))

            end = _widest(self.sampler, here) if direction < 0 else _longest(self.sampler, here)
            step = self.sampler.furthest(path, end, self.ess)
            beyond = direction * (threshold - mean(path(step))) >= 0
            if beyond:
                step = _crossing(lambda s: direction * (threshold - mean(path(s))), step)
            beta = max(here + direction * step, 0.0)
            self._go(Rung(1.0, Tempered(beta)), "temper", beta=beta)
            if beyond or beta == 0.0 or direction * (threshold - mean(self.sampler.rung)) >= 0:
                return beta
            self._check_following(beta, threshold)

    def harden(self, beta: float, threshold: float) -> None:
        """Go from the soft basin at ``β`` to the level set of ``ε``."""
        hardness = 0.0
        while hardness < 1.0:
            start = hardness

            def path(s: float, start: float = start) -> Rung:
                return Rung(1.0, Hardened(beta, threshold, min(start + s, 1.0)))

            step = self.sampler.furthest(path, 1.0 - start, _HARDEN)
            hardness = 1.0 if step >= 1.0 - start else start + step
            rung = Rung(1.0, Hardened(beta, threshold, hardness))
            self._go(rung, "harden", beta=beta, level=hardness, move=hardness < 1.0)

    def split(self, threshold: float) -> None:
        """Go down from level set to level set, each holding a share of the one before."""
        before = math.inf
        while before > threshold:
            costs = self.sampler.cloud.cost
            kept = max(int(_SPLIT * len(costs)), 1)
            level = max(float(costs.sort().values[kept - 1]), threshold)
            if level >= before:
                raise DivergenceError(
                    f"{kept} of {len(costs)} points share the lowest cost, {level:.6g}, which is "
                    "not below the last level: the cost is constant on a set of positive measure, "
                    "or the points have stopped moving. Use more chains or more moves."
                )
            above = costs[costs.isfinite() & (costs > level)] - level
            beta = 1.0 / float(above.mean()) if len(above) else 1.0 / abs(level)
            self._go(Rung(1.0, Level(level, beta)), "split", level=level, move=level > threshold)
            before = level

    def _check_following(self, beta: float, threshold: float) -> None:
        """Refuse to go on where the cost no longer answers to the temperature."""
        step, dim = self.sampler.steps[-1], self.sampler.chart.dim
        # In equilibrium the cost stands about λ/β above its minimum, and λ is at most P/2 at a
        # regular one.
        if beta * (step.mean_cost - threshold) > _DETACHED * dim:
            raise DivergenceError(
                f"the mean cost is still {step.mean_cost:.4g} at beta={beta:.4g}, above the "
                f"threshold of {threshold:.4g}: the points were left behind, or there is no lower "
                "cost. Use more moves or leapfrog steps, a larger ess, or a larger threshold."
            )

    def _go(
        self, rung: Rung, stage: str, *, beta: float = 0.0, level: float = 0.0, move: bool = True
    ) -> None:
        self.legs.append(self.sampler.explore(rung, stage, beta=beta, level=level, move=move))
        self.tick(self.sampler)
        if move and len(self.legs) >= self.max_rungs:
            step = self.sampler.steps[-1]
            raise DivergenceError(
                f"the ladder has not reached its end after max_rungs={self.max_rungs} rungs: it "
                f"stands at beta={step.beta:.4g} with a mean cost of {step.mean_cost:.4g} (stage "
                f"{step.stage!r}). Allow more rungs, a larger threshold, or a smaller ess."
            )


def smoothed(legs: Sequence[Leg]) -> list[Leg]:
    """Return legs whose step sizes are averaged over their neighbours along the temperature.

    What a pilot found with few chains is noisy, and the next runs do not adapt.
    """
    found = [math.log(leg.step_size) if leg.stage == "temper" else None for leg in legs]
    averaged = []
    for place, leg in enumerate(legs):
        near = [x for x in found[max(place - _REACH, 0) : place + _REACH + 1] if x is not None]
        steady = leg.stage == "temper"
        size = math.exp(sum(near) / len(near)) if steady else leg.step_size
        averaged.append(replace(leg, step_size=size))
    return averaged


def descend(sampler: Sampler, legs: Sequence[Leg], first: Rung, tick: Tick) -> Sampler:
    """Go legs back that a sampler has followed, to the first rung; return who went.

    Its normaliser is that of the first rung, there and back again: 1 if nothing was lost.
    """
    back = replace(sampler, steps=[])
    for leg in reversed(legs[:-1]):
        back.follow(replace(leg, stage="return"))
        tick(back)
    back.follow(replace(legs[0], stage="return", rung=first, beta=0.0, step_size=0.0))
    return back


def _widest(sampler: Sampler, beta: float) -> float:
    """Return the longest step down in β: to zero only from where zero is near."""
    mean = sampler.mean_cost(sampler.rung)
    # The weights of a narrow cloud cannot tell how much wider the next density is.
    return beta if beta * abs(mean) < _NEAR else beta / 2


def _longest(sampler: Sampler, beta: float) -> float:
    """Return a step in β that is certainly too long."""
    weights = normalised(sampler.log_weights(sampler.rung))
    costs = sampler.cloud.cost[weights > 0]
    spread = float(costs.std()) if len(costs) > 1 else 0.0
    if not spread > 1e-12 * float(costs.abs().max()):
        raise DivergenceError(
            f"all points have the cost {float(costs.mean()):.6g} at beta={beta:.4g}, above the "
            "threshold: they have stopped moving, or the cost does not depend on the parameters. "
            "Use more chains or more moves."
        )
    return _WIDTHS / spread


def _crossing(excess: Callable[[float], float], step: float) -> float:
    """Return the shortest step at which an excess is not negative, by bisection."""
    low, high = 0.0, step
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) >= 0 else (middle, high)
    return high


def seeded(seed: int, run: int) -> torch.Generator:
    """Return the generator of one of several independent runs."""
    # torch's generators take 64 bits; odd multiples keep neighbouring seeds' runs apart.
    return torch.Generator().manual_seed((seed + run * 0x9E3779B97F4A7C15) % 2**63)
