"""The local learning coefficient with its error, its chains, and whether they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from curvops.table import data_frame


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class LearningCoefficient:
    r"""An estimate of the local learning coefficient, in nats.

    .. math:: \hat\lambda = n\beta \, (\mathbb{E}_\beta[L] - L(\theta^*))

    Attributes:
        value: The estimate, the mean of ``samples``.
        stderr: Its Monte-Carlo error, aware of autocorrelation and of differences of chains.
        bias: How much too large SGLD's steps and mini-batches make ``value``, to first order and
            exactly on a quadratic, ``(η/8) E‖∇ log π‖²``; 0 by HMC. It is not subtracted.
        lower: Lower end of the 95 % interval of the Monte-Carlo error, and ``bias`` below it.
        upper: Upper end of the interval.
        converged: Whether the chains can vouch for the estimate and its error.
        reason: Why not; empty if they can.
        samples: ``nβ (L - L*)`` of every draw ``[C, N]``, float64.
        burnin: The same of the draws that were thrown away ``[C, B]``.
        distances: ``‖θ - θ*‖`` of every draw ``[C, N]``.
        rhat: Rank-normalised split R-hat; 1 where chains agree.
        ess: Effective sample size of all chains together.
        acceptance: Mean acceptance probability of the draws' moves; with SGLD that of the
            moves its step size was chosen by, or None where it was given.
        loss: ``L(θ*)``, the total loss over the number of data, on the data of the draws.
        method: ``"hmc"`` or ``"sgld"``.
        step_size: ``h`` of a leapfrog step, or ``η`` of SGLD; as found, if it was to be found.
        num_leapfrog: Leapfrog steps of a move on average; 0 with SGLD.
        localization: ``γ``.
        inverse_temperature: ``nβ``.
        preconditioner: Its name, ``"given"`` for one that was passed.
        num_data: ``n``.
        num_batches: How many mini-batches the draws' losses come from; 1 for all data at once.
        num_gradients: Gradients of one chain that were evaluated, on a mini-batch or all data.
        num_passes: How often all data were read for them.
        num_matvecs: Products with the curvature, for the preconditioner.
        seconds: How long it took.
    """

    value: float
    stderr: float
    bias: float
    lower: float
    upper: float
    converged: bool
    reason: str
    samples: Tensor
    burnin: Tensor
    distances: Tensor
    rhat: float
    ess: float
    acceptance: float | None
    loss: float
    method: str
    step_size: float
    num_leapfrog: int
    localization: float
    inverse_temperature: float
    preconditioner: str
    num_data: int
    num_batches: int
    num_gradients: int
    num_passes: int
    num_matvecs: int
    seconds: float

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    @property
    def num_chains(self) -> int:
        """How many chains there are, ``C``."""
        return self.samples.shape[0]

    @property
    def num_draws(self) -> int:
        """How many draws each chain has, ``N``."""
        return self.samples.shape[1]

    @property
    def per_chain(self) -> Tensor:
        """The estimate of each chain, ``[C]``."""
        return self.samples.mean(1)

    @property
    def losses(self) -> Tensor:
        """``L`` at every draw ``[C, N]``; through mini-batches ``L* + (L_b - L*_b)``."""
        return self.loss + self.samples / self.inverse_temperature

    def __str__(self) -> str:
        """Return the value to the digits that its error leaves, and how it came about."""
        decimals = _decimals(self.stderr)
        ends = ", ".join(f"{end:.{max(decimals - 1, 0)}f}" for end in (self.lower, self.upper))
        doubt = "" if self.converged else f"\n  not converged: {self.reason}"
        bias = f", bias up to {self.bias:.2g}" if self.bias else ""
        return (
            f"λ̂ = {self.value:.{decimals}f} ± {self.stderr:.2g}{bias} [{ends}] at "
            f"nβ = {self.inverse_temperature:.4g} ({self.method}, {self.num_chains} chains of "
            f"{self.num_draws} draws, ESS {self.ess:.0f}, R-hat {self.rhat:.2f}){doubt}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python; tensors become nested lists."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in plain.items()}

    def to_pandas(self) -> Any:
        """Return one row a draw: chain, draw, coefficient, loss, distance.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        count = self.num_draws
        return data_frame(
            {
                "chain": [c for c in range(self.num_chains) for _ in range(count)],
                "draw": list(range(count)) * self.num_chains,
                "coefficient": self.samples.flatten().tolist(),
                "loss": self.losses.flatten().tolist(),
                "distance": self.distances.flatten().tolist(),
            }
        )


def _decimals(error: float) -> int:
    """Return how many decimals show two digits of an error."""
    if not (math.isfinite(error) and error > 0):
        return 4
    return min(max(1 - math.floor(math.log10(error)), 0), 12)
