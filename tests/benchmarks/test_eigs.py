from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import eigs, native_eigs
from benchmarks.options import Options
from benchmarks.peers.base import Budget, BudgetExceededError
from benchmarks.problems import Problem
from benchmarks.results import Row
from benchmarks.scipy_eigs import eigsh


def diagonal(dim: int = 30) -> Problem:
    """A linear model of ``dim`` parameters; its Hessian is not used here."""
    data = [(torch.eye(dim), torch.zeros(dim, 1))]
    return Problem("small", nn.Linear(dim, 1, bias=False), nn.MSELoss(), data)


def test_the_solver_finds_the_largest_and_counts_its_products() -> None:
    values = torch.arange(1.0, 31.0)
    made = []

    def product(v: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return values * v

    budget = Budget(500)
    found = eigsh(product, diagonal(), 3, 1e-4, budget)
    torch.testing.assert_close(found.values, torch.tensor([28.0, 29.0, 30.0]), rtol=1e-4, atol=0)
    assert budget.used == len(made)


def test_a_solver_is_stopped_at_its_budget() -> None:
    with pytest.raises(BudgetExceededError):
        eigsh(lambda v: torch.randn_like(v), diagonal(), 3, 1e-6, Budget(25))


def test_a_whole_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(40, 6, generator=g), torch.randint(3, (40,), generator=g)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    problem = Problem("small", model, nn.CrossEntropyLoss(), [(X, y)])
    monkeypatch.setattr(Options, "build", lambda self, name: problem)
    options = Options(("mlp",), quick=True, say=lambda line: None)
    (rows,) = eigs.run(options)
    for row, variant in zip(rows, ("own solver", "SciPy eigsh"), strict=True):
        assert row.key == Row("mlp", "eigenpairs", "curvops", variant).key
        assert row.value is not None
        assert row.extra["k"] == 5
        assert row.extra["residual"] < 2e-4
        assert row.extra["difference"] < 1e-5
        assert row.extra["products"] > 5


def test_our_own_solver_counts_its_products_and_stops_at_the_budget() -> None:
    problem = diagonal()
    budget = Budget(500)
    found = native_eigs.solve(problem, 3, 1e-4, budget)
    # The Hessian of the mean of (x_i - 0)^2 is 2/30 times the identity.
    torch.testing.assert_close(found.values, torch.full((3,), 2 / 30, dtype=torch.float64))
    assert budget.used > 0
    with pytest.raises(BudgetExceededError):
        native_eigs.solve(problem, 3, 1e-4, Budget(2))
