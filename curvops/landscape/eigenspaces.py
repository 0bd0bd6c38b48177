r"""The top eigenspace of the curvature while training goes on.

.. math:: H(\theta_t) \, v_i = \lambda_i v_i, \qquad
    \frac{\operatorname{Tr}(P_t P_{t'})}{k}, \qquad \frac{\|P_t g_t\|^2}{\|g_t\|^2}

Every step starts where the last one left: eigenvectors move little in an epoch, so a few products
more than there are vectors will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.errors import InputError, ShapeError
from curvops.landscape.overlap import gradient_share
from curvops.landscape.points import Point, trainable
from curvops.landscape.storage import Stored
from curvops.landscape.trajectory import Trajectory
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.linalg.matrix import Matrix
from curvops.operators.hessian import HessianLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.rng import as_seed
from curvops.table import data_frame

MakeMatrix = Callable[[EmpiricalRisk], Matrix]
"""From a risk to the matrix whose eigenpairs are followed."""


@dataclass(frozen=True, eq=False)
class Eigenspaces(Stored):
    r"""The k largest eigenvalues at T points, and the subspaces of their vectors.

    Attributes:
        steps: Which step each point is ``[T]``.
        eigenvalues: Descending at each point ``[T, k]``.
        residuals: ‖Hv − λv‖ of each ``[T, k]``.
        converged: Whether it is as small as asked ``[T, k]``.
        overlaps: Tr(P_t P_t')/k ``[T, T]``; NaN where it was not asked for.
        gradient_shares: ‖P_t g_t‖²/‖g_t‖² ``[T]``; NaN where the gradient is zero.
        num_matvecs: Products at each point ``[T]``.
        dim: P.
        tol: The relative residual that was asked for.
        warm_start: Whether each point started from the one before.
        seconds: How long it took.
    """

    steps: Tensor
    eigenvalues: Tensor
    residuals: Tensor
    converged: Tensor
    overlaps: Tensor
    gradient_shares: Tensor
    num_matvecs: Tensor
    dim: int
    tol: float
    warm_start: bool
    seconds: float

    @property
    def random_level(self) -> float:
        """What overlaps and shares would be on average for random subspaces: k/P."""
        return self.eigenvalues.shape[1] / self.dim

    @property
    def largest(self) -> Tensor:
        """λmax at each point ``[T]``."""
        return self.eigenvalues[:, 0]

    @property
    def overlap_with_previous(self) -> Tensor:
        """The overlap of each point with the one before ``[T - 1]``."""
        return self.overlaps.diagonal(-1)

    def __str__(self) -> str:
        """Return how λmax moved, how much subspaces turned, and the cost."""
        T, k = self.eigenvalues.shape
        missed = int((~self.converged).sum())
        turned = (
            f", overlap with the point before {float(self.overlap_with_previous.min()):.3f} to "
            f"{float(self.overlap_with_previous.max()):.3f} (random {self.random_level:.2g})"
            if T > 1
            else ""
        )
        return (
            f"{k} eigenvalues at {T} points: λmax {float(self.largest[0]):.4g} to "
            f"{float(self.largest[-1]):.4g}{turned}"
            + (f", {missed} not converged" if missed else "")
            + f" ({int(self.num_matvecs.sum())} matvecs)"
        )

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each point.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        before = torch.cat([torch.tensor([torch.nan]).double(), self.overlap_with_previous])
        table: dict[str, Any] = {"step": self.steps}
        for i in range(self.eigenvalues.shape[1]):
            table[f"eigenvalue_{i + 1}"] = self.eigenvalues[:, i]
        table |= {"overlap_with_previous": before, "gradient_share": self.gradient_shares}
        return data_frame(table | {"num_matvecs": self.num_matvecs})


class EigenTracker:
    """Follow the largest eigenpairs of a risk's curvature while its parameters change.

    Args:
        k: How many pairs.
        tol: The residual asked for, relative to the eigenvalue; an eigenvalue is then off by
            about its square.
        matrix: Makes the matrix of a risk; the Hessian by default.
        warm_start: Whether to start from the pairs of the point before.
        refresh: Start anew at every so many points, as if nothing were known; never by default.
            See the note of :func:`~curvops.linalg.eigsh.eigsh` on what a warm start trusts.
        overlaps: ``"all"`` pairs of points, which keeps k vectors of each in memory, or
            ``"previous"`` ones only.
        gradient: Whether to compute the gradient's share, at the cost of one gradient a point.
        seed: Of the eigensolver.

    Raises:
        InputError: If an argument is impossible.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(6, 3)
        >>> data = [(torch.eye(6), torch.arange(6) % 3)]
        >>> risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), model, data)
        >>> tracker = EigenTracker(2)
        >>> for scale in (1.0, 0.9, 0.8):
        ...     found = tracker.update(risk.at(scale * risk.theta))
        >>> result = tracker.result()
        >>> result.eigenvalues.shape, bool(result.overlap_with_previous.min() > 0.9)
        (torch.Size([3, 2]), True)
    """

    def __init__(
        self,
        k: int,
        *,
        tol: float = 1e-2,
        matrix: MakeMatrix = HessianLinearOperator.from_risk,
        warm_start: bool = True,
        refresh: int | None = None,
        overlaps: Literal["all", "previous"] = "all",
        gradient: bool = True,
        seed: int | torch.Generator = 0,
    ) -> None:
        for name, value in (("k", k), ("refresh", 1 if refresh is None else refresh)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be an integer of 1 or more, got {value!r}.")
        if overlaps not in ("all", "previous"):
            raise InputError(f'overlaps must be "all" or "previous", got {overlaps!r}.')
        if not 0 < tol < 1:
            raise InputError(f"tol is a relative residual in (0, 1), got {tol!r}.")
        self._k, self._tol, self._matrix = k, tol, matrix
        self._warm, self._refresh, self._seed = warm_start, refresh, as_seed(seed)
        self._keep_all, self._with_gradient = overlaps == "all", gradient
        self._steps: list[int] = []
        self._found: list[EighResult] = []
        self._bases: list[Tensor] = []
        self._rows: list[list[float]] = []
        self._shares: list[float] = []
        self._previous: EighResult | None = None
        self._dim = 0
        self._seconds = 0.0

    def update(self, risk: EmpiricalRisk, step: int | None = None) -> EighResult:
        """Look at the risk's current point.

        Args:
            risk: The risk; of the same space at every call.
            step: Which step of the training it is; by default one more than at the last call.

        Returns:
            The eigenpairs.

        Raises:
            ShapeError: If the risk has another number of parameters than before.
            InputError: If it has fewer than k parameters, or the step is not after the last.
        """
        begin = perf_counter()
        dim = risk.space.dim
        if self._steps and dim != self._dim:
            raise ShapeError(
                f"the risk has {dim} parameters; at the last point it had {self._dim}."
            )
        if self._k > dim:
            raise InputError(f"k is {self._k}, but the risk has {dim} parameters.")
        step = (self._steps[-1] + 1 if self._steps else 0) if step is None else step
        if self._steps and step <= self._steps[-1]:
            raise InputError(f"step {step} is not after the last one, {self._steps[-1]}.")
        cold = not self._warm or (self._refresh and len(self._steps) % self._refresh == 0)
        found = eigsh(
            self._matrix(risk),
            self._k,
            "LA",
            tol=self._tol,
            seed=self._seed,
            warm_start=None if cold else self._previous,
        )
        self._dim, self._previous = dim, found
        self._steps.append(step)
        self._keep(found)
        share = torch.nan
        if self._with_gradient:
            gradient = risk.gradient()
            if bool(gradient.any()):
                share = float(gradient_share(gradient, found))
        self._shares.append(share)
        self._seconds += perf_counter() - begin
        return found

    def _keep(self, found: EighResult) -> None:
        """Compare with the subspaces so far, and keep what later ones are compared with."""
        vectors = found.eigenvectors
        assert vectors is not None
        basis = vectors.to("cpu", torch.float32)
        row = [float((basis.T @ other).square().sum()) / self._k for other in self._bases]
        self._rows.append([min(value, 1.0) for value in row])
        self._bases = [*self._bases, basis] if self._keep_all else [basis]
        # Vectors are kept once; a result of the past keeps its numbers only.
        plain = EighResult(
            found.eigenvalues.cpu(),
            None,
            found.residuals.cpu(),
            found.converged.cpu(),
            found.num_matvecs,
            found.seconds,
            found.which,
            found.tol,
            found.method,
        )
        self._found.append(plain)

    def result(self) -> Eigenspaces:
        """Return what has been found so far.

        Raises:
            InputError: If nothing has been looked at yet.
        """
        if not self._found:
            raise InputError("nothing has been looked at yet: call update(risk) first.")
        T = len(self._found)
        overlaps = torch.full((T, T), torch.nan, dtype=torch.float64)
        overlaps.fill_diagonal_(1.0)
        for t, row in enumerate(self._rows):
            for j, value in enumerate(row):
                other = t - len(row) + j
                overlaps[t, other] = overlaps[other, t] = value
        return Eigenspaces(
            steps=torch.tensor(self._steps),
            eigenvalues=torch.stack([found.eigenvalues.flip(0) for found in self._found]),
            residuals=torch.stack([found.residuals.flip(0) for found in self._found]),
            converged=torch.stack([found.converged.flip(0) for found in self._found]),
            overlaps=overlaps,
            gradient_shares=torch.tensor(self._shares, dtype=torch.float64),
            num_matvecs=torch.tensor([found.num_matvecs for found in self._found]),
            dim=self._dim,
            tol=self._tol,
            warm_start=self._warm,
            seconds=self._seconds,
        )


def eigenspaces(
    risk: EmpiricalRisk,
    points: Trajectory | Iterable[Point],
    k: int,
    *,
    tol: float = 1e-2,
    matrix: MakeMatrix = HessianLinearOperator.from_risk,
    warm_start: bool = True,
    refresh: int | None = None,
    overlaps: Literal["all", "previous"] = "all",
    gradient: bool = True,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> Eigenspaces:
    """Follow the largest eigenpairs along a trajectory, each point started from the one before.

    Args:
        risk: The risk that the points are points of.
        points: A trajectory, or points in order, in any format.
        k: How many pairs.
        tol: See :class:`EigenTracker`, as for all that follows.
        matrix: Makes the matrix of a risk.
        warm_start: Whether to start from the pairs of the point before.
        refresh: Start anew at every so many points.
        overlaps: ``"all"`` pairs of points, or ``"previous"`` ones only.
        gradient: Whether to compute the gradient's share.
        seed: Of the eigensolver.
        progress: Show a bar over the points.

    Raises:
        InputError: If there are no points, or an argument is impossible.
        ShapeError: If a point does not fit the risk.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(6, 3)
        >>> data = [(torch.eye(6), torch.arange(6) % 3)]
        >>> risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), model, data)
        >>> eigenspaces(risk, [risk.theta, 0.9 * risk.theta], 2).steps.tolist()
        [0, 1]
    """
    tracker = EigenTracker(
        k,
        tol=tol,
        matrix=matrix,
        warm_start=warm_start,
        refresh=refresh,
        overlaps=overlaps,
        gradient=gradient,
        seed=seed,
    )
    if isinstance(points, Trajectory):
        steps: Iterable[int | None] = points.steps.tolist()
        source: Iterable[Any] = points
    else:
        source = list(points)
        steps = [None] * len(source)
    bar = tqdm(list(steps), desc="eigenspaces", unit="point", leave=False, disable=not progress)
    for step, point in zip(bar, source, strict=True):
        vector = trainable(point, "a point") if isinstance(point, torch.nn.Module) else point
        tracker.update(risk.at(vector), step)
    return tracker.result()
