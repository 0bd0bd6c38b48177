"""A basin's log-volume by bridging, the ladders that led there, and the bracket around it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from curvops.table import data_frame
from curvops.volume.chernoff import chernoff_bound, student
from curvops.volume.smc import Step


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class Runs:
    r"""A log-normaliser from independent runs.

    .. math:: \log \tfrac1R \sum_r \hat Z_r

    The average of the ``Z``, not of their logarithms: each is right on average, while their
    logarithms are low on average, by half their variance. The error is that of the logarithms,
    s/√R, which does not shrink where one run outweighs the others.

    Attributes:
        samples: ``log Z`` of each run ``[R]``, float64, in nats.
        value: As above.
        stderr: ``s/√R``; NaN for one run.
        lower: Lower end of the 95 % interval, by Student's quantile.
        upper: Upper end.

    Example:
        >>> import torch
        >>> runs = Runs.of(torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64))
        >>> print(runs)
        1.58 ± 0.29
    """

    samples: Tensor
    value: float
    stderr: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Tensor) -> Runs:
        """Combine runs."""
        number = len(samples)
        value = float(samples.logsumexp(0)) - math.log(number)
        stderr = float(samples.std()) / math.sqrt(number) if number > 1 else math.nan
        reach = student(0.95, number) * stderr if number > 1 else math.inf
        return cls(samples, value, stderr, value - reach, value + reach)

    @property
    def spread(self) -> float:
        """The standard deviation of a single run's ``log Z``; NaN for one run."""
        return float(self.samples.std()) if len(self.samples) > 1 else math.nan

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def __str__(self) -> str:
        """Return the value to two digits of its error."""
        if not (math.isfinite(self.stderr) and self.stderr > 0):
            return f"{self.value:.2f}"
        decimals = min(max(1 - math.floor(math.log10(self.stderr)), 0), 12)
        return f"{self.value:.{decimals}f} ± {self.stderr:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return {
            "samples": self.samples.tolist(),
            "value": self.value,
            "stderr": self.stderr,
            "lower": self.lower,
            "upper": self.upper,
        }


@dataclass(frozen=True, eq=False)
class BridgeVolume:
    r"""The log-volume, in nats, of where the cost stays below a threshold.

    Attributes:
        volume: ``log μ(cost ≤ ε)`` from independent runs.
        soft: ``log Z_β``, the mass of the soft basin; None when splitting.
        chernoff: ``log Z_β + βε``, each run at its own β; None when splitting.
        round_trip: log Z of the first rung after going up the ladder and back down, which is 0
            where chains keep up; None if it was not asked for.
        converged: Whether the value and its error vouch for themselves.
        reasons: Why not.
        ess: The smallest effective number of points on any rung of any run.
        acceptance: Mean acceptance probability of all moves.
        lag: What moves on the rungs took off the cost that the weights had predicted, in nats of
            log Z, from every run. Around 0 where chains keep up with the ladder; where it is
            positive beyond its spread they trail behind, and the volume is low by that or more.
        beta: Where the soft basin's mean cost is ε, the mean over the runs; 0 when splitting.
        threshold: ``ε``, in units of the cost.
        unit: What the cost is measured in.
        measure: ``"lebesgue"``, ``"gaussian"`` or another measure's name.
        symbol: ``"log V"`` or ``"log p"``.
        start: ``"laplace"`` or ``"prior"``.
        path: ``"tempering"`` or ``"splitting"``.
        reference_beta: ``β`` of the Laplace Gaussian; 0 with ``start="prior"``.
        reference_std: How wide its flat directions are; of the prior with ``start="prior"``.
        dim: ``P``.
        num_chains: Chains of a run.
        ladders: The steps of every run.
        num_evaluations: Points at which the cost and its gradient were evaluated.
        seconds: How long it took.
    """

    volume: Runs
    soft: Runs | None
    chernoff: Runs | None
    round_trip: Runs | None
    converged: bool
    reasons: tuple[str, ...]
    ess: float
    acceptance: float
    lag: tuple[float, ...]
    beta: float
    threshold: float
    unit: str
    measure: str
    symbol: str
    start: str
    path: str
    reference_beta: float
    reference_std: float
    dim: int
    num_chains: int
    ladders: tuple[tuple[Step, ...], ...]
    num_evaluations: int
    seconds: float
    method: str = "bridge"

    def __float__(self) -> float:
        """Return the log-volume."""
        return self.volume.value

    @property
    def log_volume(self) -> float:
        """The log-volume, in nats."""
        return self.volume.value

    @property
    def stderr(self) -> float:
        """Its standard error over the runs."""
        return self.volume.stderr

    @property
    def lower(self) -> float:
        """Lower end of its 95 % interval."""
        return self.volume.lower

    @property
    def upper(self) -> float:
        """Upper end of its 95 % interval."""
        return self.volume.upper

    @property
    def is_global(self) -> bool:
        """Whether it measures the whole level set, not what hangs together with θ*."""
        return self.start == "prior"

    @property
    def num_runs(self) -> int:
        """How many independent runs there are."""
        return len(self.ladders)

    def __str__(self) -> str:
        """Return the log-volume with its error, the bound above it, and how it came about."""
        which = "the whole level set" if self.is_global else "around θ*"
        lines = [
            f"{self.symbol}(cost ≤ {self.threshold:g} {self.unit}) = {self.volume} nats, {which}"
            f" (P = {self.dim}, {self.num_runs} runs of {self.num_chains} chains)"
        ]
        if self.chernoff is not None:
            lines.append(f"  Chernoff's bound {self.chernoff} at beta = {self.beta:.4g}")
        if self.round_trip is not None:
            lines.append(f"  there and back again {self.round_trip}")
        rungs = sum(map(len, self.ladders)) / len(self.ladders)
        lines.append(
            f"  {rungs:.0f} rungs a run, ESS ≥ {self.ess:.0f}, acceptance {self.acceptance:.2f}, "
            f"lag {sum(self.lag) / self.num_runs:.2f} nats ({self.num_evaluations} gradients, "
            f"{self.seconds:.1f} s)"
        )
        lines += [f"  not converged: {reason}" for reason in self.reasons]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("volume", "soft", "chernoff", "round_trip"):
            plain[name] = None if plain[name] is None else plain[name].to_dict()
        plain["reasons"], plain["lag"] = list(self.reasons), list(self.lag)
        plain["ladders"] = [[step.to_dict() for step in ladder] for ladder in self.ladders]
        return {**plain, "is_global": self.is_global}

    def to_pandas(self) -> Any:
        """Return one row a rung of every run.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        rows = [
            {"run": run, "rung": rung, **step.to_dict()}
            for run, ladder in enumerate(self.ladders)
            for rung, step in enumerate(ladder)
        ]
        return data_frame({name: [row[name] for row in rows] for name in rows[0]})


def lag_of(ladder: tuple[Step, ...]) -> float:
    r"""Return by how much the moves on the rungs of a ladder lower what the weights predict.

    .. math:: \sum_k (\beta_{k+1} - \beta_k) \,
        \bigl( \overline{\mathrm{cost}}_k^{\,\mathrm{predicted}}
               - \overline{\mathrm{cost}}_k^{\,\mathrm{moved}} \bigr)

    In nats, on the way up the temperature: log Z is the integral of minus the mean cost.
    """
    warm = [s for s in ladder if s.stage in ("reference", "temper")]
    return sum(
        (after.beta - step.beta) * (step.predicted_cost - step.mean_cost)
        for step, after in pairwise(warm)
    )


def as_runs(values: list[float]) -> Runs:
    """Return runs from plain numbers."""
    return Runs.of(torch.tensor(values, dtype=torch.float64))


__all__ = ["BridgeVolume", "Runs", "as_runs", "chernoff_bound", "lag_of"]
