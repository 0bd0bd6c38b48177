"""Two nets joined by a segment and by a path whose bends are trained."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.landscape.alignment import Alignment, align
from curvops.landscape.fit_path import MakeOptimizer, PathFit, adam, fit_path
from curvops.landscape.path import Bezier, PolyChain, Segment
from curvops.landscape.path_scan import PathScan, scan_path
from curvops.landscape.points import Point
from curvops.landscape.scan import Metrics, check_metrics
from curvops.landscape.storage import Stored

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

_KINDS = {"polychain": PolyChain, "bezier": Bezier}


@dataclass(frozen=True, eq=False)
class Connection(Stored):
    """The loss between two nets, straight and along a trained path.

    Attributes:
        segment: The straight line between them.
        fitted: The trained path.
        fit: How it was trained, and its control points.
        alignment: How the hidden units of the second net were renumbered first, or ``None``.
        seconds: How long everything took.
    """

    segment: PathScan
    fitted: PathScan
    fit: PathFit
    alignment: Alignment | None
    seconds: float

    def __str__(self) -> str:
        """Return both barriers."""
        aligned = "" if self.alignment is None else f"{self.alignment}\n"
        return f"{aligned}{self.segment}\n{self.fitted}"


def connect(
    risk: EmpiricalRisk,
    a: Point,
    b: Point,
    kind: Literal["polychain", "bezier"] = "polychain",
    *,
    num_bends: int = 1,
    aligned: bool = False,
    optimizer: MakeOptimizer = adam,
    epochs: int = 30,
    batch_size: int = 128,
    ts: int | Tensor = 61,
    metrics: Metrics = (),
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> Connection:
    """Join two nets by a segment and by a trained path, and evaluate the loss along both.

    Args:
        risk: The risk that both are points of.
        a: The start, in any format, or a module.
        b: The end.
        kind: Of the trained path: ``"polychain"`` or ``"bezier"``.
        num_bends: How many bends it has.
        aligned: Whether the hidden units of ``b`` are renumbered like those of ``a`` first; see
            :func:`~curvops.landscape.alignment.align`.
        optimizer: See :func:`~curvops.landscape.fit_path.fit_path`.
        epochs: See :func:`~curvops.landscape.fit_path.fit_path`.
        batch_size: See :func:`~curvops.landscape.fit_path.fit_path`.
        ts: Points on each path; see :func:`~curvops.landscape.path_scan.scan_path`.
        metrics: What to compute beside the loss, such as ``"accuracy"``.
        seed: Of the training, and of the alignment.
        progress: Show a bar for each part.

    Raises:
        InputError: If there is no such kind of path, or another argument is impossible.
        ShapeError: If a point does not fit the risk.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> risk = EmpiricalRisk(net, torch.nn.MSELoss(), net, [(torch.eye(2), torch.eye(2)[:1].T)])
        >>> a, b = torch.full((17,), 0.3), torch.full((17,), -0.3)
        >>> joined = connect(risk, a, b, epochs=3, ts=5)
        >>> len(joined.segment.losses), len(joined.fitted.losses), len(joined.fit.losses)
        (5, 5, 3)
    """
    begin = perf_counter()
    if kind not in _KINDS:
        raise InputError(f"kind is {kind!r}; there are {', '.join(_KINDS)}.")
    check_metrics(metrics)
    renumbered = align(risk, a, b, seed=seed) if aligned else None
    end: Any = b if renumbered is None else renumbered.point
    straight = _KINDS[kind].between(a, end, num_bends)
    segment = scan_path(risk, Segment(a, end), ts, metrics=metrics, progress=progress)
    fit = fit_path(
        risk,
        straight,
        optimizer,
        epochs,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    return Connection(
        segment=segment,
        fitted=scan_path(risk, fit.path, ts, metrics=metrics, progress=progress),
        fit=fit,
        alignment=renumbered,
        seconds=perf_counter() - begin,
    )
