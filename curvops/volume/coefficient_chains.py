"""The chains behind a learning coefficient: where they are, what they report, what it costs.

All of them start at the centre. What is learned, is learned in the burn-in and then frozen: a
chain that goes on adapting to where it is no longer samples its target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor

from curvops.errors import DivergenceError
from curvops.volume.localized import LocalizedPosterior
from curvops.volume.moves import Points, StepSize, evaluate, hmc, initial_step_size
from curvops.volume.sgld import langevin
from curvops.volume.spectral_form import Root, SpectralForm

_JITTER = 0.2  # how much leapfrog steps vary
_STUCK = 1e-3
_MEMORY = 0.99  # RMSprop's
_FLOOR = 0.1  # added to the root mean square of the loss's gradient, as in devinterp


class Chains:
    """Parallel chains on a localised posterior.

    Args:
        posterior: The density, over all data.
        num_chains: How many, ``M``.
        generator: Draws everything.
        tick: Called after every move of all chains.

    Attributes:
        posterior: The density, in the coordinates in use.
        rises: ``nβ (L - L*)`` of each draw so far, each ``[M]``.
        distances: ``‖θ - θ*‖`` of each draw so far, each ``[M]``.
        acceptances: Mean acceptance probability of each tested move so far.
        forces: Mean squared norm of the log-density's gradient at each draw so far.
        num_gradients: Gradients of one chain that were evaluated.
        num_passes: How often all data were read.
        num_matvecs: Products with the curvature that were needed.
    """

    def __init__(
        self,
        posterior: LocalizedPosterior,
        num_chains: int,
        generator: torch.Generator,
        tick: Callable[[], object],
    ) -> None:
        self.posterior = posterior
        self.rises: list[Tensor] = []
        self.distances: list[Tensor] = []
        self.acceptances: list[float] = []
        self.forces: list[float] = []
        self.num_gradients = 0
        self.num_passes = 1.0  # the loss at the centre
        self.num_matvecs = 0
        self._generator = generator
        self._tick = tick
        self._x = posterior.center.new_zeros(num_chains, len(posterior.center))
        self._squares: Tensor | float = 0.0
        self._num_squares = 0

    def take(self) -> tuple[Tensor, Tensor]:
        """Return rises and distances since the last call, ``[M, T]`` each, and forget them."""
        rises, distances = self.rises, self.distances
        self.rises, self.distances, self.acceptances, self.forces = [], [], [], []
        if not rises:
            return torch.zeros(len(self._x), 0).double(), torch.zeros(len(self._x), 0).double()
        return torch.stack(rises, dim=1), torch.stack(distances, dim=1)

    def learn(self, moves: int, num_leapfrog: int, goal: float) -> float:
        """Make Metropolis-adjusted moves, and learn a step size on the way.

        Args:
            moves: How many.
            num_leapfrog: Leapfrog steps of each on average; one is Langevin.
            goal: The mean acceptance probability to learn it by.

        Raises:
            DivergenceError: If no step size is accepted.
        """
        points = evaluate(self._target, self._x)
        first = initial_step_size(self._target, points, num_leapfrog, self._generator)
        step = StepSize(first, goal)
        for _ in range(moves):
            points = self._move(points, step.current, num_leapfrog)
            step.update(self.acceptances[-1])
        self._x = points.x
        return step.averaged

    def metropolis(self, moves: int, num_leapfrog: int, step_size: float) -> None:
        """Make Metropolis-adjusted moves of a given step size.

        Raises:
            DivergenceError: If next to nothing is accepted.
        """
        if not moves:
            return
        points = evaluate(self._target, self._x)
        for _ in range(moves):
            points = self._move(points, step_size, num_leapfrog)
        self._x = points.x
        late = self.acceptances[-(moves - moves // 2) :]
        if sum(late) < _STUCK * len(late):
            raise DivergenceError(
                f"step_size={step_size:.3g} is too large: of the last {len(late)} moves of "
                f"{len(points)} chains next to none was accepted. Pass a smaller one (such as "
                f'{step_size / 10:.1g}), or step_size="auto".'
            )

    def noise(self, number: int, batches: Iterator[LocalizedPosterior], count: int) -> float:
        """Return what so many mini-batches add to the mean squared gradient, where chains are."""
        forces = []
        for part in islice(batches, number):
            forces.append(_force(evaluate(self._seen(part), self._x)))
            self.num_gradients += len(self._x)
            self.num_passes += 1 / count
        return max(fmean(forces) - _force(evaluate(self._target, self._x)), 0.0)

    def langevin(
        self, steps: int, step_size: float, batches: Iterator[LocalizedPosterior], count: int
    ) -> None:
        """Make steps of SGLD, each on the next of ``count`` mini-batches.

        Raises:
            DivergenceError: If a chain runs away.
        """
        for part in islice(batches, steps):
            seen = self._seen(part)
            points, self._x = langevin(seen, self._x, step_size, self._generator)
            self.num_gradients += len(points)
            self.num_passes += 1 / count
            self._record(seen, points)

    def reframe(self, frame: Root) -> None:
        """Continue in other coordinates, where the chains are."""
        offset = self.posterior.offset(self._x)
        self.posterior = self.posterior.framed(frame)
        self._x = frame.inverse(offset.T).T

    def even_out(self) -> None:
        """Continue in coordinates scaled by ``1/√(√v + ε)``, RMSprop's, from now on fixed."""
        mean = torch.as_tensor(self._squares) / (1 - _MEMORY**self._num_squares)
        form = SpectralForm(len(mean), mean.double(), None)
        self.reframe(form.root(lambda v: (v.sqrt() + _FLOOR).rsqrt()))

    def _target(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.num_gradients += len(z)
        self.num_passes += 1
        return self.posterior(z)

    def _seen(self, part: LocalizedPosterior) -> LocalizedPosterior:
        """Return a mini-batch's density in the coordinates in use."""
        return part.framed(self.posterior.frame)

    def _move(self, points: Points, step_size: float, num_leapfrog: int) -> Points:
        # Trajectories of one length may end where they began, and those of half that length at
        # the same loss; so both their number of steps and the steps vary, whatever the chains do.
        count, steps = num_leapfrog, torch.full((len(points),), step_size, dtype=torch.float64)
        if num_leapfrog > 1:
            shortest, longest = -(-num_leapfrog // 2), num_leapfrog + num_leapfrog // 2
            count = int(torch.randint(shortest, longest + 1, (1,), generator=self._generator))
            uniform = torch.rand(len(points), generator=self._generator, dtype=torch.float64)
            steps = steps * (1 + _JITTER * (2 * uniform - 1))
        steps = steps.to(self._x)
        points, acceptance = hmc(self._target, points, steps, count, self._generator)
        self.acceptances.append(float(acceptance.mean()))
        self._record(self.posterior, points)
        return points

    def _record(self, posterior: LocalizedPosterior, points: Points) -> None:
        self.rises.append(posterior.rises(points).cpu())
        self.distances.append(posterior.distances(points.x).cpu())
        self.forces.append(_force(points))
        if posterior.frame is None:
            square = posterior.loss_gradients(points).square().mean(0)
            self._squares = _MEMORY * self._squares + (1 - _MEMORY) * square
            self._num_squares += 1
        self._tick()


def _force(points: Points) -> float:
    return float(points.gradient.double().square().sum(1).mean())
