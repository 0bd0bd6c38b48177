"""What is averaged over the data beside the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.errors import InputError, ShapeError
from tests import cases

CHUNKS: tuple[Any, ...] = ("loop", "vmap", 2, "auto")


def by_hand(
    case: cases.Case, thetas: Tensor, average: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The average over the whole data set at once, at every point."""
    dense = case.truth
    return torch.stack([average(dense.prediction_at(theta), dense.y) for theta in thetas.T])


def shares(f: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    valid = y != ignored
    return (f.argmax(1) == y)[valid].double().mean()


@pytest.mark.parametrize("columns", CHUNKS)
@pytest.mark.parametrize("merge", [False, "auto"])
@pytest.mark.parametrize(
    ("name", "ignored"),
    [("ce", -100), ("ce-weight-mask", -100), ("ce-sequence", 1), ("ce-conv", -1)],
)
def test_accuracy_counts_what_the_loss_does_not_ignore(
    name: str, ignored: int, merge: Any, columns: Any
) -> None:
    """Ragged batches, one of them without a valid target; no weights, no smoothing, no decay."""
    case = cases.make(name)
    risk = EmpiricalRisk(*case.args, weight_decay=2.0, merge_batches=merge)
    thetas = 3.0 * cases.randn(case.dim, 6, seed=4)
    expected = by_hand(case, thetas, lambda f, y: shares(f, y, ignored))
    assert len(expected.unique()) > 1
    cases.assert_matches(risk.metrics(thetas, "accuracy", columns=columns), expected)


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_accuracy_of_binary_targets(reduction: str) -> None:
    case = cases.make("bce-pos-weight", reduction)
    thetas = 3.0 * cases.randn(case.dim, 6, seed=4)
    expected = by_hand(case, thetas, lambda f, y: ((f > 0) == (y > 0.5)).double().mean())
    assert len(expected.unique()) > 1
    cases.assert_matches(EmpiricalRisk(*case.args).metrics(thetas, "accuracy"), expected)
    squashed = nn.Sequential(*case.model, nn.Sigmoid())
    risk = EmpiricalRisk(squashed, nn.BCELoss(), case.params, case.batches)
    cases.assert_matches(risk.metrics(thetas, "accuracy"), expected)


def test_accuracy_of_class_probabilities() -> None:
    case = cases.make("ce")
    batches = cases.cut(case.truth.X, torch.softmax(cases.randn(8, 3, seed=9), 1))
    risk = EmpiricalRisk(case.model, nn.CrossEntropyLoss(), case.params, batches)
    labels = torch.cat([y for _, y in batches]).argmax(1)
    thetas = 3.0 * cases.randn(case.dim, 6, seed=4)
    expected = by_hand(case, thetas, lambda f, _: shares(f, labels))
    cases.assert_matches(risk.metrics(thetas, "accuracy"), expected)


def test_accuracy_without_a_loss() -> None:
    case = cases.make("ce")
    risk = EmpiricalRisk(case.model, None, case.params, case.batches)
    thetas = cases.randn(case.dim, 3, seed=4)
    cases.assert_matches(risk.metrics(thetas, "accuracy"), by_hand(case, thetas, shares))


@pytest.mark.parametrize("columns", CHUNKS)
@pytest.mark.parametrize("name", ["mse", "mse-sequence"])
def test_a_function_is_averaged_over_all_numbers_it_returns(name: str, columns: Any) -> None:
    case = cases.make(name)
    risk = EmpiricalRisk(*case.args, **cases.UNMERGED)
    thetas = cases.randn(case.dim, 5, seed=4)

    def within(f: Tensor, y: Tensor) -> Tensor:  # [N] or [N, T], and no float
        return (f - y).abs().amax(-1) < 1.0

    expected = by_hand(case, thetas, lambda f, y: within(f, y).double().mean())
    assert len(expected.unique()) > 1
    cases.assert_matches(risk.metrics(thetas, within, columns=columns), expected)


@pytest.mark.parametrize("columns", CHUNKS)
@pytest.mark.parametrize("name", ["ce-weight-mask", "ce-sequence", "mse"])
def test_losses_and_metrics_are_what_they_are_alone(name: str, columns: Any) -> None:
    case = cases.make(name)
    risk = EmpiricalRisk(*case.args, weight_decay=0.7, **cases.UNMERGED)
    thetas = 3.0 * cases.randn(case.dim, 6, seed=4)

    def largest(f: Tensor, y: Tensor) -> Tensor:
        return f.abs().amax(1)

    metrics: dict[str, Any] = {"largest": largest}
    if name != "mse":
        metrics["right"] = "accuracy"
    losses, averages = risk.losses_and_metrics(thetas, metrics, columns=columns)
    cases.assert_matches(losses, risk.losses(thetas))
    assert list(averages) == list(metrics)
    for key, metric in metrics.items():
        cases.assert_matches(averages[key], risk.metrics(thetas, metric))
    alone, nothing = risk.losses_and_metrics(thetas, {})
    cases.assert_matches(alone, losses)
    assert nothing == {}
    none, averages = risk.losses_and_metrics(thetas[:, :0], metrics)
    assert none.shape == averages["largest"].shape == (0,)


def test_dtype_and_no_points() -> None:
    case = cases.make("ce", dtype=torch.float32)
    risk = EmpiricalRisk(*case.args)
    assert risk.metrics(torch.zeros(case.dim), "accuracy").dtype == torch.float32
    assert risk.metrics(torch.zeros(case.dim, 0), "accuracy").shape == (0,)
    wide = risk.to(torch.float64)
    thetas = cases.randn(case.dim, 4, seed=4)
    cases.assert_matches(wide.metrics(thetas, "accuracy"), by_hand(case, thetas, shares))


def test_numbers_that_are_not_finite_are_returned_as_such() -> None:
    data = [(torch.full((2, 1), float(i)), torch.zeros(2, 1)) for i in range(5)]
    risk = EmpiricalRisk(
        lambda p, x: p["w"] + 0 * x, nn.MSELoss(), {"w": torch.ones(1)}, data, **cases.UNMERGED
    )
    answer = risk.metrics(torch.tensor([[1.0, 0.0, -1.0]]), lambda f, y: f.log().abs())
    assert answer[:2].tolist() == [0.0, torch.inf]
    assert bool(answer[2].isnan())


def test_metrics_that_do_not_fit() -> None:
    case = cases.make("mse")
    risk, theta = EmpiricalRisk(*case.args), case.truth.theta
    with pytest.raises(InputError, match=r"accuracy needs labels.*\[N, C, \*\]"):
        risk.metrics(theta, "accuracy")
    bad: Any
    for bad in ("acuracy", 3, None):
        with pytest.raises(InputError, match="metric must be"):
            risk.metrics(theta, bad)
    with pytest.raises(ShapeError, match="Do not average"):
        risk.metrics(theta, lambda f, y: (f - y).square().mean())
    with pytest.raises(ShapeError, match=r"\[2, \d\]"):
        risk.metrics(theta, lambda f, y: (f - y).T)
    bad = lambda f, y: 0.5  # noqa: E731
    with pytest.raises(InputError, match="float"):
        risk.metrics(theta, bad)
    with pytest.raises(InputError, match="memory_budget"):
        risk.metrics(theta, lambda f, y: f, memory_budget="lots")
    with pytest.raises(InputError, match="columns"):
        risk.metrics(theta, lambda f, y: f, columns=0)
