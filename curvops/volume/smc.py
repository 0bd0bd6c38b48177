r"""Sequential Monte Carlo: a cloud of points led from one density to the next.

A rung multiplies the weights of N points by :math:`w_i = \pi_{k+1}(z_i) / \pi_k(z_i)`, whose mean
is an estimate of the ratio of the two normalisers; M of them are drawn again by weight and each
makes N/M Metropolis-adjusted moves, all of which become the next rung's points.

.. math:: \log Z \approx \sum_k \log \Bigl[ \tfrac1N \sum_i w_i^{(k)} \Bigr]

A pilot chooses the rungs and the step sizes by where its own points are, which bends its estimate.
Runs follow its plan and adapt two things: a factor of the step sizes, from the acceptance on the
rungs before; and the coordinates of the moves, which one half of the chains learns from the other
half, never from itself. (Learned from the very points that move in them, coordinates make thin
clouds thinner: estimates of Z are then too large, by nats where directions are many and points
few.) So their estimates of Z, not of its logarithm, are right on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvops.errors import DivergenceError
from curvops.volume.cloud import Chart, Cloud, Rung
from curvops.volume.moves import Points, hmc
from curvops.volume.resampling import as_shares, effective, normalised, systematic
from curvops.volume.whitening import Whitening

_SMALLEST, _LARGEST = 0.3, 1.2
"""Of the step size, what chains use: uniform between the two. The small ones free a chain from
where the cost is more curved than elsewhere, the spread keeps orbits from closing in all chains."""

_GAIN = 0.5
"""How fast the logarithm of the step size follows the acceptance."""

_CLOSE = 0.2
"""A pilot's acceptance is good enough to go on when it misses its aim by less than this."""

_TRIALS = 8
"""A pilot's attempts to come that close."""

_STUCK = 8
"""After so many rungs in a row on which nothing moved, a run gives up."""

_HALVINGS = 60


@dataclass(frozen=True)
class Step:
    """What happened on the way to one rung of a ladder.

    Attributes:
        stage: ``"reference"``, ``"temper"``, ``"harden"``, ``"split"`` or ``"return"``.
        mix: ``t``.
        beta: ``β``, 0 when splitting.
        level: Hardness ``h`` when hardening, the threshold of the cost when splitting, else 0.
        log_z: log of the normaliser, in nats.
        ess: Effective number of the weighted points, of ``num_points``.
        num_points: ``N``.
        num_families: How many of the run's first points have descendants among the points drawn
            again.
        acceptance: Mean acceptance probability of the moves; NaN where none were made.
        step_size: Of the moves, in the coordinates of the rung, on average.
        predicted_cost: Mean cost on the rung by the weighted points, before the moves.
        mean_cost: The same after them; as predicted where there were none.
        cost_std: The standard deviation of the cost on the rung.
    """

    stage: str
    mix: float
    beta: float
    level: float
    log_z: float
    ess: float
    num_points: int
    num_families: int
    acceptance: float
    step_size: float
    predicted_cost: float
    mean_cost: float
    cost_std: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return asdict(self)


@dataclass(frozen=True)
class Leg:
    """The way to one rung, as planned.

    Attributes:
        stage: See :class:`Step`.
        rung: Where it leads.
        beta: For the record.
        level: For the record.
        step_size: Of the moves; 0 where none are made and the points keep their old density.
    """

    stage: str
    rung: Rung
    beta: float
    level: float
    step_size: float


@dataclass(frozen=True)
class Tuning:
    """How a cloud moves.

    Attributes:
        num_chains: ``M``, the points that are drawn again on every rung.
        num_moves: Moves of each, ``N / M``.
        num_leapfrog: Leapfrog steps of a move on average; each move draws its own number.
        acceptance: The acceptance rate that step sizes aim at.
        floor: The least curvature that a direction has in the coordinates of the cloud.
    """

    num_chains: int
    num_moves: int
    num_leapfrog: int
    acceptance: float
    floor: float


@dataclass(frozen=True)
class _Halves:
    """Two frames: one for the first rows, one for the others."""

    first: Whitening
    second: Whitening
    count: int

    def forward(self, y: Tensor) -> Tensor:
        return torch.cat(
            [self.first.forward(y[: self.count]), self.second.forward(y[self.count :])]
        )

    def adjoint(self, g: Tensor) -> Tensor:
        return torch.cat(
            [self.first.adjoint(g[: self.count]), self.second.adjoint(g[self.count :])]
        )


@dataclass
class Sampler:
    """A cloud on its way, and how it came to where it is.

    Attributes:
        chart: The coordinates.
        tuning: How it moves.
        generator: Where all randomness comes from.
        cloud: The points, equally likely under ``rung``.
        rung: Where they are.
        step_size: Of a pilot's next moves.
        stretch: What a run multiplies the planned step sizes with.
        log_z: log of the rung's normaliser, the first rung's being 0.
        steps: What happened.
        families: The first points' numbers, inherited by their descendants.
        stuck: On how many rungs in a row nothing moved.
    """

    chart: Chart
    tuning: Tuning
    generator: torch.Generator
    cloud: Cloud
    rung: Rung
    step_size: float
    families: Tensor
    stretch: float = 1.0
    log_z: float = 0.0
    steps: list[Step] = field(default_factory=list)
    stuck: int = 0

    @classmethod
    def start(cls, chart: Chart, tuning: Tuning, generator: torch.Generator, rung: Rung) -> Sampler:
        """Return independent draws of the Gaussian.

        Raises:
            DivergenceError: If the cost is finite at none of them.
        """
        number = tuning.num_chains * tuning.num_moves
        cloud = chart.evaluate(chart.draw(number, generator))
        if not bool(cloud.cost.isfinite().any()):
            raise DivergenceError(
                f"the cost is NaN or infinite at all of {number} draws of the Gaussian that the "
                "ladder starts from. Start nearer to θ*: a larger beta=, or a smaller prior_std=."
            )
        families = torch.arange(number)
        # The largest step that a Gaussian of P dimensions accepts shrinks like its fourth root.
        return cls(chart, tuning, generator, cloud, rung, chart.dim**-0.25, families)

    # ------------------------------------------------------------------ where to go

    def log_weights(self, rung: Rung) -> Tensor:
        """Return ``log w`` of all points on the way to a rung, float64 ``[N]``."""
        change = self.cloud.log_density(rung) - self.cloud.log_density(self.rung)
        # A point that is outside already stays there: -inf - (-inf) is not a weight.
        return torch.where(change.isnan(), -math.inf, change)

    def ess(self, rung: Rung) -> float:
        """Return how many points would be effective on a rung."""
        return effective(self.log_weights(rung))

    def mean_cost(self, rung: Rung) -> float:
        """Return the mean cost on a rung by the weighted points."""
        return _moments(self.cloud.cost, normalised(self.log_weights(rung)))[0]

    def furthest(self, path: Callable[[float], Rung], end: float, share: float) -> float:
        """Return how far along a path the effective number stays above a share of the points.

        Args:
            path: From numbers between 0 and ``end`` to rungs; 0 is where the cloud is.
            end: Where the path ends; returned if it is near enough.
            share: Of the number of points.
        """
        wanted = share * len(self.cloud)
        if self.ess(path(end)) >= wanted:
            return end
        low, high = 0.0, end
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.ess(path(middle)) >= wanted else (low, middle)
        # Points outside of every rung of the path cost some ESS however short the step.
        return low if low > 0.0 else high

    # ------------------------------------------------------------------ going there

    def explore(
        self, rung: Rung, stage: str, *, beta: float = 0.0, level: float = 0.0, move: bool = True
    ) -> Leg:
        """Go to a rung as a pilot; return the leg for others to follow.

        Args:
            rung: The next density.
            stage: What it is called.
            beta: For the record.
            level: For the record.
            move: Whether to draw again and move.

        Raises:
            DivergenceError: If no point is inside the rung, or nothing moves any more.
        """
        leg = Leg(stage, rung, beta, level, self.step_size if move else 0.0)
        tried = self._advance(leg, adapt=True)
        return replace(leg, step_size=tried)

    def follow(self, leg: Leg) -> None:
        """Go to a rung as planned.

        Raises:
            DivergenceError: If no point is inside the rung, or nothing moves any more.
        """
        self._advance(replace(leg, step_size=self.stretch * leg.step_size), adapt=False)
        acceptance = self.steps[-1].acceptance
        if not math.isnan(acceptance):
            self.stretch *= math.exp(_GAIN * (acceptance - self.tuning.acceptance))

    def _advance(self, leg: Leg, adapt: bool) -> float:
        """Weigh, draw again, move; return the step size, the mean of those tried."""
        rung, log_weights = leg.rung, self.log_weights(leg.rung)
        total = float(log_weights.logsumexp(0))
        if not math.isfinite(total):
            raise DivergenceError(
                f"none of {len(self.cloud)} points is inside the next rung of the ladder (stage "
                f"{leg.stage!r}, beta={leg.beta:.4g}, level={leg.level:.4g}). Use more chains, or "
                "a larger ess."
            )
        self.log_z += total - math.log(len(self.cloud))
        weights = normalised(log_weights)
        predicted, std = _moments(self.cloud.cost, weights)
        mean, acceptance, step_size = predicted, math.nan, leg.step_size
        families = self.families[(weights > 0).cpu()]
        if leg.step_size > 0.0:
            chosen = systematic(weights, self.tuning.num_chains, self.generator)
            families = self.families[chosen.cpu()]
            frame = self._frame(rung, weights, chosen)
            acceptance, step_size = self._move(self.cloud.take(chosen), frame, leg, adapt)
            self.families = families.repeat_interleave(self.tuning.num_moves)
            self.rung = rung
            mean, std = _moments(self.cloud.cost, torch.ones(len(self.cloud)))
            self._check_moving(acceptance, leg)
        self.steps.append(
            Step(
                stage=leg.stage,
                mix=rung.mix,
                beta=leg.beta,
                level=leg.level,
                log_z=self.log_z,
                ess=effective(log_weights),
                num_points=len(weights),
                num_families=len(families.unique()),
                acceptance=acceptance,
                step_size=step_size,
                predicted_cost=predicted,
                mean_cost=mean,
                cost_std=std,
            )
        )
        return step_size

    def _frame(self, rung: Rung, weights: Tensor, chosen: Tensor) -> _Halves:
        """Learn coordinates for either half of the chains from the points of the other half."""
        scores = self.cloud.gradient(Rung(rung.mix, rung.tilt.softened))
        # Points of a chain stand side by side, and drawing keeps their order: what is on one side
        # of a cut between two chains, now or a few rungs ago, has nothing to do with the other.
        moves = self.tuning.num_moves
        shares = weights.reshape(-1, moves).sum(1)
        before = shares.cumsum(0) - shares / 2
        cut = moves * min(max(int((before < 0.5).sum()), 1), len(shares) - 1)
        shapes, floor = self.chart.shapes, self.tuning.floor
        first, second = (
            Whitening.learn(scores[part], as_shares(weights[part]), shapes, floor)
            for part in (slice(cut, None), slice(cut))
        )
        return _Halves(first, second, int((chosen < cut).sum()))

    def _move(self, cloud: Cloud, frame: _Halves, leg: Leg, adapt: bool) -> tuple[float, float]:
        """Replace the cloud by what points visit; return acceptance and step size, on average."""
        visited, accepted, log_step, step_size = [], 0.0, 0.0, leg.step_size
        if adapt:
            cloud, step_size = self._tune(cloud, frame, leg)
        number = self.tuning.num_moves
        for _ in range(number):
            cloud, probabilities = self._trajectory(cloud, frame, leg.rung, step_size)
            visited.append(cloud)
            acceptance = float(probabilities.mean())
            accepted += acceptance
            log_step += math.log(step_size)
            if adapt:
                step_size *= math.exp(_GAIN * (acceptance - self.tuning.acceptance))
        by_chain = torch.arange(number * len(cloud)).reshape(number, -1).T.reshape(-1)
        self.cloud, self.step_size = Cloud.join(visited).take(by_chain), step_size
        return accepted / number, math.exp(log_step / number)

    def _tune(self, cloud: Cloud, frame: _Halves, leg: Leg) -> tuple[Cloud, float]:
        """Move, without a record, until the step size is about right."""
        step_size = leg.step_size
        for _ in range(_TRIALS):
            cloud, probabilities = self._trajectory(cloud, frame, leg.rung, step_size)
            miss = float(probabilities.mean()) - self.tuning.acceptance
            if abs(miss) < _CLOSE:
                break
            step_size *= math.exp(2 * _GAIN * miss)
        return cloud, step_size

    def _trajectory(
        self, cloud: Cloud, frame: _Halves, rung: Rung, step_size: float
    ) -> tuple[Cloud, Tensor]:
        """Make one move of every point, in coordinates whose origins are the points."""
        last = (torch.empty(0), cloud)

        def target(y: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal last
            here = self.chart.evaluate(cloud.z + frame.forward(y))
            last = (y, here)
            return here.log_density(rung), frame.adjoint(here.gradient(rung))

        start = torch.zeros_like(cloud.z)
        gradient = frame.adjoint(cloud.gradient(rung))
        points = Points(start, cloud.log_density(rung), gradient)
        noise = torch.rand(len(cloud), generator=self.generator, dtype=torch.float64)
        steps = step_size * (_SMALLEST + (_LARGEST - _SMALLEST) * noise).to(cloud.z)
        # Directions that are whitened alike have one period, and a length that nearly closes it
        # would return every chain to the cost that it came from.
        length = int(torch.randint(1, 2 * self.tuning.num_leapfrog, (), generator=self.generator))
        moved, acceptance = hmc(target, points, steps, length, self.generator)
        # A row that is where the trajectory ended was accepted; what is known of it is at hand.
        y, ends = last
        return ends.where((moved.x == y).all(1), cloud), acceptance

    def _check_moving(self, acceptance: float, leg: Leg) -> None:
        self.stuck = self.stuck + 1 if acceptance < 1e-3 else 0
        if self.stuck >= _STUCK:
            raise DivergenceError(
                f"on {_STUCK} rungs in a row no proposal was accepted, down to a step size of "
                f"{self.step_size:.3g} (stage {leg.stage!r}, beta={leg.beta:.4g}): the cost is not "
                "smooth there, or its gradient is wrong. Start nearer to θ*, or try float64."
            )


def _moments(cost: Tensor, weights: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of the cost, of points that have weight."""
    inside = (weights.to(cost.device) > 0) & cost.isfinite()
    c, w = cost[inside], weights.to(cost)[inside]
    if not len(c):
        return math.nan, math.nan
    w = w / w.sum()
    mean = float((w * c).sum())
    return mean, math.sqrt(float((w * (c - mean).square()).sum()))
