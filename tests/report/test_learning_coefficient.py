"""The section on the learning coefficient: its numbers, its flags, and when it stays away."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk
from curvops.report import Note, Number, Options, Problem, run_report
from curvops.report.runner import Outcome
from curvops.report.sections import learning_coefficient as module
from tests.report.conftest import make_problem

ONLY = Options(only=("learning_coefficient",))


def outcome(problem: Problem, options: Options = ONLY) -> Outcome:
    return run_report(problem, options).outcomes[0]


def value(numbers: dict[str, Number], name: str) -> float:
    found = numbers[name].value
    assert isinstance(found, float)
    return found


def least_squares() -> Problem:
    """A regular minimum of four parameters, far from flat in the units of γ."""
    generator = torch.Generator().manual_seed(0)
    X = 10 * torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    zero = torch.linalg.lstsq(X, y).solution
    risk = EmpiricalRisk(lambda p, x: x @ p["w"], nn.MSELoss(), {"w": zero}, [(X, y)])
    return Problem(risk, "least squares", "")


def test_a_regular_minimum_beside_its_quadratic_model() -> None:
    problem = least_squares()
    found = outcome(problem)
    assert found.status == "ok", found.details
    numbers = dict(found.result.numbers)
    X = torch.cat([b.X for b in problem.risk._data])
    curvatures = 60 / math.log(60) * torch.linalg.eigvalsh(2 * X.T @ X / 60)
    truth = 0.5 * float((curvatures / (curvatures + 1)).sum())
    assert truth == pytest.approx(2.0, rel=1e-2)
    assert value(numbers, "half_the_parameters") == 2.0
    assert value(numbers, "learning_coefficient_quadratic") == pytest.approx(truth, rel=1e-9)
    number = numbers["learning_coefficient"]
    assert number.headline
    assert number.error is not None
    assert abs(value(numbers, "learning_coefficient") - truth) < 2 * number.error
    assert number.call.startswith("local_learning_coefficient(risk, num_chains=4, ")
    per_chain = numbers["learning_coefficient_per_chain"].value
    assert isinstance(per_chain, list)
    assert sum(per_chain) / 4 == pytest.approx(value(numbers, "learning_coefficient"))


def test_doubts_are_shown() -> None:
    """At a random point, which is no minimum."""
    found = outcome(make_problem())
    assert found.status == "ok", found.details
    notes = [b for b in found.result.blocks if isinstance(b, Note)]
    assert any("no minimum" in note.text and note.kind == "warning" for note in notes)
    assert "not converged: " in found.result.numbers["learning_coefficient"].note
    # Nor has its quadratic model a posterior: the Hessian is indefinite beyond γ.
    assert "learning_coefficient_quadratic" not in found.result.numbers


def test_the_budget_stops_the_chains() -> None:
    found = outcome(least_squares(), Options(only=("learning_coefficient",), budget=0.05))
    assert found.status == "skipped"
    assert "budget" in found.reason


def test_what_would_take_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONG", 0.0)
    found = outcome(least_squares())
    assert found.status == "skipped"
    assert 'method="sgld"' in found.reason


def test_shorter_chains_where_gradients_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Size, "seconds", lambda size, context: float(size.gradients))
    monkeypatch.setattr(module, "_LONG", 1500.0)
    call = outcome(least_squares()).result.numbers["learning_coefficient"].call
    assert "num_draws=30, num_burnin=20, num_leapfrog=5" in call


def test_one_datum() -> None:
    data = [(torch.ones(1, 1), torch.ones(1, 1))]
    risk = EmpiricalRisk(lambda p, x: x * p["w"], nn.MSELoss(), {"w": torch.ones(1)}, data)
    found = outcome(Problem(risk, "one", ""))
    assert found.status == "skipped"
    assert "one datum" in found.reason
