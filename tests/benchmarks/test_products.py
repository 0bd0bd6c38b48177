from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks import ours, products
from benchmarks.options import Options
from benchmarks.peers.base import Budget, BudgetExceededError, CountedData, Peer
from benchmarks.problems import Problem
from benchmarks.results import Row


def problem() -> Problem:
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    data = [(torch.randn(5, 4, generator=g), torch.randint(3, (5,), generator=g)) for _ in range(2)]
    return Problem("small", model, nn.CrossEntropyLoss(), data)


OPTIONS = Options(("mlp",), repeats=2, say=lambda line: None)


def entry(name: str, product: Callable[[Tensor], Tensor]) -> products.Entry:
    return products.Entry(Row("mlp", "Hessian", name), lambda: product)


def test_only_what_agrees_is_timed() -> None:
    small = problem()
    op = ours.operator(small, "Hessian")

    def failing(v: Tensor) -> Tensor:
        raise RuntimeError("no such derivative\nand more")

    right, wrong, fails = products.group(
        OPTIONS,
        small,
        [
            entry("right", lambda v: op @ v),
            entry("wrong", lambda v: 1.001 * (op @ v)),
            entry("fails", failing),
        ],
    )
    assert right.value is not None
    assert right.rounds == 2
    assert right.extra["error"] < 1e-5
    assert (wrong.status, wrong.value, wrong.note) == ("disagrees", None, "relative error 1.0e-03")
    assert (fails.status, fails.note) == ("fails", "RuntimeError: no such derivative")


def test_of_very_wide_blocks_only_the_automatic_way_is_timed() -> None:
    found = [entry.row for entry in products.block_entries("resnet18", problem(), 32)]
    assert [(row.variant, row.status) for row in found] == [
        ("auto", "measured"),
        ("vmap", "not run"),
        ("loop", "not run"),
    ]
    found = [entry.row for entry in products.block_entries("mlp", problem(), 32)]
    assert {row.status for row in found} == {"measured"}


def test_all_entries_may_be_wrong() -> None:
    (row,) = products.group(OPTIONS, problem(), [entry("wrong", lambda v: 0 * v)])
    assert row.status == "disagrees"


@pytest.mark.parametrize("quantity", ["Hessian", "GGN", "EF"])
def test_our_ways_agree_with_the_truth(quantity: str) -> None:
    small = problem()
    rows = products.group(OPTIONS, small, list(products.our_entries("mlp", small, quantity)))
    assert [row.variant for row in rows] == list(products.WAYS)
    assert [row.status for row in rows] == ["measured"] * len(rows)


def test_blocks_are_timed_per_vector() -> None:
    small = problem()
    rows = products.group(OPTIONS, small, list(products.block_entries("mlp", small, 8)))
    assert {row.columns for row in rows} == {8}
    assert {row.status for row in rows} == {"measured"}


def test_too_wide_blocks_are_reported_not_run() -> None:
    rows = [e.row for e in products.block_entries("resnet18", problem(), 32)]
    assert {row.variant: row.status for row in rows}["vmap"] == "not run"


def test_absent_peers_are_reported() -> None:
    class Absent(Peer):
        name = "absent"
        distribution = "no-such-distribution"

    found = products.peer_entry("mlp", problem(), "Hessian", Absent())
    assert found.row.status == "not installed"


def test_matrices_that_a_peer_does_not_have_are_reported() -> None:
    class Bare(Peer):
        name = "bare"
        distribution = "torch"

    small = problem()
    (row,) = products.group(OPTIONS, small, [products.peer_entry("mlp", small, "EF", Bare())])
    assert (row.status, row.note) == ("not offered", "bare has no EF")


def test_the_gradient_is_the_gradient_of_all_data() -> None:
    small = problem()
    X, y = (torch.cat(part) for part in zip(*small.data))
    expected = torch.autograd.grad(small.loss(small.model(X), y), small.params)
    for mine, other in zip(ours.gradient(small)(), expected):
        torch.testing.assert_close(mine, other)


def test_copies_do_not_share_parameters() -> None:
    small = problem()
    double = small.to("cpu", torch.float64)
    assert double.params[0].dtype is torch.float64
    assert double.data[0][0].dtype is torch.float64
    assert double.data[0][1].dtype is torch.int64
    assert small.params[0].dtype is torch.float32
    assert replace(small, attention=True).dim == small.dim == 27


def test_budgets_count_passes() -> None:
    budget = Budget(10)
    data = CountedData(problem().data, budget)
    for _ in range(10):
        assert len(list(data)) == 2
    assert budget.used == 10
    with pytest.raises(BudgetExceededError, match="10 products"):
        iter(data)
    budget.restart()
    assert budget.used == 0
