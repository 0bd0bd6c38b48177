r"""Directions that reach about equally far: a linear map of the sphere, of determinant one.

.. math::
    M \propto V \bigl( \Lambda / \tau + I / \sigma^2 \bigr)^{-1/2} V^T, \qquad \det M = 1, \qquad
    \tfrac12 \sum_i \frac{\lambda_i}{\lambda_i / \tau + 1/\sigma^2} = \varepsilon

It is the covariance's root of the Gaussian that the quadratic model and the prior make together,
at the temperature τ at which its mean cost is the threshold ε.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from curvops.errors import InputError
from curvops.volume.forms import Curvature, Kind, spectral_form
from curvops.volume.spectral_form import Root, SpectralForm

if TYPE_CHECKING:
    from curvops.volume.cost import Cost

_ROUNDINGS = 8.0
"""An eigenvalue below so many roundings of the largest is taken for zero."""


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class Preconditioner:
    """A map of determinant one from isotropic directions to those worth looking along.

    Attributes:
        kind: ``"none"``, ``"adam"``, ``"diagonal"``, ``"lowrank"`` or ``"dense"``.
        form: The curvature ``A`` it was made from.
        threshold: ``ε``, that the temperature meets.
        std: ``σ``, how far flat directions reach; infinite where the curvature alone decides.
        tau: The temperature ``τ``; infinite where the prior alone decides.
        root: ``M``.
        log_scale: What M was divided by to have determinant one, in logs: the typical standard
            deviation of the Gaussian.
        num_matvecs: Products with the curvature that it took.
        seconds: How long it took.
    """

    kind: str
    form: SpectralForm
    threshold: float
    std: float
    tau: float
    root: Root
    log_scale: float
    num_matvecs: int
    seconds: float

    @classmethod
    def of(
        cls,
        form: SpectralForm,
        *,
        threshold: float,
        std: float,
        kind: str = "dense",
        num_matvecs: int = 0,
        seconds: float = 0.0,
    ) -> Preconditioner:
        """Return the preconditioner of a curvature that is known already.

        Args:
            form: The curvature.
            threshold: ``ε``.
            std: ``σ``; infinite where the curvature alone decides.
            kind: What to call it.
            num_matvecs: Products that the curvature took.
            seconds: How long it took.
        """
        check_threshold(threshold)
        tau, root, log_scale = _scaled(form, threshold, std)
        return cls(kind, form, threshold, std, tau, root, log_scale, num_matvecs, seconds)

    @property
    def dim(self) -> int:
        """The number of parameters ``P``."""
        return self.form.dim

    def directions(self, U: Tensor) -> Tensor:
        """Return ``M U``, ``[P, K]``, for columns uniform on the sphere.

        The symmetric M, rotated back, so that a seed means the same directions on every machine.
        """
        return self.root.symmetric(U)

    def gaussian(self, beta: float, std: float | None = None) -> Root:
        r"""Return S with :math:`S S^T = (\beta A + I/\sigma^2)^{-1}`, a Gaussian around θ*.

        ``S.forward(z)`` with standard normal ``z`` is a draw of it less θ*, ``S.adjoint`` pulls
        gradients back, and ``S.logabsdet()`` is half the log-determinant of its covariance.

        Args:
            beta: ``β``, the inverse temperature.
            std: ``σ``, as in the preconditioner by default.
        """
        precision = (self.std if std is None else std) ** -2
        return self.form.root(lambda x: (beta * x + precision).rsqrt())

    def reaching(self, std: float) -> Preconditioner:
        """Return the same with flat directions that reach another ``σ``; costs no product."""
        tau, root, log_scale = _scaled(self.form, self.threshold, std)
        return replace(self, std=std, tau=tau, root=root, log_scale=log_scale)

    def to_dict(self) -> dict[str, Any]:
        """Return what it is and what it took as plain Python."""
        return {
            "kind": self.kind,
            "threshold": self.threshold,
            "std": self.std,
            "tau": self.tau,
            "log_scale": self.log_scale,
            "num_matvecs": self.num_matvecs,
            "seconds": self.seconds,
        }


def build_preconditioner(
    cost: Cost,
    kind: Kind = "dense",
    *,
    threshold: float,
    std: float | None = None,
    curvature: Curvature = "ggn",
    rank: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> Preconditioner:
    """Return the preconditioner of a basin.

    Args:
        cost: The cost that bounds the basin.
        kind: Where the curvature comes from; see :func:`~curvops.volume.forms.spectral_form`.
        threshold: ``ε``, in the cost's units.
        std: ``σ`` of a Gaussian prior; ``None`` for Lebesgue's measure, where the curvature alone
            decides if it is positive definite, and otherwise σ is the root mean square of θ*.
        curvature: ``"ggn"`` or ``"hessian"``.
        rank: Eigenpairs of ``"lowrank"``.
        optimizer: For ``"adam"``.
        seed: An integer, or a generator.
        progress: Show a bar.

    Raises:
        InputError: If an argument is impossible.

    Source:
        A. Scherlis and N. Belrose, arXiv 2501.18812, section 3.2, for preconditioned directions;
        the temperature is ours.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> from curvops.volume.cost import Cost
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.diag(torch.tensor([1.0, 10.0])), torch.zeros(2, 1))]
        >>> loss = torch.nn.MSELoss(reduction="sum")
        >>> cost = Cost(EmpiricalRisk(model, loss, [torch.zeros(1, 2)], data))
        >>> M = build_preconditioner(cost, "dense", threshold=1.0).directions(torch.eye(2))
        >>> bool(torch.linalg.det(M).abs().isclose(torch.tensor(1.0)))
        True
        >>> M.norm(dim=1)  # the second parameter moves the loss a hundred times more
        tensor([3.1623, 0.3162])
    """
    start = time.perf_counter()
    check_threshold(threshold)
    form, num_matvecs = spectral_form(
        cost,
        kind,
        curvature=curvature,
        rank=rank,
        optimizer=optimizer,
        seed=seed,
        progress=progress,
    )
    sigma = _sigma(form, cost, threshold) if std is None else std
    return Preconditioner.of(
        form,
        threshold=threshold,
        std=sigma,
        kind=kind,
        num_matvecs=num_matvecs,
        seconds=time.perf_counter() - start,
    )


def _scaled(form: SpectralForm, threshold: float, std: float) -> tuple[float, Root, float]:
    """Return the temperature, M, and what M was divided by, in logs."""
    tau = temperature(form, threshold, std)
    if math.isinf(tau) and math.isinf(std):
        return tau, form.root(torch.ones_like), 0.0
    root = form.root(lambda x: (x / tau + std**-2).rsqrt())
    log_scale = root.logabsdet() / form.dim
    return tau, root.scaled(math.exp(-log_scale)), log_scale


def temperature(form: SpectralForm, threshold: float, std: float) -> float:
    r"""Return τ with :math:`\tfrac12 \operatorname{tr} A (A/\tau + I/\sigma^2)^{-1} = \varepsilon`.

    Infinite where the prior alone stays below the threshold. Without a prior (σ infinite) it is
    2ε/P, at which every direction has the same share of the cost.

    Example:
        >>> import torch
        >>> form = SpectralForm(2, torch.tensor([1.0, 100.0], dtype=torch.float64), None)
        >>> round(temperature(form, threshold=0.5, std=1e6), 6)
        0.5
    """
    if form.largest() == 0.0:
        return math.inf
    if math.isinf(std):
        return 2 * threshold / form.dim
    precision = std**-2
    if 0.5 * form.total(lambda x: x / precision) <= threshold:
        return math.inf

    def excess(log_tau: float) -> float:
        tau = math.exp(log_tau)
        cost = 0.5 * form.total(lambda x: x / (x / tau + precision))
        return math.log(cost / threshold)

    # Each term is at most τ/2, so τ is at least 2ε/P; upwards the cost grows to the prior's.
    low = math.log(2 * threshold / form.dim)
    high = low + 1.0
    while excess(high) < 0:
        high += 2.0 * (high - low)
    return math.exp(brentq(excess, low, high, xtol=1e-12))


def check_threshold(threshold: float) -> None:
    """Raise an error unless a threshold is positive and finite."""
    if not (isinstance(threshold, (int, float)) and threshold > 0 and math.isfinite(threshold)):
        raise InputError(
            f"threshold is {threshold!r}; it must be positive and finite: how much the cost may "
            "rise within the basin."
        )


def _sigma(form: SpectralForm, cost: Cost, threshold: float) -> float:
    """Return what bounds the flat directions where the measure has no scale of its own."""
    noise = _ROUNDINGS * torch.finfo(cost.theta.dtype).eps * form.largest()
    if form.smallest() > noise or form.largest() == 0.0:
        return math.inf
    spread = float(cost.theta.to(torch.float64).square().mean().sqrt())
    # Without a scale, as far as a curvature that rounding hides would let them go.
    return spread or math.sqrt(2 * threshold / form.dim / noise)
