"""The loss along a path between two points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.autodiff.affine import Affine
from curvops.errors import InputError
from curvops.landscape.batch_norm import Renormalized, batch_norms
from curvops.landscape.path import Path, as_times
from curvops.landscape.scan import Metrics, Values, check_metrics, evaluate, in_dtype
from curvops.landscape.storage import Stored
from curvops.table import data_frame

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class PathScan(Stored):
    r"""Losses along a path.

    Attributes:
        name: Which kind of path it is.
        times: t of each point, ascending ``[K]``; 0 and 1 are among them.
        distances: How far along the path each point is from t = 0, ``[K]``, in units of the
            parameters.
        losses: L(w(t)) ``[K]``, NaN and infinity included.
        metrics: Other values along the path ``[K]``, by name.
        renormalized: Whether statistics of batch normalisation were estimated at each point.
        dtype: What the net was evaluated in.
        num_losses: How many losses were evaluated.
        seconds: How long it took.
    """

    name: str
    times: Tensor
    distances: Tensor
    losses: Tensor
    metrics: dict[str, Tensor]
    renormalized: bool
    dtype: torch.dtype
    num_losses: int
    seconds: float

    @property
    def ends(self) -> tuple[float, float]:
        """The losses at t = 0 and t = 1."""
        return float(self.losses[self.times == 0]), float(self.losses[self.times == 1])

    @property
    def excess(self) -> Tensor:
        """L(w(t)) − [(1 − t) L(w(0)) + t L(w(1))] at each point, ``[K]``."""
        start, end = self.ends
        return self.losses - ((1 - self.times) * start + self.times * end)

    @property
    def barrier(self) -> float:
        """The largest excess at the points with t in [0, 1]; not below 0, which the ends have."""
        inside = (self.times >= 0) & (self.times <= 1)
        return float(self.excess[inside].max())

    def __str__(self) -> str:
        """Return the range of the losses, and the barrier."""
        start, end = self.ends
        gaps = int((~self.losses.isfinite()).sum())
        return (
            f"{self.name} of {len(self.times)} points, length "
            f"{float(self.distances[self.times == 1]):.4g}: loss {start:.4g} to {end:.4g}, "
            f"barrier {self.barrier:.4g}"
            + (f", {gaps} not finite" if gaps else "")
            + f" ({self.num_losses} losses)"
        )

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each point.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        table = {"t": self.times, "distance": self.distances, "loss": self.losses}
        return data_frame(table | {"excess": self.excess} | self.metrics)


def scan_path(
    risk: EmpiricalRisk,
    path: Path,
    ts: int | Sequence[float] | Tensor = 61,
    *,
    metrics: Metrics = (),
    dtype: torch.dtype | None = None,
    batch_norm: bool = True,
    progress: bool = False,
) -> PathScan:
    """Evaluate the loss along a path.

    Args:
        risk: The risk; its own point does not matter, and its module is left untouched.
        path: A path between points of its parameter space.
        ts: How many points, at equal distances of t from 0 to 1, or their t, in any order. The
            ends are added where they are missing.
        metrics: What to compute beside the loss, such as ``"accuracy"``, or functions
            ``(prediction, y) -> values per datum`` by name.
        dtype: What to evaluate the whole net in; that of the risk by default.
        batch_norm: Whether statistics of batch normalisation are estimated again at each point,
            from one more pass over the data. With those in the module, the loss between two nets
            is not that of any net.
        progress: Show a bar over the points.

    Returns:
        Losses and metrics at each point. Those that are not finite are kept as they are.

    Raises:
        ShapeError: If the path is not in the parameter space of the risk.
        InputError: If there are fewer than two points.
        NonFiniteError: If a ``t`` is NaN or infinite.

    Source:
        Garipov et al., Loss surfaces, mode connectivity, and fast ensembling of DNNs, NeurIPS
        2018, Section 3 and Appendix (batch normalisation).

    Example:
        >>> import torch
        >>> from curvops.landscape.path import Segment
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> risk = EmpiricalRisk(model, torch.nn.L1Loss(), model, [(torch.ones(1, 1),) * 2])
        >>> scan = scan_path(risk, Segment(torch.tensor([0.0]), torch.tensor([2.0])), 5)
        >>> scan.losses.tolist(), scan.barrier
        ([1.0, 0.5, 0.0, 0.5, 1.0], 0.0)
    """
    return scan_at(
        risk,
        path,
        path_times(ts),
        metrics=metrics,
        dtype=dtype,
        batch_norm=batch_norm,
        progress=progress,
    )


def scan_at(
    risk: EmpiricalRisk,
    path: Path,
    times: Tensor,
    *,
    metrics: Metrics = (),
    dtype: torch.dtype | None = None,
    batch_norm: bool = True,
    progress: bool = False,
) -> PathScan:
    """Evaluate the loss at given times ``[K]``, ascending, and nowhere else (see scan_path)."""
    start = perf_counter()
    named = check_metrics(metrics)
    risk = in_dtype(risk, dtype)
    path = path.within(risk.space, risk.dtype, risk.device)
    renormalized = batch_norm and bool(batch_norms(risk.model))
    if renormalized:
        values = _renormalized(risk, path, times, named, progress)
    else:
        # Around zero, so that the coefficients 0 and 1 of the ends give them to the last bit.
        zero = torch.zeros_like(path.control[0])
        points = Affine(zero, path.control.T, path.coefficients(times).T)
        values = evaluate(risk, [points], named, progress=progress)
    return PathScan(
        name=path.name,
        times=times,
        distances=path.lengths(times),
        losses=values.losses,
        metrics=values.metrics,
        renormalized=renormalized,
        dtype=risk.dtype,
        num_losses=len(times),
        seconds=perf_counter() - start,
    )


def _renormalized(
    risk: EmpiricalRisk, path: Path, times: Tensor, metrics: Metrics, progress: bool
) -> Values:
    """Evaluate each point with statistics of its own."""
    # What is asked of it, it has.
    own = cast("EmpiricalRisk", Renormalized(risk))
    bar = tqdm(times.tolist(), unit="point", leave=False, disable=not progress)
    found = [evaluate(own, [path.points(t)], metrics) for t in bar]
    names = found[0].metrics
    return Values(
        torch.cat([value.losses for value in found]),
        {name: torch.cat([value.metrics[name] for value in found]) for name in names},
    )


def path_times(ts: int | Sequence[float] | Tensor) -> Tensor:
    """Return a number of equally spaced times, or given ones with the ends, ascending ``[K]``."""
    if isinstance(ts, int) and not isinstance(ts, bool):
        if ts < 2:
            raise InputError(f"ts is {ts}; a path has at least its 2 ends.")
        return torch.linspace(0, 1, ts, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    times: Tensor = torch.cat([as_times(ts, "ts"), ends]).unique()
    return times
