"""How big the region around a minimum is: one question, three ways to answer it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, overload

import torch

from curvops.errors import InputError
from curvops.risk import EmpiricalRisk
from curvops.volume.bridge import bridge_volume
from curvops.volume.bridge_result import BridgeVolume
from curvops.volume.cost import Cost
from curvops.volume.cost import Kind as CostKind
from curvops.volume.ellipsoid import LOGDET_OPTIONS, ellipsoid_volume
from curvops.volume.forms import Curvature
from curvops.volume.preconditioner import Preconditioner, build_preconditioner, check_threshold
from curvops.volume.prior import Gaussian, Measure, as_measure
from curvops.volume.quadratic import QuadraticVolume
from curvops.volume.scope import Scope
from curvops.volume.star import star_volume
from curvops.volume.star_result import StarVolume
from curvops.volume.survey import DENSE_DIM, Prepared

METHODS = ("quadratic", "star", "bridge")


@overload
def basin_volume(
    risk: EmpiricalRisk, method: Literal["quadratic"], *, threshold: float, **options: Any
) -> QuadraticVolume: ...
@overload
def basin_volume(
    risk: EmpiricalRisk, method: Literal["star"] = "star", *, threshold: float, **options: Any
) -> StarVolume: ...
@overload
def basin_volume(
    risk: EmpiricalRisk, method: Literal["bridge"], *, threshold: float, **options: Any
) -> BridgeVolume: ...
def basin_volume(
    risk: EmpiricalRisk,
    method: str = "star",
    *,
    threshold: float,
    **options: Any,
) -> QuadraticVolume | StarVolume | BridgeVolume:
    r"""Return the log-volume of the basin around the current point of a risk, in nats.

    The basin is where the cost rises by at most a threshold.

    ===============  ========================================================================
    method           what is measured
    ===============  ========================================================================
    ``"quadratic"``  the ellipsoid of the quadratic model
                     (:func:`~curvops.volume.ellipsoid.ellipsoid_volume`): closed form, and as good
                     as the model is so far out
    ``"star"``       what can be seen from θ* in straight lines
                     (:func:`~curvops.volume.star.star_volume`): a lower bound, and called that
                     where few directions speak for all
    ``"bridge"``     the basin itself, by annealing from a Gaussian
                     (:func:`~curvops.volume.bridge.bridge_volume`), between bounds
    ===============  ========================================================================

    All take ``threshold``, ``scope`` (globs over parameter names), ``measure`` (``"lebesgue"`` or
    ``"gaussian"``), ``prior_std``, ``curvature``, ``seed`` and ``progress``; star and bridge also
    ``cost`` (``"loss"`` or ``"kl"``) and ``preconditioner``. The quadratic one is about the loss,
    and by default by Lebesgue's measure; the others by default under a Gaussian. Further options
    are those of the functions named above.

    Args:
        risk: The risk; its current point is θ*.
        method: See above.
        threshold: What the cost may rise by, in its units.
        options: See above.

    Returns:
        A result with ``log_volume``, ``stderr``, ``lower``, ``upper`` and ``converged``, which
        prints itself.

    Raises:
        InputError: If there is no such method, or an option that it does not take.
        IndefiniteError: If the quadratic model has no finite volume; the message has the remedy.
        NonFiniteError: If the cost is NaN at θ*, or where it is looked at.

    Warns:
        UnconvergedWarning: If the answer is only a lower bound, or not as precise as was asked.

    Example:
        >>> import torch, warnings
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3)).double()
        >>> data = [(torch.randn(50, 4).double(), torch.randint(3, (50,)))]
        >>> risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), model, data)
        >>> basin_volume(risk, threshold=1e-2, cost="kl", prior_std=1.0).converged
        True
    """
    if method not in METHODS:
        names = ", ".join(f'"{name}"' for name in METHODS)
        raise InputError(f"method must be one of {names}; got {method!r}.")
    calls: dict[str, Callable[..., Any]] = {
        "quadratic": ellipsoid_volume,
        "star": star_volume,
        "bridge": _bridge,
    }
    call = calls[method]
    _check_options(method, call, options)
    result: QuadraticVolume | StarVolume | BridgeVolume = call(risk, threshold=threshold, **options)
    return result


def _bridge(
    risk: EmpiricalRisk,
    *,
    threshold: float,
    cost: CostKind = "loss",
    scope: Scope = None,
    measure: str | Measure = "gaussian",
    prior_std: float | None = None,
    preconditioner: Prepared = "auto",
    curvature: Curvature = "ggn",
    rank: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int | torch.Generator = 0,
    progress: bool = False,
    **options: Any,
) -> BridgeVolume:
    """Build the cost and the preconditioner, and bridge."""
    check_threshold(threshold)
    of = Cost(risk, cost, scope)
    measured = as_measure(measure, of.theta, prior_std)
    needed = options.get("start", "laplace") == "laplace"
    if needed and not isinstance(preconditioner, Preconditioner):
        kind = preconditioner
        if kind == "auto":
            kind = "dense" if of.dim <= DENSE_DIM else "lowrank"
        preconditioner = build_preconditioner(
            of,
            kind,
            threshold=threshold,
            std=measured.std if isinstance(measured, Gaussian) else None,
            curvature=curvature,
            rank=rank,
            optimizer=optimizer,
            seed=seed,
            progress=progress,
        )
    return bridge_volume(
        of,
        threshold=threshold,
        measure=measured,
        preconditioner=preconditioner if isinstance(preconditioner, Preconditioner) else None,
        seed=seed,
        progress=progress,
        **options,
    )


def _check_options(method: str, call: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise an error for an option that a method does not take, before any work."""
    known = set(inspect.signature(call).parameters)
    if method == "quadratic":
        known |= set(LOGDET_OPTIONS)
    if method == "bridge":
        known |= set(inspect.signature(bridge_volume).parameters)
    known -= {"risk", "threshold", "options", "logdet_options"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(
            f'method="{method}" takes no {unknown[0]}=. It takes {", ".join(sorted(known))}.'
        )
