"""The volume of a star domain, the weights it rests on, and whether it can be believed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from curvops.table import data_frame
from curvops.volume.prior import Measure
from curvops.volume.result import with_error


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class StarVolume:
    """The log-volume of a star domain, in nats.

    Attributes:
        log_volume: log V, or log p under a Gaussian prior.
        stderr: Its error to first order in the weights; too small where the effective sample size
            is small.
        lower: What the star domain's volume exceeds with 95 % confidence, however heavy the
            weights' tail is (Markov's inequality).
        upper: The upper end of the 95 % interval; infinite where the error cannot be believed.
        ess: The effective sample size of the directions' weights.
        largest_weight: The share of the direction that weighs most.
        converged: Whether the effective sample size is at least 10; otherwise ``log_volume`` is a
            lower bound.
        threshold: ``ε``, what the cost may rise by.
        cost: ``"loss"`` or ``"kl"``.
        measure: What it is measured with.
        preconditioner: The kind of map that directions went through.
        directions: ``"random"``, or ``"all"`` of a line or a plane.
        dim: The number of parameters ``P``.
        radii: How far each direction reaches, in units of the preconditioned directions, ``[N]``.
        log_weights: What each speaks for, in nats, ``[N]``; their log-sum-exp is ``log_volume``.
        open: Whether a ray reached the end of the measure, ``[N]``.
        reentered: Whether a ray left the basin and came back, as far as the grid saw, ``[N]``.
        num_evaluations: Points at which the cost was computed.
        num_matvecs: Products with the curvature, for the preconditioner.
        seconds: How long it took, the preconditioner included.
    """

    log_volume: float
    stderr: float
    lower: float
    upper: float
    ess: float
    largest_weight: float
    converged: bool
    threshold: float
    cost: str
    measure: Measure
    preconditioner: str
    directions: str
    dim: int
    radii: Tensor
    log_weights: Tensor
    open: Tensor
    reentered: Tensor
    num_evaluations: int
    num_matvecs: int
    seconds: float
    method: str = "star"

    @property
    def symbol(self) -> str:
        """``"log V"`` or ``"log p"``."""
        return self.measure.symbol

    @property
    def num_directions(self) -> int:
        """How many directions were looked along, ``N``."""
        return len(self.radii)

    @property
    def weights(self) -> Tensor:
        """The shares of the directions in the volume, ``[N]``; they add up to one."""
        return torch.softmax(self.log_weights, 0)

    def __float__(self) -> float:
        """Return the log-volume."""
        return self.log_volume

    def __str__(self) -> str:
        """Return the log-volume with its error, and how much there is to it."""
        text = f"{self.symbol} = {with_error(self.log_volume, self.stderr)} nats"
        if self.directions == "all":
            text += f" ({self.num_directions} directions, all there are)"
        elif self.converged:
            text += f" (ESS {self.ess:.4g} of {self.num_directions})"
        else:
            text += (
                f", lower bound (ESS {self.ess:.2g} of {self.num_directions}, "
                f"largest weight {self.largest_weight:.2g})"
            )
        count = int(self.reentered.sum())
        if count:
            text += f"; {count} of {self.num_directions} rays leave and come back"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python; tensors become lists."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["measure"] = self.measure.to_dict()
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in plain.items()}

    def to_pandas(self) -> Any:
        """Return one row a direction: radius, log weight, weight, open, reentered.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        return data_frame(
            {
                "radius": self.radii,
                "log_weight": self.log_weights,
                "weight": self.weights,
                "open": self.open,
                "reentered": self.reentered,
            }
        )
