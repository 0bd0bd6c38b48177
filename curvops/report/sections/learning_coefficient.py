"""The local learning coefficient: an estimate by chains, whether they can be trusted, a trace."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvops.plotting.learning_coefficient import learning_coefficient as draw_traces
from curvops.report.blocks import (
    Block,
    Cost,
    Note,
    Number,
    Paragraph,
    SectionResult,
    Table,
    digits,
    duration,
)
from curvops.report.context import Context, Task
from curvops.report.dense import dense_hessian, is_affordable
from curvops.report.estimates import quietly
from curvops.report.pictures import picture
from curvops.report.registry import Skipped, section
from curvops.report.speed import speed
from curvops.risk import EmpiricalRisk
from curvops.volume.coefficient_result import LearningCoefficient
from curvops.volume.learning_coefficient import local_learning_coefficient

_LONG = 60.0
"""Seconds beyond which the chains are left to whoever wants them."""
_LEAST_LOWRANK = 20


@dataclass(frozen=True)
class _Size:
    """How much sampling is done."""

    num_chains: int
    num_draws: int
    num_burnin: int
    num_leapfrog: int

    @property
    def gradients(self) -> int:
        """About how many gradients that takes."""
        return self.num_chains * (self.num_draws + self.num_burnin) * self.num_leapfrog

    def seconds(self, context: Context) -> float:
        """Guess how long that takes."""
        return self.gradients * speed(context).gradient


_SIZES = (_Size(4, 60, 30, 10), _Size(4, 30, 20, 5))


def _estimate(context: Context) -> float:
    size = _size(context)
    return 0.0 if size is None else size.seconds(context)


@section("learning_coefficient", "Local learning coefficient", order=65, estimate=_estimate)
def learning_coefficient(context: Context) -> SectionResult:
    """Estimate the learning coefficient, and say what speaks for it and against it."""
    size = _size(context)
    if size is None:
        raise Skipped(
            f"Even short chains take about {_SIZES[-1].gradients:,} gradients, here "
            f"{duration(_SIZES[-1].seconds(context))}. Call local_learning_coefficient("
            'risk, method="sgld", step_size=…) for longer work on mini-batches.'
        )
    if context.risk.num_data == 1:
        raise Skipped("The data hold one datum, so that β = 1/log n has no value.")
    options = _options(context, size)
    with context.measure("chains for the learning coefficient") as task, quietly():
        result = local_learning_coefficient(_watched(context, task), **options)
        task.products = result.num_matvecs
    call = "local_learning_coefficient(risk, "
    call += ", ".join(f"{name}={value!r}" for name, value in options.items()) + ")"
    numbers = _numbers(context, result, call)
    blocks: list[Block] = [Paragraph(_explanation(result))]
    if not result.converged:
        blocks.append(Note(f"The chains do not vouch for this: {result.reason}.", "warning"))
    blocks.append(_table(context, result, numbers))
    blocks.append(
        picture(
            "learning-coefficient",
            f"Traces of {result.num_chains} chains around the estimate {result.value:.4g}.",
            lambda ax: draw_traces(result, ax=ax),
            caption="Before 0 is the burn-in. Chains that have mixed look alike.",
        )
    )
    return SectionResult(blocks, numbers)


def _size(context: Context) -> _Size | None:
    """Return the most sampling that does not take long."""
    return next((size for size in _SIZES if size.seconds(context) <= _LONG), None)


def _options(context: Context, size: _Size) -> dict[str, Any]:
    is_precise = context.risk.dtype in (torch.float32, torch.float64)
    is_worth_it = is_precise and context.num_params >= _LEAST_LOWRANK
    return {
        "num_chains": size.num_chains,
        "num_draws": size.num_draws,
        "num_burnin": size.num_burnin,
        "num_leapfrog": size.num_leapfrog,
        "preconditioner": "lowrank" if is_worth_it else "none",
        "columns": "loop",  # so that the call draws the same chains again, in any process
        "seed": context.options.seed,
    }


def _watched(context: Context, task: Task) -> EmpiricalRisk:
    """Return the risk, whose gradients show progress and stop when the budget is spent."""
    risk, done = copy.copy(context.risk), 0

    def losses_and_gradients(thetas: Tensor, **options: Any) -> Any:
        nonlocal done
        done += thetas.shape[1]
        context.tick(done, None, "gradients")
        return context.risk.losses_and_gradients(thetas, **options)

    risk.losses_and_gradients = losses_and_gradients  # type: ignore[method-assign, assignment]
    return risk


def _numbers(context: Context, result: LearningCoefficient, call: str) -> dict[str, Number]:
    cost = Cost(result.num_matvecs, result.seconds)
    doubt = "" if result.converged else f"not converged: {result.reason}"
    numbers = {
        "learning_coefficient": Number(
            result.value,
            "local learning coefficient λ̂",
            result.upper - result.value,
            "nats",
            cost,
            f"{call}.value",
            doubt,
            headline=True,
        ),
        "learning_coefficient_rhat": Number(result.rhat, "R-hat of the chains", cost=cost),
        "learning_coefficient_ess": Number(result.ess, "effective sample size", cost=cost),
        "learning_coefficient_acceptance": Number(
            result.acceptance, "acceptance rate of the chains", cost=cost
        ),
        "learning_coefficient_distance": Number(
            float(result.distances.mean()), "mean distance of the draws from θ", cost=cost
        ),
        "learning_coefficient_per_chain": Number(
            result.per_chain.tolist(), "λ̂ of each chain", cost=cost
        ),
        "half_the_parameters": Number(context.num_params / 2, "P/2"),
    }
    quadratic = _quadratic(context, result)
    if quadratic is not None:
        numbers["learning_coefficient_quadratic"] = Number(
            quadratic, "λ̂ if the loss were its quadratic model"
        )
    return numbers


def _quadratic(context: Context, result: LearningCoefficient) -> float | None:
    """Return ½ Σ wλ/(wλ + γ), where the quadratic model has a posterior."""
    if not is_affordable(context):
        return None
    weight = result.inverse_temperature * context.risk.normalizer / context.risk.num_data
    values = weight * dense_hessian(context).eigenvalues
    if float(values.min()) + result.localization <= 0:
        return None
    return 0.5 * float((values / (values + result.localization)).sum())


def _table(context: Context, result: LearningCoefficient, numbers: dict[str, Number]) -> Table:
    norm = float(context.risk.theta.double().norm())
    interval = f"[{result.lower:.5g}, {result.upper:.5g}]"
    rows = [
        ["λ̂", f"{digits(result.value, 5)} ± {result.stderr:.2g}, 95 % {interval}"],
        ["R-hat, effective sample size", f"{result.rhat:.3f}, {result.ess:.0f}"],
        ["acceptance, step size", f"{result.acceptance:.0%}, {result.step_size:.3g}"],
        ["mean distance from θ, |θ|", f"{float(result.distances.mean()):.3g}, {norm:.3g}"],
        ["P/2, at a regular minimum as β → ∞", _told(numbers["half_the_parameters"])],
    ]
    quadratic = numbers.get("learning_coefficient_quadratic")
    if quadratic is not None:
        rows.append(["the same of the quadratic model, from all eigenvalues", _told(quadratic)])
    rows.append(
        ["gradients of one chain", f"{digits(result.num_gradients)}, {duration(result.seconds)}"]
    )
    return Table([], rows)


def _told(number: Number) -> str:
    value = number.value
    return digits(value, 5) if isinstance(value, (int, float)) else "–"


def _explanation(result: LearningCoefficient) -> str:
    heat = digits(result.inverse_temperature, 4)
    is_default = math.isclose(
        result.inverse_temperature, result.num_data / math.log(result.num_data)
    )
    why = " = n/log n" if is_default else ""
    return (
        "λ is the exponent in V(ε) ~ ε^λ, how fast the volume shrinks where the loss rises by at "
        "most ε: P/2 at a regular minimum, less where directions are degenerate. λ̂ = nβ (E[L] − "
        f"L(θ)) under exp(−nβ L − γ/2 |θ' − θ|²) at nβ{why} = {heat} and γ = "
        f"{result.localization:g}, by {result.num_chains} Metropolis-adjusted Hamiltonian chains "
        "on all data, which have no bias from their step size. It is a property of the loss at "
        "this temperature and in the neighbourhood that γ allows; the error is that of the "
        "sampling alone."
    )
