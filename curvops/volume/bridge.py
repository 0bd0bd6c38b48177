r"""A basin's volume by bridging to it from a Gaussian whose normaliser is known.

.. math::
    \mathcal{N}(\theta^*, (\beta A + I/s^2)^{-1})
    \;\longrightarrow\; \mu(\theta)\, e^{-\beta\,\mathrm{cost}(\theta)}
    \;\longrightarrow\; \mu(\theta)\, 1[\mathrm{cost}(\theta) \le \varepsilon]

The ratios of normalisers along the way multiply to the last one's, which is the volume.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from curvops.errors import InputError, NonFiniteError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.rng import as_seed
from curvops.volume.bridge_result import BridgeVolume, Runs, as_runs, lag_of
from curvops.volume.chernoff import chernoff_bound
from curvops.volume.cost import Cost
from curvops.volume.ladder import Pilot, Tick, descend, seeded, smoothed
from curvops.volume.preconditioner import Preconditioner, build_preconditioner, check_threshold
from curvops.volume.prior import Gaussian, Measure, as_measure
from curvops.volume.reference import Reference, laplace_reference, prior_reference
from curvops.volume.smc import Leg, Sampler, Step, Tuning

Start = Literal["laplace", "prior"]
Path = Literal["tempering", "splitting"]

_LEAST_ESS = 100.0
_LEAST_ACCEPTANCE = 0.3
_LARGEST_SPREAD = 1.0
_LARGEST_LAG = 1.0


def bridge_volume(
    cost: Cost,
    *,
    threshold: float,
    measure: str | Measure = "gaussian",
    prior_std: float | None = None,
    preconditioner: Preconditioner | None = None,
    start: Start = "laplace",
    path: Path = "tempering",
    beta: float | None = None,
    num_runs: int = 4,
    num_chains: int = 16,
    num_moves: int = 16,
    num_leapfrog: int = 8,
    ess: float = 0.8,
    acceptance: float = 0.7,
    max_rungs: int = 2000,
    round_trip: bool = False,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> BridgeVolume:
    r"""Estimate the volume of where the cost stays below a threshold, by annealing towards it.

    Sequential Monte Carlo leads a cloud of points along a ladder of densities from a Gaussian
    whose normaliser is known to the soft basin :math:`\mu e^{-\beta\,\mathrm{cost}}`, on to the β
    at which the mean cost is ε, and from there to the level set. Every rung is as far from the last
    as leaves a share ``ess`` of the points effective; step sizes follow the acceptance, and the
    coordinates of the moves are learned anew on every rung from the points' gradients. A pilot run
    finds the ladder; the runs that count follow it.

    ``start="laplace"`` starts from :math:`\mathcal{N}(\theta^*, (\beta A + I/s^2)^{-1})` with A
    from the preconditioner. ``s`` is σ, halved until the cost under the Gaussian is what the
    quadratic model says, up to a factor of two: a direction that is flat in A alone is then widened
    on the ladder. What hangs together with θ* along the ladder is measured. ``start="prior"``
    starts from the Gaussian measure itself, at β = 0 and Z = 1. The whole level set is measured,
    copies of the minimum by permuted units included, and the result calls itself global.

    ``path="splitting"``, from the prior, goes from level set to level set, each holding about a
    third of the one before, without a temperature. Its error grows like the root of ``|log p|`` and
    its ladder has about ``|log p|`` rungs, more than tempering's; but it does not mind a cost at
    which the volume jumps, where tempering gets stuck.

    Above the volume stands Chernoff's bound, :math:`\log Z_\beta + \beta\varepsilon`, as good as
    the estimate of Z is. Every estimate of a log-volume here is low on average, by Jensen's
    inequality and where chains trail behind the ladder: ``lag`` and ``round_trip`` tell.

    Under Lebesgue's measure the level set must be bounded, or its volume is infinite and the
    ladder does not end.

    Args:
        cost: The cost.
        threshold: ``ε``, in the cost's units.
        measure: ``"gaussian"``, ``"lebesgue"``, or a measure.
        prior_std: ``σ`` of the Gaussian, by default the root mean square of θ*.
        preconditioner: The curvature at θ* that a Laplace start uses; the dense GGN by default.
        start: See above.
        path: See above.
        beta: ``β`` of the Laplace Gaussian; by default where the quadratic model's mean cost is ε.
        num_runs: Independent runs; their spread is the error.
        num_chains: Points that are drawn again on each rung.
        num_moves: Moves that each of them makes there, all of which count as points.
        num_leapfrog: Leapfrog steps, hence gradients, of a move.
        ess: Share of the points that stay effective from rung to rung, within (0, 1).
        acceptance: The acceptance rate that step sizes aim at.
        max_rungs: Where a run gives up.
        round_trip: Also go the ladder back to its start, which doubles the cost. The estimates up
            and down differ by what the chains fell behind.
        seed: An integer, or a generator.
        progress: Show a bar over the rungs.

    Returns:
        The volume with its error over runs, the bound, and the ladders. It has converged if on
        every rung at least 100 points are effective (fewer, if there are fewer than 200), the mean
        acceptance is above 0.3, single runs differ by a standard deviation of at most 1 nat, and
        the lag is at most 1 nat, its noise allowed for.

    Raises:
        InputError: If an argument is impossible.
        NonFiniteError: If the cost or its gradient at θ* is NaN or infinite.
        DivergenceError: If the ladder does not reach its end, or chains cannot move.

    Warns:
        UnconvergedWarning: If the result does not vouch for itself; it says why.

    Source:
        Del Moral, Doucet & Jasra 2006, Sequential Monte Carlo samplers; Dau & Chopin 2022,
        Waste-free sequential Monte Carlo; Zhou, Johansen & Aston 2016, Toward automatic model
        comparison: an adaptive sequential Monte Carlo approach; Neal 2001, Annealed importance
        sampling; Grosse, Ancha & Roy 2016, Measuring the reliability of MCMC inference with
        bidirectional Monte Carlo. Splitting: Cérou, Del Moral, Furon & Guyader 2012.

    Example:
        An ellipse with half-axes 1 and 1/10 around the origin.

        >>> import math, torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.diag(torch.tensor([1.0, 10.0])), torch.zeros(2, 1))]
        >>> loss = torch.nn.MSELoss(reduction="sum")
        >>> cost = Cost(EmpiricalRisk(model, loss, [torch.zeros(1, 2)], data))
        >>> result = bridge_volume(cost, threshold=1.0, measure="lebesgue", num_runs=2)
        >>> abs(float(result) - math.log(math.pi / 10)) < 0.3
        True
    """
    begun = time.perf_counter()
    check_threshold(threshold)
    _check(start, path, beta, ess, acceptance)
    counts = {
        "num_runs": num_runs,
        "num_chains": num_chains,
        "num_moves": num_moves,
        "num_leapfrog": num_leapfrog,
        "max_rungs": max_rungs,
    }
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise InputError(f"{name} must be a positive integer, got {count!r}.")
    if num_chains < 2:
        raise InputError("num_chains is 1; one half of the chains learns from the other.")
    mu = as_measure(measure, cost.theta, prior_std)
    number = as_seed(seed)
    evaluated = cost.num_evaluations
    _check_anchor(cost)
    if start == "prior":
        reference = prior_reference(cost, mu)
    else:
        if preconditioner is None:
            std = mu.std if isinstance(mu, Gaussian) else None
            preconditioner = build_preconditioner(cost, "dense", threshold=threshold, std=std)
        reference = laplace_reference(cost, mu, preconditioner, beta, seeded(number, -1))
    tuning = Tuning(
        num_chains, num_moves, num_leapfrog, acceptance, floor=1.0 if start == "prior" else 0.0
    )
    with tqdm(unit="rung", desc="bridge", disable=not progress) as bar:

        def tick(sampler: Sampler) -> None:
            bar.set_postfix(cost=f"{sampler.steps[-1].mean_cost:.3g}")
            bar.update()

        def start_from(generator: torch.Generator) -> Sampler:
            return Sampler.start(reference.chart, tuning, generator, reference.first)

        pilot = Pilot(start_from(seeded(number, num_runs)), ess, max_rungs, tick)
        _plan(pilot, reference, threshold, path)
        legs = smoothed(pilot.legs)
        bar.total = len(legs) * (1 + num_runs * (2 if round_trip else 1))
        outcomes = [
            _follow(start_from(seeded(number, run)), legs, reference, tick, round_trip)
            for run in range(num_runs)
        ]
    result = _result(
        outcomes,
        reference,
        mu,
        cost,
        legs[-1].beta,
        threshold=float(threshold),
        start=start,
        path=path,
        num_chains=num_chains,
        num_evaluations=cost.num_evaluations - evaluated,
        seconds=time.perf_counter() - begun,
    )
    if not result.converged:
        warnings.warn(
            f"bridge: {result.symbol} = {result.volume} has not converged: "
            f"{' Also: '.join(result.reasons)}",
            UnconvergedWarning,
            stacklevel=2,
        )
    return result


@dataclass(frozen=True)
class _Outcome:
    """What one run found."""

    steps: tuple[Step, ...]
    log_volume: float
    log_soft: float
    round_trip: float


def _plan(pilot: Pilot, reference: Reference, threshold: float, path: Path) -> None:
    """Find the way to the level set."""
    if path == "splitting":
        pilot.split(threshold)
        return
    if reference.first.mix < 1.0:
        pilot.leave_reference(reference.beta)
    beta = pilot.temper(reference.beta, threshold)
    pilot.harden(beta, threshold)


def _follow(
    sampler: Sampler, legs: Sequence[Leg], reference: Reference, tick: Tick, round_trip: bool
) -> _Outcome:
    """Go the way that the pilot found, and perhaps back from the soft basin."""
    warm = [leg for leg in legs if leg.stage in ("reference", "temper")]
    for leg in warm:
        sampler.follow(leg)
        tick(sampler)
    log_soft, returned, back = sampler.log_z, math.nan, []
    if round_trip and warm:
        other = descend(sampler, warm, reference.first, tick)
        returned, back = other.log_z, other.steps
    for leg in legs[len(warm) :]:
        sampler.follow(leg)
        tick(sampler)
    return _Outcome((*sampler.steps, *back), sampler.log_z, log_soft, returned)


def _check(start: str, path: str, beta: float | None, ess: float, acceptance: float) -> None:
    if start not in ("laplace", "prior"):
        raise InputError(f'start must be "laplace" or "prior", got {start!r}.')
    if path not in ("tempering", "splitting"):
        raise InputError(f'path must be "tempering" or "splitting", got {path!r}.')
    if path == "splitting" and start != "prior":
        raise InputError('path="splitting" begins with draws of the measure: use start="prior".')
    if beta is not None and start == "prior":
        raise InputError('beta= is of the Laplace Gaussian; start="prior" begins at beta = 0.')
    if beta is not None and not (beta > 0.0 and math.isfinite(beta)):
        raise InputError(f"beta is {beta}; it must be positive and finite.")
    for name, share in (("ess", ess), ("acceptance", acceptance)):
        if not 0.0 < share < 1.0:
            raise InputError(f"{name} is {share}; it must lie between 0 and 1.")


def _check_anchor(cost: Cost) -> None:
    value, gradient = cost.with_gradient(cost.theta.unsqueeze(1))
    if not (bool(value.isfinite().all()) and bool(gradient.isfinite().all())):
        raise NonFiniteError(
            f"the cost at θ* is {float(value[0])}, and its gradient has "
            f"{int((~gradient.isfinite()).sum())} entries that are NaN or infinite: nothing can be "
            "bridged to. Look for the datum that makes it so with risk.per_sample_losses()."
        )


def _result(
    outcomes: list[_Outcome],
    reference: Reference,
    measure: Measure,
    cost: Cost,
    beta: float,
    **rest: Any,
) -> BridgeVolume:
    """Combine the runs, and judge them."""
    ladders = tuple(outcome.steps for outcome in outcomes)
    steps = [step for ladder in ladders for step in ladder]
    moved = [step for step in steps if not math.isnan(step.acceptance)]
    ess = min(step.ess for step in steps)
    rate = sum(step.acceptance for step in moved) / len(moved) if moved else math.nan
    volume = as_runs([outcome.log_volume for outcome in outcomes])
    lag = tuple(lag_of(ladder) for ladder in ladders)
    soft = [outcome.log_soft for outcome in outcomes]
    returned = [outcome.round_trip for outcome in outcomes]
    tempering = rest["path"] == "tempering"
    reasons = _reasons(volume, ess, steps[0].num_points, rate, lag)
    return BridgeVolume(
        volume=volume,
        soft=as_runs(soft) if tempering else None,
        chernoff=as_runs([chernoff_bound(log_z, beta, rest["threshold"]) for log_z in soft])
        if tempering
        else None,
        round_trip=None if math.isnan(returned[0]) else as_runs(returned),
        converged=not reasons,
        reasons=reasons,
        ess=ess,
        acceptance=rate,
        lag=lag,
        beta=beta,
        unit=cost.unit,
        measure=measure.name,
        symbol=measure.symbol,
        reference_beta=reference.beta,
        reference_std=reference.std,
        dim=cost.dim,
        ladders=ladders,
        **rest,
    )


def _reasons(
    volume: Runs, ess: float, num_points: int, acceptance: float, lag: tuple[float, ...]
) -> tuple[str, ...]:
    """Say what keeps an estimate from vouching for itself."""
    reasons = []
    wanted = min(_LEAST_ESS, num_points / 4)
    if ess < wanted:
        reasons.append(f"only {ess:.0f} points are effective on some rung. Use more chains.")
    if acceptance < _LEAST_ACCEPTANCE:
        reasons.append(
            f"{100 * acceptance:.0f} % of the moves are accepted. Use more moves, so that the step "
            "size has time to adapt."
        )
    if len(volume.samples) < 2:
        reasons.append("a single run has no error. Use num_runs >= 2.")
    elif volume.spread > _LARGEST_SPREAD:
        reasons.append(
            f"single runs differ by {volume.spread:.1f} nats (standard deviation). Use more "
            "chains, more moves, or a larger ess."
        )
    behind = sum(lag) / len(lag)
    noise = 2.0 * float(np.std(lag, ddof=1)) / math.sqrt(len(lag)) if len(lag) > 1 else 0.0
    if behind > _LARGEST_LAG + noise:
        reasons.append(
            f"chains trail behind the ladder: moves on its rungs are worth {behind:.1f} nats more, "
            "so the value is low by that or more. Use more leapfrog steps or more moves."
        )
    return tuple(reasons)
