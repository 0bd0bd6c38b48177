"""The choices behind a learning coefficient, checked before any work and filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curvops.autodiff.keeping import Columns, Keeping
from curvops.errors import InputError
from curvops.volume.spectral_form import SpectralForm

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

_DRAWS = {"hmc": 200, "sgld": 2000}
_PRECONDITIONERS = ("none", "rmsprop", "diagonal", "lowrank", "dense")
_LEAST_LEARNING = 20
"""Moves that something can be learned from."""


@dataclass(frozen=True)
class Plan:
    """What :func:`curvops.volume.learning_coefficient.local_learning_coefficient` was asked for.

    Attributes:
        method: ``"hmc"`` or ``"sgld"``.
        num_chains: How many chains.
        num_draws: Draws of each that are kept.
        num_burnin: Draws of each that are thrown away.
        step_size: ``h`` or ``η``; None to learn it.
        num_leapfrog: Leapfrog steps of an HMC move, on average.
        localization: ``γ``.
        inverse_temperature: ``nβ``.
        batch_size: SGLD's mini-batches; None for the risk's own.
        preconditioner: Its name; ``"given"`` for a form.
        form: The curvature that was given to precondition with.
        columns: How many chains go through the model together.
    """

    method: str
    num_chains: int
    num_draws: int
    num_burnin: int
    step_size: float | None
    num_leapfrog: int
    localization: float
    inverse_temperature: float
    batch_size: int | None
    preconditioner: str
    form: SpectralForm | None
    columns: Columns

    @classmethod
    def of(
        cls,
        risk: EmpiricalRisk,
        *,
        method: str = "hmc",
        num_chains: int = 8,
        num_draws: int | None = None,
        num_burnin: int | None = None,
        step_size: float | str = "auto",
        num_leapfrog: int = 10,
        localization: float = 1.0,
        inverse_temperature: float | None = None,
        batch_size: int | None = None,
        preconditioner: str | SpectralForm = "none",
        columns: Columns = "auto",
    ) -> Plan:
        """Check the arguments, and fill in those that were left out.

        Raises:
            InputError: If one is impossible.
        """
        if method not in _DRAWS:
            raise InputError(f'method must be "hmc" or "sgld"; got {method!r}.')
        name, form = _preconditioner(preconditioner, risk.space.dim)
        draws = _DRAWS[method] if num_draws is None else num_draws
        burnin = draws if num_burnin is None else num_burnin
        learns = step_size == "auto"
        _check_counts(
            num_chains=(num_chains, 1),
            num_draws=(draws, 4),
            num_burnin=(burnin, _least_burnin(method, learns, name)),
            num_leapfrog=(num_leapfrog, 1),
        )
        return cls(
            method=method,
            num_chains=num_chains,
            num_draws=draws,
            num_burnin=burnin,
            step_size=None if learns else _positive("step_size", step_size, ', or "auto"'),
            num_leapfrog=num_leapfrog,
            localization=_localization(localization),
            inverse_temperature=_inverse_temperature(risk, inverse_temperature),
            batch_size=_batch_size(batch_size, method),
            preconditioner=name,
            form=form,
            columns=Keeping(columns=columns).columns,  # which raises if it is impossible
        )

    @property
    def rounds(self) -> tuple[int, int]:
        """Burn-in before parameters are rescaled (none, if they are not) and after."""
        first = self.num_burnin // 2 if self.preconditioner == "rmsprop" else 0
        return first, self.num_burnin - first

    def learning(self, number: int) -> tuple[int, int, int]:
        """Return how SGLD spends ``number`` gradients of its burn-in to learn its step size.

        Returns:
            HMC moves, which cost half of them, adjusted Langevin moves, and steps of its own.
        """
        quarter = number // 4
        return -(-2 * quarter // self.num_leapfrog), quarter, number - 3 * quarter

    @property
    def num_moves(self) -> int:
        """Moves of all chains in all, as a progress bar counts them."""
        if self.method == "hmc" or self.step_size is not None:
            return self.num_burnin + self.num_draws
        return sum(sum(self.learning(number)) for number in self.rounds if number) + self.num_draws

    def remedy(self) -> str:
        """Return what helps chains that have not converged."""
        others = ["localization="]
        if self.method == "hmc":
            others.append("num_leapfrog=")
        return f"Raise num_burnin= and num_draws=, or {' or '.join(others)}."


def _preconditioner(value: str | SpectralForm, dim: int) -> tuple[str, SpectralForm | None]:
    if isinstance(value, SpectralForm):
        if value.dim != dim:
            raise InputError(
                f"preconditioner has the dimension {value.dim}; the risk has {dim} parameters."
            )
        return "given", value
    if value not in _PRECONDITIONERS:
        names = ", ".join(f'"{name}"' for name in _PRECONDITIONERS)
        raise InputError(f"preconditioner must be {names} or a SpectralForm; got {value!r}.")
    return value, None


def _least_burnin(method: str, learns: bool, preconditioner: str) -> int:
    """Return how many draws whatever is learned in the burn-in takes."""
    rounds = 1 + (preconditioner == "rmsprop")
    if not learns:
        return 0 if rounds == 1 else _LEAST_LEARNING
    return rounds * _LEAST_LEARNING * (4 if method == "sgld" else 1)


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            why = ", to learn from" if name == "num_burnin" and least else ""
            raise InputError(f"{name} is {value!r}; it must be an integer, at least {least}{why}.")


def _positive(name: str, value: object, otherwise: str = "") -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise InputError(f"{name} is {value!r}; it must be positive and finite{otherwise}.")
    return float(value)  # type: ignore[arg-type]


def _localization(value: float) -> float:
    if not 0 <= value < math.inf:
        raise InputError(f"localization is {value!r}; it must be finite and not negative.")
    return float(value)


def _inverse_temperature(risk: EmpiricalRisk, value: float | None) -> float:
    if value is not None:
        return _positive("inverse_temperature", value)
    if risk.num_data == 1:
        raise InputError(
            "the data hold one datum, so that β = 1/log n has no value (log 1 = 0). Pass "
            "inverse_temperature=, the nβ to use."
        )
    return risk.num_data / math.log(risk.num_data)


def _batch_size(value: int | None, method: str) -> int | None:
    if value is None:
        return None
    if method != "sgld":
        raise InputError(f'batch_size is {value!r}; only method="sgld" takes mini-batches.')
    _check_counts(batch_size=(value, 1))
    return value
