r"""The local learning coefficient: how fast the volume of a basin shrinks with its threshold.

The volume on which the loss rises by at most :math:`\varepsilon` goes like
:math:`\varepsilon^\lambda (-\log \varepsilon)^{m-1}`: :math:`\lambda` is half the number of
parameters at a regular minimum, and less where directions are degenerate. It is estimated by

.. math::
    \hat\lambda = n\beta \, \big(\mathbb{E}_\beta[L] - L(\theta^*)\big), \qquad
    \mathbb{E}_\beta \text{ under } \exp\big(-n\beta L(\theta)
        - \tfrac{\gamma}{2} \|\theta - \theta^*\|^2\big)
"""

from __future__ import annotations

import math
import warnings
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.autodiff.keeping import Columns
from curvops.errors import NonFiniteError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.rng import as_seed
from curvops.volume.coefficient_chains import Chains
from curvops.volume.coefficient_plan import Plan
from curvops.volume.coefficient_result import LearningCoefficient
from curvops.volume.cost import Cost
from curvops.volume.diagnostics import effective_sample_size, interval, rhat, standard_error
from curvops.volume.forms import Kind, spectral_form
from curvops.volume.localized import LocalizedPosterior, evaluating
from curvops.volume.scope import Scope, restrict
from curvops.volume.sgld import MiniBatches
from curvops.volume.spectral_form import SpectralForm

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

_HMC_ACCEPTANCE = 0.8
_MALA_ACCEPTANCE = 0.95  # of SGLD's steps, were they tested
_AIMED_BIAS = 0.05
_GAUGED = 32  # mini-batches that the bias is foreseen from
_LARGEST_RHAT = 1.05
_SMALLEST_ESS = 100
_LEAST_ACCEPTANCE = 0.3
_LARGEST_BIAS = 0.1
_MOST_BELOW = 0.01
_MOST_ROUNDING = 0.05


def local_learning_coefficient(
    risk: EmpiricalRisk,
    *,
    method: str = "hmc",
    num_chains: int = 8,
    num_draws: int | None = None,
    num_burnin: int | None = None,
    step_size: float | str = "auto",
    num_leapfrog: int = 10,
    localization: float = 1.0,
    inverse_temperature: float | None = None,
    batch_size: int | None = None,
    preconditioner: str | SpectralForm = "none",
    scope: Scope = None,
    columns: Columns = "auto",
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> LearningCoefficient:
    r"""Estimate the local learning coefficient at a risk's point.

    .. math::
        \hat\lambda = n\beta \, \big(\mathbb{E}_\beta[L] - L(\theta^*)\big)

    over chains that start at :math:`\theta^*`, the point of the risk, which should be a minimum.
    :math:`L` is the total loss over the number of data ``n``, whatever the risk's reduction,
    weight decay included, and :math:`L(\theta^*)` is measured on the very data of the draws.

    =============  ==========================================================================
    ``method``     the chains
    =============  ==========================================================================
    ``"hmc"``      Metropolis-adjusted Hamiltonian Monte Carlo on all data: no bias from the
                   step size. ``num_leapfrog=1`` is the adjusted Langevin algorithm
    ``"sgld"``     stochastic gradient Langevin dynamics on mini-batches: cheaper steps, and a
                   bias of order ``step_size``, which is estimated and reported
    =============  ==========================================================================

    Args:
        risk: The risk; its point, module and data are left untouched. Modules are in eval mode
            meanwhile.
        method: See above.
        num_chains: How many chains; they are evaluated together.
        num_draws: Draws of each; 200 by HMC, 2000 (every step is one) by SGLD.
        num_burnin: Draws that are thrown away first; as many as are kept, by default.
        step_size: ``h`` of a leapfrog step or ``η`` of SGLD. ``"auto"`` learns it in the burn-in
            and freezes it: for an acceptance of 80 % by HMC; for SGLD the largest step with a
            bias of 5 % that a Metropolis test on all data would accept 95 % of the time, which
            takes as many gradients of all data as the burn-in has steps.
        num_leapfrog: Leapfrog steps of an HMC move, on average: from half to one and a half times
            as many, lest trajectories come back to where they began.
        localization: ``γ ≥ 0``, how strongly chains are tied to ``θ*``.
        inverse_temperature: ``nβ``; ``n / log n`` by default, with ``n`` the size of the data
            set.
        batch_size: SGLD's mini-batches; as the risk cuts its data, by default.
        preconditioner: Coordinates to sample in; they change the speed, not the answer. From the
            Gauss–Newton matrix at ``θ*``: ``"diagonal"``, ``"lowrank"`` or ``"dense"`` (see
            :func:`curvops.volume.forms.spectral_form`), or a form of your own. ``"rmsprop"``
            scales parameters by the root mean square of their gradients in the burn-in, and is
            frozen afterwards.
        scope: Globs over parameter names: what varies. The others are held, which gives the
            coefficient of a part of the network. All by default.
        columns: How many chains go through the model together (see
            :meth:`EmpiricalRisk.losses`). ``"auto"`` is the fastest, as measured. Each way rounds
            in its own way, and chains amplify rounding until they take other moves: give
            ``"loop"``, ``"vmap"`` or a number for the same draws in every process (in coordinates
            from the Gauss–Newton matrix up to how its products were rounded).
        seed: An integer, or a generator. The global generator is not used.
        progress: Show a bar over the moves.

    Returns:
        The estimate with its error, draws and diagnostics; ``converged`` is False, with the
        reason, if they do not vouch for it.

    Raises:
        InputError: If an argument is impossible, or there is one datum and no
            ``inverse_temperature`` (``log n`` is 0).
        NonFiniteError: If the loss at ``θ*`` is NaN or infinite.
        DivergenceError: If chains run away, or none of their moves is accepted.

    Source:
        Lau, Furman, Wang, Murfet & Wei 2023, The local learning coefficient, arXiv 2308.12108,
        for the estimator; Watanabe 2013, A widely applicable Bayesian information criterion,
        theorem 4, for ``β = 1/log n``; Li, Chen, Carlson & Carin 2016, Preconditioned stochastic
        gradient Langevin dynamics, for RMSprop's.

    Example:
        Four parameters at a regular minimum, so that λ is 2.

        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> data, zero = [(torch.eye(4), torch.zeros(4))], {"w": torch.zeros(4)}
        >>> risk = EmpiricalRisk(lambda p, x: x @ p["w"], torch.nn.MSELoss(), zero, data)
        >>> result = local_learning_coefficient(risk, inverse_temperature=1e4, num_leapfrog=3)
        >>> result.converged, abs(result.value - 2) < 3 * result.stderr
        (True, True)
    """
    start = perf_counter()
    risk = restrict(risk, scope)
    plan = Plan.of(
        risk,
        method=method,
        num_chains=num_chains,
        num_draws=num_draws,
        num_burnin=num_burnin,
        step_size=step_size,
        num_leapfrog=num_leapfrog,
        localization=localization,
        inverse_temperature=inverse_temperature,
        batch_size=batch_size,
        preconditioner=preconditioner,
        columns=columns,
    )
    generator = torch.Generator().manual_seed(as_seed(seed))
    moves, name = plan.num_moves, f"{num_chains} chains ({method})"
    bar = tqdm(total=moves, desc=name, unit="move", disable=not progress, leave=False)
    with evaluating(risk.model), bar:
        posterior = LocalizedPosterior.of(
            risk, plan.inverse_temperature, plan.localization, plan.columns
        )
        if not math.isfinite(float(posterior.loss)):
            raise NonFiniteError(
                f"the loss at the risk's point is {float(posterior.loss)}; a learning coefficient "
                "needs a point where it is finite, and a minimum."
            )
        chains = Chains(posterior, num_chains, generator, bar.update)
        _precondition(plan, chains, risk, as_seed(generator))
        run = _hmc if method == "hmc" else _sgld
        result = run(plan, chains, posterior, generator, start)
    if not result.converged:
        warnings.warn(f"{result} {plan.remedy()}", UnconvergedWarning, stacklevel=2)
    return result


def _precondition(plan: Plan, chains: Chains, risk: EmpiricalRisk, seed: int) -> None:
    """Change to coordinates in which the quadratic model at the centre is round."""
    form = plan.form
    if plan.preconditioner in ("diagonal", "lowrank", "dense"):
        kind = cast(Kind, plan.preconditioner)
        form, chains.num_matvecs = spectral_form(Cost(risk), kind, seed=seed)
    if form is not None:
        chains.reframe(chains.posterior.round_frame(form))


def _hmc(
    plan: Plan,
    chains: Chains,
    posterior: LocalizedPosterior,
    generator: torch.Generator,
    start: float,
) -> LearningCoefficient:
    def settle(count: int) -> float:
        if plan.step_size is None:
            return chains.learn(count, plan.num_leapfrog, _HMC_ACCEPTANCE)
        chains.metropolis(count, plan.num_leapfrog, plan.step_size)
        return plan.step_size

    first, second = plan.rounds
    if first:
        settle(first)
        chains.even_out()
    step = settle(second)
    burnin, _ = chains.take()
    chains.metropolis(plan.num_draws, plan.num_leapfrog, step)
    acceptance = fmean(chains.acceptances)
    return _result(plan, chains, posterior, burnin, step, acceptance, 1, start)


def _sgld(
    plan: Plan,
    chains: Chains,
    posterior: LocalizedPosterior,
    generator: torch.Generator,
    start: float,
) -> LearningCoefficient:
    minibatches = MiniBatches(posterior, plan.batch_size, generator)
    stream, count = iter(minibatches), len(minibatches)
    chains.num_passes += count > 1  # the losses of the mini-batches at the centre
    acceptance: float | None = None

    def settle(number: int) -> float:
        """Make so many steps, most of them to learn how large they should be."""
        nonlocal acceptance
        if plan.step_size is not None:
            chains.langevin(number, plan.step_size, stream, count)
            return plan.step_size
        moves, learning, rest = plan.learning(number)
        # First to where the steps will be made: Langevin steps alone would take long to get there.
        chains.learn(moves, plan.num_leapfrog, _HMC_ACCEPTANCE)
        # A Langevin step is a leapfrog step of length h = √η. Acceptance keeps the stiffest
        # directions stable; what all directions and the mini-batches add is bounded besides.
        step = chains.learn(learning, 1, _MALA_ACCEPTANCE) ** 2
        late = slice(-(learning // 2), None)
        acceptance = fmean(chains.acceptances[late])
        value = float(torch.stack(chains.rises[late]).mean())
        if value > 0:
            force = fmean(chains.forces[late])
            if count > 1:
                force += chains.noise(_GAUGED, stream, count)
            step = min(step, 8 * _AIMED_BIAS * value / force)
        chains.langevin(rest, step, stream, count)
        return step

    first, second = plan.rounds
    if first:
        settle(first)
        chains.even_out()
    step = settle(second)
    burnin, _ = chains.take()
    chains.langevin(plan.num_draws, step, stream, count)
    return _result(plan, chains, posterior, burnin, step, acceptance, count, start)


def _result(
    plan: Plan,
    chains: Chains,
    posterior: LocalizedPosterior,
    burnin: Tensor,
    step_size: float,
    acceptance: float | None,
    num_batches: int,
    start: float,
) -> LearningCoefficient:
    forces = chains.forces
    samples, distances = chains.take()
    value, ess = float(samples.mean()), effective_sample_size(samples)
    stderr = standard_error(samples, shared_noise=num_batches > 1)
    lower, upper = interval(value, stderr, ess)
    # What a step adds to the variance, of its own and through the noise of the mini-batch: at
    # equilibrium E‖x‖² stays, so that -E[x·g] = P + (η/4) E‖g‖² where P would be right.
    bias = step_size / 8 * fmean(forces) if plan.method == "sgld" else 0.0
    agreement = rhat(samples)
    reasons = [
        *_doubts_about_chains(agreement, ess, acceptance if plan.method == "hmc" else None),
        *_doubts_about_target(posterior, samples, upper, num_batches == 1),
    ]
    if bias > _LARGEST_BIAS * abs(value):
        reasons.append(
            f"SGLD's bias of up to {bias:.2g} is a large part of it: the step size is too large"
        )
    return LearningCoefficient(
        value=value,
        stderr=stderr,
        bias=bias,
        lower=lower - bias,
        upper=upper,
        converged=not reasons,
        reason="; ".join(reasons),
        samples=samples,
        burnin=burnin,
        distances=distances,
        rhat=agreement,
        ess=ess,
        acceptance=acceptance,
        loss=float(posterior.loss) * posterior.weight / plan.inverse_temperature,
        method=plan.method,
        step_size=step_size,
        num_leapfrog=plan.num_leapfrog if plan.method == "hmc" else 0,
        localization=plan.localization,
        inverse_temperature=plan.inverse_temperature,
        preconditioner=plan.preconditioner,
        num_data=posterior.risk.num_data,
        num_batches=num_batches,
        num_gradients=chains.num_gradients,
        num_passes=math.ceil(chains.num_passes - 1e-9),
        num_matvecs=chains.num_matvecs,
        seconds=perf_counter() - start,
    )


def _doubts_about_chains(agreement: float, ess: float, acceptance: float | None) -> list[str]:
    reasons = []
    if agreement > _LARGEST_RHAT:
        reasons.append(
            f"R-hat is {agreement:.3f}, above {_LARGEST_RHAT}: chains drift, disagree, or are "
            "short for how slowly they move"
        )
    if ess < _SMALLEST_ESS:
        reasons.append(f"the effective sample size is {ess:.0f}, below {_SMALLEST_ESS}")
    if acceptance is not None and acceptance < _LEAST_ACCEPTANCE:
        reasons.append(f"{acceptance:.0%} of moves were accepted: the step size is too large")
    return reasons


def _doubts_about_target(
    posterior: LocalizedPosterior, samples: Tensor, upper: float, is_exact: bool
) -> list[str]:
    """Return why the point or the precision may not suit, as far as the draws can tell."""
    dtype = posterior.risk.dtype
    rounding = posterior.weight * abs(float(posterior.loss)) * torch.finfo(dtype).eps
    if rounding > _MOST_ROUNDING:
        return [f"nβ L is rounded to {rounding:.1g} in {dtype}: use risk.to(torch.float64)"]
    below = float((samples < -_MOST_ROUNDING).double().mean())
    if upper < 0 or (is_exact and below > _MOST_BELOW):
        return [f"{below:.0%} of draws lie below L(θ*): the point is no minimum"]
    return []
