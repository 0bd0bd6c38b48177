r"""The basin of a risk in its quadratic model: an ellipsoid, by Lebesgue's measure or a prior's.

.. math::
    \{x : \tfrac12 x^T (H + cI)\, x \le T\}, \qquad c = \lambda + k / \sigma^2
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from curvops.errors import IndefiniteError, InputError
from curvops.linalg.logdet import Method as LogDetMethod
from curvops.linalg.logdet import logdet as estimate_logdet
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.volume.ball import log_threshold, log_unit_ball
from curvops.volume.forms import Curvature, curvature_operator, dense_matrix
from curvops.volume.gaussian_ellipsoid import log_gaussian_ellipsoid
from curvops.volume.preconditioner import check_threshold
from curvops.volume.prior import Gaussian, Lebesgue, Measure, as_measure
from curvops.volume.quadratic import (
    QuadraticVolume,
    log_ellipsoid,
    quadratic_volume,
    regulariser,
)
from curvops.volume.scope import Scope, restrict

DENSE_DIM = 2000
"""Up to so many parameters all eigenvalues are computed."""

LOGDET_OPTIONS = (
    "rtol",
    "atol",
    "num_matvecs",
    "max_matvecs",
    "num_probes",
    "num_steps",
    "distribution",
    "lower_bound",
    "memory",
)
"""What is handed on to the estimate of a log-determinant."""

_GAUSSIAN_DIM = 8000
"""Up to so many under a Gaussian, where there is no other way."""


def ellipsoid_volume(
    risk: EmpiricalRisk,
    *,
    threshold: float,
    curvature: Curvature = "hessian",
    measure: str | Measure = "lebesgue",
    weight_decay: float = 0.0,
    prior_std: float | None = None,
    prior_count: float = 1.0,
    scope: Scope = None,
    logdet: LogDetMethod = "auto",
    seed: int | torch.Generator = 0,
    progress: bool = False,
    **logdet_options: Any,
) -> QuadraticVolume:
    r"""Return the log-volume of where the quadratic model of a risk rises by at most T.

    .. math::
        \log V = \log V_P + \tfrac{P}{2} \log(2T) - \tfrac12 \log\det(H + cI),
        \qquad c = \lambda + k / \sigma^2

    Up to 2000 parameters from all eigenvalues of the dense matrix, with what rounding may have made
    up; beyond with :func:`curvops.linalg.logdet.logdet`, whose bracket carries over.

    Under ``measure="gaussian"`` it is the probability that a draw of N(0, σ²I) falls into the
    ellipsoid around θ*, exactly, from all eigenpairs. The prior bounds the flat directions, so that
    c is ``weight_decay`` alone, and semidefinite curvature is enough.

    Args:
        risk: The risk; its current point is θ*, where its gradient should vanish.
        threshold: ``T``, the allowed rise of the loss, in its units.
        curvature: ``"hessian"`` or ``"ggn"``.
        measure: ``"lebesgue"`` or ``"gaussian"``.
        weight_decay: ``λ`` to add. The weight decay of the risk itself is in H already.
        prior_std: ``σ``, the standard deviation of the initial parameters; None adds nothing. Under
            a Gaussian its ``σ``, by default the root mean square of θ*.
        prior_count: ``k``, how many σ⁻² to count; Lebesgue's measure only.
        scope: Globs over parameter names; the other parameters are held.
        logdet: ``"dense"``, or how to estimate: ``"gram"``, ``"krylov"``, ``"slq"``; ``"auto"`` as
            above, an estimate where options for one are given.
        seed: An integer, or a generator.
        progress: Show a bar over the products.
        logdet_options: Further arguments of :func:`curvops.linalg.logdet.logdet`, such as
            ``num_matvecs`` or ``rtol``.

    Returns:
        The log-volume with its terms, bracket and choices.

    Raises:
        IndefiniteError: If H + cI is not positive definite; the message names what c would do.
        InputError: If a choice is impossible.

    Source:
        P. Hebbar (2022) for ``k = 1``; H. E. Daniels (1987) for the Gaussian.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.diag(torch.tensor([1.0, 10.0])).double(), torch.zeros(2, 1).double())]
        >>> loss = torch.nn.MSELoss(reduction="sum")
        >>> risk = EmpiricalRisk(model.double(), loss, [torch.zeros(1, 2).double()], data)
        >>> result = ellipsoid_volume(risk, threshold=1.0)
        >>> round(float(torch.tensor(result.log_volume).exp() / torch.pi), 6)
        0.1
    """
    start = time.perf_counter()
    check_threshold(threshold)
    unknown = sorted(set(logdet_options) - set(LOGDET_OPTIONS))
    if unknown:
        raise InputError(
            f"{unknown[0]}= is not an option of the log-determinant; these are "
            f"{', '.join(LOGDET_OPTIONS)}."
        )
    held = restrict(risk, scope)
    measured = as_measure(measure, held.theta, prior_std)
    operator = curvature_operator(held, curvature)
    choices = {
        "weight_decay": float(weight_decay),
        "prior_std": None if prior_std is None else float(prior_std),
        "prior_count": float(prior_count),
    }
    if isinstance(measured, Gaussian):
        if logdet not in ("auto", "dense") or logdet_options:
            raise InputError(
                'measure="gaussian" takes all eigenpairs, not a log-determinant; leave out logdet= '
                "and its options."
            )
        result = _gaussian(held, operator, threshold, measured, float(weight_decay), progress)
    elif type(measured) is not Lebesgue:
        raise InputError(
            f'method="quadratic" has no volume under measure={measure!r}. Use "lebesgue" or '
            '"gaussian", or method="star".'
        )
    else:
        shift = regulariser(weight_decay, prior_std, prior_count)
        small = logdet == "auto" and not logdet_options and held.space.dim <= DENSE_DIM
        try:
            if logdet == "dense" or small:
                result = _dense(operator, threshold, choices, progress)
            else:
                options = {"method": logdet, "seed": seed, "progress": progress} | logdet_options
                result = _estimated(operator, threshold, shift, choices, options)
        except IndefiniteError as error:
            raise _with_remedy(error, curvature) from None
    return replace(result, curvature=curvature, seconds=time.perf_counter() - start)


def _dense(
    operator: CurvatureLinearOperator, threshold: float, choices: dict[str, Any], progress: bool
) -> QuadraticVolume:
    matrix, noise = dense_matrix(operator, progress)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    noise = max(noise, _float64_noise(eigenvalues))
    result = quadratic_volume(eigenvalues, threshold=threshold, noise=noise, **choices)
    return replace(result, num_matvecs=len(eigenvalues))


def _estimated(
    operator: CurvatureLinearOperator,
    threshold: float,
    shift: float,
    choices: dict[str, Any],
    options: dict[str, Any],
) -> QuadraticVolume:
    dim = operator.shape[0]
    estimate = estimate_logdet(operator, shift, **options)
    operator.release()
    return QuadraticVolume(
        log_volume=log_ellipsoid(dim, threshold, estimate.value),
        stderr=estimate.stderr / 2,
        lower=log_ellipsoid(dim, threshold, estimate.upper),
        upper=log_ellipsoid(dim, threshold, estimate.lower),
        ball_term=log_unit_ball(dim),
        threshold_term=log_threshold(dim, threshold),
        logdet=estimate.value,
        dim=dim,
        threshold=float(threshold),
        shift=shift,
        how=estimate.method,
        converged=estimate.converged,
        num_matvecs=estimate.num_matvecs,
        **choices,
    )


def _gaussian(
    risk: EmpiricalRisk,
    operator: CurvatureLinearOperator,
    threshold: float,
    measure: Gaussian,
    weight_decay: float,
    progress: bool,
) -> QuadraticVolume:
    dim, shift = risk.space.dim, regulariser(weight_decay, None, 0.0)
    if dim > _GAUSSIAN_DIM:
        raise InputError(
            'method="quadratic" under measure="gaussian" needs all eigenpairs, which are computed '
            f"for up to {_GAUSSIAN_DIM} parameters; here are {dim}. Use scope=, or "
            'method="star" or "bridge".'
        )
    matrix, noise = dense_matrix(operator, progress)
    values, vectors = torch.linalg.eigh(matrix)
    result = gaussian_volume(
        values + shift,
        vectors.T @ risk.theta.to(vectors),
        measure.std,
        threshold=threshold,
        noise=max(noise, _float64_noise(values)),
    )
    return replace(result, shift=shift, weight_decay=weight_decay, num_matvecs=dim)


def gaussian_volume(
    eigenvalues: Tensor, offsets: Tensor, std: float, *, threshold: float, noise: float = 0.0
) -> QuadraticVolume:
    r"""Return how likely a draw of a Gaussian is to fall into an ellipsoid, in logs.

    .. math:: \log \Pr\bigl[\tfrac12 (\theta - \theta^*)^T A (\theta - \theta^*) \le T\bigr],
        \qquad \theta \sim \mathcal{N}(0, \sigma^2 I)

    Args:
        eigenvalues: Of ``A``, ``[P]``.
        offsets: θ* in the basis of the eigenvectors, ``[P]``.
        std: ``σ``.
        threshold: ``T``.
        noise: The absolute error of an eigenvalue; smaller ones may be zero.

    Raises:
        IndefiniteError: If an eigenvalue is negative beyond the noise.
        InputError: If ``threshold`` or ``std`` is not positive and finite.

    Example:
        >>> import torch
        >>> result = gaussian_volume(torch.ones(2), torch.zeros(2), 1.0, threshold=0.5)
        >>> round(result.log_volume, 6)  # log(1 - exp(-1/2))
        -0.932752
    """
    check_threshold(threshold)
    measure, values = Gaussian(std), eigenvalues.to(torch.float64)
    smallest = float(values.min())
    if smallest < -noise:
        raise IndefiniteError(
            f"the curvature is indefinite: its smallest eigenvalue is {smallest:.6g}, so that the "
            "quadratic model falls without bound, and its region is no ellipsoid. Pass "
            'weight_decay=, or curvature="ggn".',
            smallest=smallest,
            num_bad=int((values < -noise).sum()),
            shift=0.0,
            sufficient_shift=-smallest,
        )

    def log_p(curved: Tensor) -> float:
        if not bool((curved > 0).any()):
            return 0.0
        return log_gaussian_ellipsoid(curved, offsets, std, threshold)

    # What rounding hides may be there or not.
    lower, upper = (log_p((values + sign * noise).clamp(min=0.0)) for sign in (1.0, -1.0))
    return QuadraticVolume(
        log_volume=log_p(values.clamp(min=0.0)),
        stderr=0.0,
        lower=lower,
        upper=upper,
        ball_term=math.nan,
        threshold_term=math.nan,
        logdet=math.nan,
        dim=len(values),
        threshold=float(threshold),
        shift=0.0,
        weight_decay=0.0,
        prior_std=std,
        prior_count=0.0,
        measure=measure,
    )


def _float64_noise(eigenvalues: Tensor) -> float:
    eps = torch.finfo(torch.float64).eps
    return eps * len(eigenvalues) * float(eigenvalues.abs().max())


def _with_remedy(error: IndefiniteError, curvature: str) -> IndefiniteError:
    """Return the same error with what a person who asks for a volume can do about it."""
    remedy = (
        " For a volume: prior_std=σ adds prior_count/σ², weight_decay=λ adds λ; or use "
        'measure="gaussian".'
    )
    if curvature == "hessian":
        remedy += ' curvature="ggn" has no negative eigenvalues.'
    return IndefiniteError(
        str(error) + remedy,
        smallest=error.smallest,
        num_bad=error.num_bad,
        shift=error.shift,
        sufficient_shift=error.sufficient_shift,
    )
