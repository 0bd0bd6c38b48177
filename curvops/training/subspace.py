"""How still the sharpest directions stand, and how much of the gradient lies in them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvops.training.curvature import Point
from curvops.training.quantity import Every, Measured, Quantity, Setting
from curvops.training.run import plain_fields
from curvops.training.sharpness import TOLERANCE, checked_k


@dataclass(frozen=True)
class SubspaceOverlapResult:
    """The span of the top eigenvectors, beside the gradient and beside what it was before.

    Attributes:
        overlap: tr(P P')/k of the projections on the spans now and at the measurement before,
            from 0 to 1; ``None`` at the first one.
        since: The step of that measurement; ``None`` at the first.
        gradient_fraction: ‖P g‖²/‖g‖², from 0 to 1; ``None`` where the gradient is not finite.
        chance: k/P, what either would be for a random span.
        k: How many eigenvectors.
        converged: Whether every eigenpair is as good as asked.
        num_matvecs: Products; shared with the sharpness where both are due.
        seconds: How long it took.
        notes: What to know.
    """

    overlap: float | None
    since: int | None
    gradient_fraction: float | None
    chance: float
    k: int
    converged: bool
    num_matvecs: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return overlap and fraction."""
        overlap = "–" if self.overlap is None else f"{self.overlap:.3f}"
        share = "–" if self.gradient_fraction is None else f"{self.gradient_fraction:.1%}"
        return f"top-{self.k} subspace: overlap {overlap}, {share} of the gradient"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return plain_fields(self)


class SubspaceOverlap(Quantity):
    r"""Overlap of the span of the top eigenvectors with itself at the measurement before.

    .. math::
        \frac{1}{k} \operatorname{tr} P P' = \frac{1}{k} \|V^T V'\|_F^2, \qquad
        \|V V^T g\|^2 / \|g\|^2

    Gradients of trained networks lie mostly in a span of about as many dimensions as there are
    classes, and that span hardly turns.

    Cost: eigenpairs, shared with :class:`~curvops.training.Sharpness` where both are due, and one
    gradient. Memory for k vectors ``[P]``.

    Args:
        every: Measure at steps 0, ``every``, 2 ``every``, ...
        k: How many eigenvectors.
        tol: Relative residual of the eigenpairs.

    Raises:
        InputError: If an argument is impossible.

    Source:
        Gur-Ari, Roberts & Dyer 2018, Gradient descent happens in a tiny subspace
        (arXiv:1812.04754), sections 2 and 3.

    Example:
        >>> SubspaceOverlap(k=10).k
        10
    """

    name = "subspace_overlap"
    looks_at_risk = True

    def __init__(self, every: Every = 50, k: int = 10, *, tol: float = TOLERANCE) -> None:
        super().__init__(every)
        self.k, self._tol = checked_k(k), tol
        self._before: tuple[int, Tensor] | None = None

    def bind(self, setting: Setting) -> None:
        """Forget what was seen in another run."""
        self._before = None

    def wants_point(self, step: int) -> bool:
        """Ask for the point."""
        return self.due(step)

    def at_point(self, point: Point) -> Iterable[Measured]:
        """Compare the spans."""
        begin = time.perf_counter()
        found, doubt, shared = point.top_of_hessian(self.k, self._tol)
        assert found.eigenvectors is not None
        V = found.eigenvectors[:, -self.k :]
        k, dim = V.shape[1], V.shape[0]
        gradient = point.gradient().to(V.dtype)
        size = float(torch.linalg.vector_norm(gradient.double()))
        inside = float(torch.linalg.vector_norm((V.T @ gradient).double()))
        fraction, notes = None, [doubt] if doubt else []
        if math.isfinite(size) and math.isfinite(inside):
            fraction = min((inside / size) ** 2, 1.0) if size > 0 else 0.0
        else:
            notes.append("the norm of the gradient is not finite: the run has diverged")
        overlap = since = None
        if self._before is not None and self._before[1].shape == V.shape:
            since, before = self._before
            overlap = min(float((before.T @ V).double().square().sum()) / k, 1.0)
        self._before = (point.step, V.clone())
        yield Measured(
            point.step,
            SubspaceOverlapResult(
                overlap=overlap,
                since=since,
                gradient_fraction=fraction,
                chance=k / dim,
                k=k,
                converged=bool(found.converged[-k:].all()),
                num_matvecs=found.num_matvecs,
                seconds=max(time.perf_counter() - begin, shared),
                notes=tuple(notes),
            ),
        )
