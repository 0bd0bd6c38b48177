"""Looking around a minimum: cost, measure, preconditioner, a trial run, and then the directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.special import ndtri

from curvops.errors import InputError
from curvops.risk import EmpiricalRisk
from curvops.rng import as_seed
from curvops.volume.cost import Cost
from curvops.volume.cost import Kind as CostKind
from curvops.volume.forms import Curvature
from curvops.volume.forms import Kind as PreconditionerKind
from curvops.volume.preconditioner import Preconditioner, build_preconditioner
from curvops.volume.prior import Gaussian, Measure, as_measure
from curvops.volume.scope import Scope
from curvops.volume.star_domain import Look, StarDomain

Directions = Literal["auto", "random", "all"]

Prepared = PreconditionerKind | Literal["auto"] | Preconditioner
"""A kind of preconditioner, or one that is there already."""

DENSE_DIM = 2000
"""Up to so many parameters ``preconditioner="auto"`` is dense, beyond it is of low rank."""

REACHES = (1.0, 0.5, 0.25, 0.125)
"""What trial runs let the flat directions reach, in units of σ."""


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class Survey:
    """What was seen, from where, and with what.

    Attributes:
        look: Radii and volumes by threshold and direction.
        cost: The cost, with what it took.
        measure: What volumes are measured with.
        preconditioner: As used.
        directions: ``"random"`` or ``"all"``.
    """

    look: Look
    cost: Cost
    measure: Measure
    preconditioner: Preconditioner
    directions: str


def survey(
    risk: EmpiricalRisk,
    thresholds: list[float],
    *,
    cost: CostKind,
    measure: str | Measure,
    prior_std: float | None,
    preconditioner: Prepared,
    curvature: Curvature,
    rank: int | None,
    optimizer: torch.optim.Optimizer | None,
    scope: Scope,
    num_directions: int,
    directions: Directions,
    num_pilot: int,
    grid: int,
    seed: int | torch.Generator,
    progress: bool,
    growth: bool = False,
) -> Survey:
    """Look around the current point of a risk; see :func:`~curvops.volume.star.star_volume`.

    Args:
        risk: As there.
        thresholds: ``ε``, ascending.
        cost: As there.
        measure: As there.
        prior_std: As there.
        preconditioner: As there.
        curvature: As there.
        rank: As there.
        optimizer: As there.
        scope: As there.
        num_directions: As there.
        directions: As there.
        num_pilot: As there.
        grid: As there.
        seed: As there.
        progress: As there.
        growth: Whether to compute how the volume grows with the threshold.
    """
    _check_count("num_directions", num_directions, 2)
    _check_count("num_pilot", num_pilot, 0)
    _check_count("grid", grid, 1)
    if directions not in ("auto", "random", "all"):
        raise InputError(f'directions must be "auto", "random" or "all", got {directions!r}.')
    number = as_seed(seed)
    # What is not a direction has its own streams, whether or not each is needed.
    others = torch.Generator().manual_seed(number)
    of_probes, of_trials = as_seed(others), as_seed(others)
    of = Cost(risk, cost, scope)
    measured = as_measure(measure, of.theta, prior_std)
    middle = math.exp(sum(math.log(e) for e in thresholds) / len(thresholds))
    if isinstance(preconditioner, Preconditioner):
        ready = _of_size(preconditioner, of.dim)
    else:
        ready = build_preconditioner(
            of,
            ("dense" if of.dim <= DENSE_DIM else "lowrank")
            if preconditioner == "auto"
            else preconditioner,
            threshold=middle,
            std=measured.std if isinstance(measured, Gaussian) else None,
            curvature=curvature,
            rank=rank,
            optimizer=optimizer,
            seed=of_probes,
            progress=progress,
        )
    everywhere = directions == "all" or (directions == "auto" and of.dim <= 2)
    if not everywhere and num_pilot:
        ready = _best_reach(of, ready, measured, middle, num_pilot, num_directions, of_trials)
    domain = StarDomain(of, ready, measured, thresholds, grid=grid, growth=growth)
    look = (
        domain.look_everywhere()
        if everywhere
        else domain.look_randomly(num_directions, number, progress)
    )
    return Survey(look, of, measured, ready, "all" if everywhere else "random")


def _best_reach(
    cost: Cost,
    preconditioner: Preconditioner,
    measure: Measure,
    threshold: float,
    count: int,
    num_directions: int,
    seed: int,
) -> Preconditioner:
    """Return the preconditioner whose directions promise most, by trial runs along the same ones.

    Far from θ* the cost is not quadratic, and flat directions that reach the prior's scale together
    may cost far more than the quadratic model says. What a sum over many directions will be is the
    largest of their logarithms, at so many standard deviations above the mean.
    """
    if math.isinf(preconditioner.tau) or math.isinf(preconditioner.std):
        return preconditioner
    best, most = preconditioner, -math.inf
    for reach in REACHES:
        tried = preconditioner.reaching(reach * preconditioner.std)
        domain = StarDomain(cost, tried, measure, [threshold], grid=1)
        log_mass = domain.look_randomly(max(count, 2), seed, progress=False).log_mass[0]
        promise = float(log_mass.mean() + ndtri(1 - 1 / num_directions) * log_mass.std())
        if promise > most:
            best, most = tried, promise
        if math.isinf(tried.tau):
            break  # the prior alone decides; smaller ones are all the same
    return best


def _of_size(preconditioner: Preconditioner, dim: int) -> Preconditioner:
    if preconditioner.dim != dim:
        raise InputError(
            f"preconditioner was built for {preconditioner.dim} parameters, here are {dim}. Use "
            "the same scope= for both."
        )
    return preconditioner


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}.")
