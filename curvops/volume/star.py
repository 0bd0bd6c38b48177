r"""The volume of the star domain around a minimum, by directions.

.. math::
    B = \{\theta^* + x : \mathrm{cost}(\theta^* + s x) \le \varepsilon
        \text{ for all } s \in [0, 1]\}, \qquad d = M u, \quad \det M = 1
.. math::
    \log V = \log V_P + \log \operatorname{mean}_i R_i^P, \qquad
    \log p = \log \operatorname{mean}_i \Bigl[ P \, V_P \int_0^{R_i} r^{P-1}
        \varphi_\sigma(\theta^* + r d_i)\, dr \Bigr]
"""

from __future__ import annotations

import time
import warnings

import torch

from curvops.linalg.estimate import UnconvergedWarning
from curvops.risk import EmpiricalRisk
from curvops.volume.cost import Kind as CostKind
from curvops.volume.forms import Curvature
from curvops.volume.preconditioner import check_threshold
from curvops.volume.prior import Measure
from curvops.volume.scope import Scope
from curvops.volume.star_result import StarVolume
from curvops.volume.survey import Directions, Prepared, survey


def star_volume(
    risk: EmpiricalRisk,
    *,
    threshold: float,
    cost: CostKind = "loss",
    measure: str | Measure = "gaussian",
    prior_std: float | None = None,
    preconditioner: Prepared = "auto",
    curvature: Curvature = "ggn",
    rank: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scope: Scope = None,
    num_directions: int = 1000,
    directions: Directions = "auto",
    num_pilot: int = 64,
    grid: int = 8,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> StarVolume:
    """Estimate the log-volume of the star domain around the current point of a risk.

    The star domain is a part of the basin: what can be seen from θ* in straight lines. The
    estimate is unbiased for its volume, not for the logarithm: in expectation it is below it. In
    many dimensions a few directions speak for nearly all of the volume. The effective sample size
    says so; below 10 the estimate is a **lower bound**, and ``converged`` is False.

    Args:
        risk: The risk; its current point is θ*.
        threshold: ``ε``, what the cost may rise by, in its units.
        cost: ``"loss"``, the increase of the risk, or ``"kl"``, the divergence of the predictions
            from those at θ*, in nats; see :class:`~curvops.volume.cost.Cost`.
        measure: ``"gaussian"``, ``"lebesgue"``, or a measure such as
            :class:`~curvops.volume.prior.Box`.
        prior_std: ``σ`` of the Gaussian; by default the root mean square of θ*.
        preconditioner: Where directions get their scales from; see
            :func:`~curvops.volume.forms.spectral_form`. ``"auto"`` is ``"dense"`` up to 2000
            parameters and ``"lowrank"`` beyond. One that was built already is used as it is.
        curvature: ``"ggn"`` or ``"hessian"``, of the cost.
        rank: Eigenpairs of ``"lowrank"``.
        optimizer: The Adam that trained the model, for ``"adam"``.
        scope: Globs over parameter names; the other parameters are held.
        num_directions: How many random directions, at least 2.
        directions: ``"random"``; ``"all"`` for one or two parameters, by quadrature over the
            circle; or ``"auto"``, all where that can be.
        num_pilot: Directions of a trial run for each of several reaches of the flat directions,
            from the measure's σ downwards; far from θ* the cost is not quadratic. The best one is
            kept, its directions are not used again. 0 keeps σ.
        grid: In how many parts a segment is looked at, for crossings before its end.
        seed: An integer, or a generator.
        progress: Show a bar over the directions.

    Returns:
        The log-volume, with its error, weights and radii.

    Raises:
        InputError: If an argument is impossible, or the basin has no end along a direction.
        NonFiniteError: If the cost is NaN somewhere on the way.

    Warns:
        UnconvergedWarning: If the effective sample size is below 10.

    Source:
        A. Scherlis and N. Belrose, Estimating the probability of sampling a trained neural network
        at random, arXiv 2501.18812, section 3; their rotation of directions is corrected here.

    Example:
        An ellipse with half-axes 1 and 0.1.

        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.diag(torch.tensor([1.0, 10.0])).double(), torch.zeros(2, 1).double())]
        >>> loss = torch.nn.MSELoss(reduction="sum")
        >>> risk = EmpiricalRisk(model.double(), loss, [torch.zeros(1, 2).double()], data)
        >>> result = star_volume(risk, threshold=1.0, measure="lebesgue")
        >>> round(float(torch.tensor(result.log_volume).exp() / torch.pi), 6)
        0.1
    """
    start = time.perf_counter()
    check_threshold(threshold)
    found = survey(
        risk,
        [float(threshold)],
        cost=cost,
        measure=measure,
        prior_std=prior_std,
        preconditioner=preconditioner,
        curvature=curvature,
        rank=rank,
        optimizer=optimizer,
        scope=scope,
        num_directions=num_directions,
        directions=directions,
        num_pilot=num_pilot,
        grid=grid,
        seed=seed,
        progress=progress,
    )
    look = found.look
    mean = look.mean(0)
    result = StarVolume(
        log_volume=mean.value,
        stderr=mean.stderr,
        lower=mean.lower,
        upper=mean.upper,
        ess=mean.ess,
        largest_weight=mean.largest_weight,
        converged=mean.converged,
        threshold=float(threshold),
        cost=found.cost.kind,
        measure=found.measure,
        preconditioner=found.preconditioner.kind,
        directions=found.directions,
        dim=found.cost.dim,
        radii=look.radius[0].cpu(),
        log_weights=(look.log_mass[0] + look.log_weight).cpu(),
        open=look.open[0].cpu(),
        reentered=look.reentered[0].cpu(),
        num_evaluations=found.cost.num_evaluations,
        num_matvecs=found.preconditioner.num_matvecs,
        seconds=time.perf_counter() - start,
    )
    if not result.converged:
        warnings.warn(f"star: {result}. {remedy(result)}", UnconvergedWarning, stacklevel=2)
    return result


def remedy(result: StarVolume) -> str:
    """Return what to do about an estimate that is a lower bound."""
    better = {"none": '"adam"', "adam": '"diagonal"', "diagonal": '"lowrank"'}
    finer = better.get(result.preconditioner)
    text = "A few directions speak for all of the volume"
    if finer is None and result.preconditioner == "lowrank":
        text += '; try preconditioner="dense", or a larger rank='
    elif finer is not None:
        text += f"; try preconditioner={finer}"
    return text + '. method="bridge" closes the gap.'
