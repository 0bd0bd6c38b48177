r"""Metropolis-adjusted moves of many chains at once: leapfrog, then accept or reject.

.. math::
    \pi(x) \propto e^{f(x)}, \qquad
    H(x, p) = -f(x) + \tfrac12 \|p\|^2, \qquad
    \alpha = \min(1, e^{H(x, p) - H(x', p')})

Chains are the rows of a matrix ``[M, P]``. Each is accepted by itself, so that every one of them
leaves the target unchanged whatever the others do. There is no mass matrix: precondition by a
change of coordinates inside the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.errors import DivergenceError, InputError, ShapeError

Target = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points ``[M, P]`` to their log-densities ``[M]``, up to a constant, and gradients ``[M, P]``."""

_DOUBLINGS = 60


@dataclass(frozen=True)
class Points:
    """Where chains are, and what their target says there.

    Attributes:
        x: One point a row, ``[M, P]``.
        value: Log-densities ``[M]``, float64.
        gradient: Gradients of the log-density ``[M, P]``.
    """

    x: Tensor
    value: Tensor
    gradient: Tensor

    def __len__(self) -> int:
        """Return the number of chains."""
        return len(self.x)


def evaluate(target: Target, x: Tensor) -> Points:
    """Return points with their log-densities and gradients.

    Args:
        target: The log-density and its gradient.
        x: One point a row, ``[M, P]``.

    Raises:
        ShapeError: If ``x`` or what the target returns has another shape.
    """
    if x.ndim != 2:
        raise ShapeError(f"x has shape {list(x.shape)}; expected one point a row, [M, P].")
    value, gradient = target(x)
    if value.shape != x.shape[:1] or gradient.shape != x.shape:
        raise ShapeError(
            f"the target returned values {list(value.shape)} and gradients "
            f"{list(gradient.shape)} at points {list(x.shape)}; expected [M] and [M, P]."
        )
    return Points(x, value.to(torch.float64), gradient)


def hmc(
    target: Target,
    points: Points,
    step_size: float | Tensor,
    num_leapfrog: int,
    generator: torch.Generator,
) -> tuple[Points, Tensor]:
    r"""Make one Hamiltonian Monte-Carlo move of every chain.

    .. math::
        p \leftarrow p + \tfrac{h}{2} \nabla f(x), \qquad
        x \leftarrow x + h p, \qquad
        p \leftarrow p + \tfrac{h}{2} \nabla f(x)

    ``num_leapfrog`` times, from a fresh :math:`p \sim \mathcal{N}(0, I)`. With one leapfrog step
    it is the Metropolis-adjusted Langevin algorithm. Where a chain meets NaN or infinity on the
    way its proposal is rejected, so what is returned is finite if ``points`` are.

    Args:
        target: The log-density and its gradient; called ``num_leapfrog`` times.
        points: Where the chains are; from :func:`evaluate`, or from the last move.
        step_size: ``h > 0``, one for all chains or one for each, ``[M]``.
        num_leapfrog: How many leapfrog steps.
        generator: Where momenta and acceptances come from.

    Returns:
        The points after the move, and the acceptance probabilities ``[M]``, float64.

    Raises:
        InputError: If ``num_leapfrog`` is below 1, or a step size not positive and finite.
        ShapeError: If ``step_size`` is neither one number nor one for each chain.

    Source:
        Duane et al. 1987, Hybrid Monte Carlo; Neal 2011, MCMC using Hamiltonian dynamics,
        section 3.

    Example:
        A standard normal in two dimensions, with 1000 chains.

        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> def target(x):
        ...     return -0.5 * x.square().sum(1), -x
        >>> points = evaluate(target, torch.zeros(1000, 2))
        >>> for _ in range(10):
        ...     points, acceptance = hmc(target, points, 0.5, 3, generator)
        >>> bool((points.x.var(0) - 1).abs().max() < 0.15), bool(acceptance.mean() > 0.9)
        (True, True)
    """
    if num_leapfrog < 1:
        raise InputError(f"num_leapfrog is {num_leapfrog}; it must be at least 1.")
    h = torch.as_tensor(step_size, dtype=points.x.dtype, device=points.x.device)
    if h.shape not in ((), points.x.shape[:1]):
        raise ShapeError(
            f"step_size has shape {list(h.shape)}; expected one number, or one for each of the "
            f"{len(points)} chains."
        )
    if not bool((torch.isfinite(h) & (h > 0)).all()):
        raise InputError(f"step_size is {step_size}; it must be positive and finite.")
    h = h.expand(len(points)).unsqueeze(1)
    start = _normal(points.x, generator)
    momentum, now = start, points
    alive = torch.ones(len(points), dtype=torch.bool, device=points.x.device)
    for _ in range(num_leapfrog):
        momentum = momentum + h / 2 * now.gradient
        x = now.x + h * momentum
        # A chain that is lost waits where it started, so that the target never sees NaN.
        alive = alive & torch.isfinite(x).all(1)
        now = evaluate(target, torch.where(alive.unsqueeze(1), x, points.x))
        momentum = momentum + h / 2 * now.gradient
    change = now.value - points.value - _kinetic(momentum) + _kinetic(start)
    alive = alive & torch.isfinite(now.value) & torch.isfinite(now.gradient).all(1)
    usable = alive & ~change.isnan()
    acceptance = torch.where(usable, change.clamp(max=0.0).exp(), torch.zeros_like(change))
    accepted = _uniform(acceptance, generator) < acceptance
    rows = accepted.unsqueeze(1)
    moved = Points(
        torch.where(rows, now.x, points.x),
        torch.where(accepted, now.value, points.value),
        torch.where(rows, now.gradient, points.gradient),
    )
    return moved, acceptance


class StepSize:
    r"""A step size that learns from acceptance probabilities: dual averaging.

    .. math::
        \log h_{t+1} = \mu - \frac{\sqrt t}{\gamma (t + t_0)} \sum_{s \le t} (\delta - \alpha_s),
        \qquad
        \log \bar h_{t+1} = t^{-\kappa} \log h_{t+1} + (1 - t^{-\kappa}) \log \bar h_t

    Use :attr:`current` while it learns, then :attr:`averaged`, frozen: a step size that goes on
    following the chain would bend its target.

    Args:
        initial: Where to start.
        target: The mean acceptance probability δ to aim at.

    Raises:
        InputError: If ``initial`` is not positive and finite, or ``target`` not within (0, 1).

    Source:
        Hoffman & Gelman 2014, The No-U-Turn Sampler, section 3.2, with their constants γ = 0.05,
        t₀ = 10, κ = 0.75, and μ = log(10 h₁).

    Example:
        >>> step = StepSize(1.0, target=0.8)
        >>> for _ in range(200):
        ...     step.update(1.0 if step.current < 0.25 else 0.0)
        >>> 0.15 < step.averaged < 0.35
        True
    """

    def __init__(self, initial: float, target: float = 0.8) -> None:
        if not (initial > 0 and math.isfinite(initial)):
            raise InputError(f"initial is {initial}; it must be positive and finite.")
        if not 0 < target < 1:
            raise InputError(f"target is {target}; an acceptance rate lies between 0 and 1.")
        self._target = target
        self._centre = math.log(10 * initial)
        self._misses = 0.0
        self._count = 0
        self._log = math.log(initial)
        self._log_averaged = math.log(initial)

    @property
    def current(self) -> float:
        """The step size to try next."""
        return math.exp(self._log)

    @property
    def averaged(self) -> float:
        """The average over what was tried, recent ones weighing most."""
        return math.exp(self._log_averaged)

    def update(self, acceptance: float) -> None:
        """Learn from the mean acceptance probability at :attr:`current`."""
        self._count += 1
        self._misses += self._target - acceptance
        self._log = self._centre - math.sqrt(self._count) / 0.05 * self._misses / (self._count + 10)
        weight = self._count**-0.75
        self._log_averaged += weight * (self._log - self._log_averaged)


def initial_step_size(
    target: Target,
    points: Points,
    num_leapfrog: int,
    generator: torch.Generator,
    first: float = 1.0,
) -> float:
    """Return a step size that is accepted about half of the time, by doubling or halving.

    The chains are not moved; ``points`` remain where they are.

    Args:
        target: The log-density and its gradient.
        points: Where the chains are.
        num_leapfrog: How many leapfrog steps a move will make.
        generator: Where the momenta come from.
        first: Where to start.

    Raises:
        DivergenceError: If no step size within 60 doublings is accepted half of the time.

    Source:
        Hoffman & Gelman 2014, algorithm 4, for the mean over chains.
    """
    step, direction = first, 0
    for _ in range(_DOUBLINGS):
        _, acceptance = hmc(target, points, step, num_leapfrog, generator)
        wanted = 1 if float(acceptance.mean()) > 0.5 else -1
        if direction and wanted != direction:
            return step if wanted > 0 else step / 2
        direction = wanted
        step *= 2.0**direction
    raise DivergenceError(
        f"no step size between {first:g} and {step:g} is accepted half of the time: the target "
        "is flat, or not finite around the points."
    )


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return noise.to(like.device)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return noise.to(like.device)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.to(torch.float64).square().sum(1)
