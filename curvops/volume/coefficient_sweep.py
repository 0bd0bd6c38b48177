"""Learning coefficients over step sizes, localisations and temperatures: where does it settle?

The coefficient is a property of the loss, so that what depends on the sampler's choices is not it.
With SGLD a plateau in the step size, and with either method one in γ and in nβ, is what vouches
for the number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from curvops.errors import DivergenceError, InputError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.rng import as_seed
from curvops.table import data_frame
from curvops.volume.coefficient_plan import Plan
from curvops.volume.coefficient_result import LearningCoefficient
from curvops.volume.learning_coefficient import local_learning_coefficient
from curvops.volume.scope import Scope, restrict

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One choice, and what came of it.

    Attributes:
        step_size: As asked for: a number, or ``"auto"``.
        localization: ``γ``.
        inverse_temperature: ``nβ``.
        result: The estimate; None if the chains diverged.
        failure: How they diverged; empty if they did not.
    """

    step_size: float | str
    localization: float
    inverse_temperature: float
    result: LearningCoefficient | None
    failure: str


@dataclass(frozen=True, eq=False)
class CoefficientSweep:
    """Learning coefficients on a grid of choices.

    Attributes:
        runs: One for each combination, step sizes varying fastest.
        method: ``"hmc"`` or ``"sgld"``.
        seconds: How long all of it took.
    """

    runs: tuple[SweepRun, ...]
    method: str
    seconds: float

    def __len__(self) -> int:
        """Return the number of combinations."""
        return len(self.runs)

    def __str__(self) -> str:
        """Return one row a combination."""
        rows = [f"{len(self)} learning coefficients ({self.method}, {self.seconds:.1f} s)"]
        rows.append(f"  {'step size':>10} {'γ':>8} {'nβ':>9}   λ̂")
        for run in self.runs:
            step = run.step_size if isinstance(run.step_size, str) else f"{run.step_size:.3g}"
            if run.result is None:
                told = "diverged"
            else:
                doubt = "" if run.result.converged else f"  not converged: {run.result.reason}"
                told = f"{run.result.value:.4g} ± {run.result.stderr:.2g}{doubt}"
            rows.append(
                f"  {step:>10} {run.localization:>8.3g} {run.inverse_temperature:>9.4g}   {told}"
            )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return {
            "runs": [
                {
                    "step_size": run.step_size,
                    "localization": run.localization,
                    "inverse_temperature": run.inverse_temperature,
                    "result": None if run.result is None else run.result.to_dict(),
                    "failure": run.failure,
                }
                for run in self.runs
            ],
            "method": self.method,
            "seconds": self.seconds,
        }

    def to_pandas(self) -> Any:
        """Return one row a combination, NaN where chains diverged.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        nan = float("nan")
        names = ("value", "stderr", "bias", "lower", "upper", "rhat", "ess", "acceptance")
        columns: dict[str, list[Any]] = {
            "asked_step_size": [run.step_size for run in self.runs],
            "step_size": [run.result.step_size if run.result else nan for run in self.runs],
            "localization": [run.localization for run in self.runs],
            "inverse_temperature": [run.inverse_temperature for run in self.runs],
        }
        for name in names:
            columns[name] = [getattr(r.result, name) if r.result else nan for r in self.runs]
        columns["converged"] = [bool(r.result and r.result.converged) for r in self.runs]
        columns["reason"] = [r.result.reason if r.result else r.failure for r in self.runs]
        return data_frame(columns)


def coefficient_sweep(
    risk: EmpiricalRisk,
    *,
    step_sizes: Iterable[float | str] = ("auto",),
    localizations: Iterable[float] = (1.0,),
    inverse_temperatures: Iterable[float | None] = (None,),
    method: str = "hmc",
    scope: Scope = None,
    seed: int | torch.Generator = 0,
    progress: bool = False,
    **options: Any,
) -> CoefficientSweep:
    """Estimate the learning coefficient for every combination of some choices.

    Chains that diverge are recorded and the others still run; what has not converged is told in
    the result, without a warning each. All combinations start from the same seed.

    Args:
        risk: The risk; see :func:`local_learning_coefficient`.
        step_sizes: Numbers, or ``"auto"``.
        localizations: Values of ``γ``.
        inverse_temperatures: Values of ``nβ``; None for ``n / log n``.
        method: ``"hmc"`` or ``"sgld"``.
        scope: Globs over the names of the parameters that vary.
        seed: An integer, or a generator.
        progress: Show a bar over the combinations.
        options: Further arguments of :func:`local_learning_coefficient`.

    Returns:
        The results, in the order of the arguments, step sizes varying fastest.

    Raises:
        InputError: If a choice is impossible, or there is none.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> data, zero = [(torch.eye(4), torch.zeros(4))], {"w": torch.zeros(4)}
        >>> risk = EmpiricalRisk(lambda p, x: x @ p["w"], torch.nn.MSELoss(), zero, data)
        >>> sweep = coefficient_sweep(
        ...     risk,
        ...     inverse_temperatures=(1e2, 1e4),
        ...     num_draws=100,
        ...     num_leapfrog=2,
        ... )
        >>> [round(run.result.value, 0) for run in sweep.runs]
        [2.0, 2.0]
    """
    start = perf_counter()
    risk = restrict(risk, scope)
    heats, ties, steps = list(inverse_temperatures), list(localizations), list(step_sizes)
    for name, values in (
        ("step_sizes", steps),
        ("localizations", ties),
        ("inverse_temperatures", heats),
    ):
        if not values:
            raise InputError(f"{name} is empty; there is nothing to sweep over.")
    whole = as_seed(seed)
    runs: list[SweepRun] = []
    grid = list(product(heats, ties, steps))
    plans = [
        Plan.of(
            risk,
            method=method,
            step_size=step,
            localization=tie,
            inverse_temperature=heat,
            **options,
        )
        for heat, tie, step in grid
    ]
    for plan, (heat, tie, step) in zip(
        tqdm(plans, unit="estimate", disable=not progress, leave=False), grid, strict=True
    ):
        failure, result = "", None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnconvergedWarning)
                result = local_learning_coefficient(
                    risk,
                    method=method,
                    step_size=step,
                    localization=tie,
                    inverse_temperature=heat,
                    seed=whole,
                    **options,
                )
        except DivergenceError as error:
            failure = str(error)
        runs.append(SweepRun(step, plan.localization, plan.inverse_temperature, result, failure))
    return CoefficientSweep(tuple(runs), method, perf_counter() - start)
