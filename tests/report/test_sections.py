"""The numbers of the sections are right, and the calls beside them give them again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk
from curvops.report import Number, Options, Problem, Report, Table, load_problem, run_report
from curvops.report.accuracy import accuracy
from tests.report.conftest import make_problem, make_risk


def numbers(report: Report) -> dict[str, Number]:
    found: dict[str, Number] = {}
    for outcome in report.outcomes:
        if outcome.section.name == "training" and outcome.status == "skipped":
            continue  # there is no run to report on
        assert outcome.status == "ok", outcome.details or outcome.reason
        found.update(outcome.result.numbers)
    return found


def dense(risk: EmpiricalRisk) -> torch.Tensor:
    """The Hessian by torch.func, which shares nothing with the operators."""
    model = risk.model
    assert model is not None
    batches = list(make_risk()._data)
    X = torch.cat([b.X for b in batches]).to(risk.dtype)
    y = torch.cat([b.y for b in batches])

    def loss(theta: torch.Tensor) -> torch.Tensor:
        params = dict(zip(risk.space.names, risk.space.unflatten(theta), strict=True))
        f = torch.func.functional_call(model, params, (X,))
        return nn.functional.cross_entropy(f, y) + risk.weight_decay / 2 * theta.square().sum()

    return torch.func.hessian(loss)(risk.theta)


@pytest.mark.parametrize("weight_decay", [0.0, 2.0])
def test_against_an_independent_hessian(weight_decay: float) -> None:
    problem = make_problem(weight_decay=weight_decay)
    found = numbers(run_report(problem))
    hessian = dense(problem.risk)
    values = torch.linalg.eigvalsh(hessian)
    top = torch.tensor(found["eigenvalues"].value, dtype=torch.float64)
    torch.testing.assert_close(top, values.flip(0)[:20], rtol=0, atol=1e-10)
    assert found["smallest_eigenvalue"].value == pytest.approx(float(values[0]), abs=1e-10)
    assert found["trace"].value == pytest.approx(float(hessian.trace()), abs=1e-9)
    assert found["frobenius_norm"].value == pytest.approx(float(hessian.norm()), abs=1e-9)
    assert found["agreement_with_dense"].value < 1e-10  # type: ignore[operator]
    assert found["finite_difference"].value < 1e-6  # type: ignore[operator]
    shift = max(c for c in (0.0, 1e-1, 1.0, 10.0, 100.0) if f"logdet_shift_{c:g}" in found)
    exact = torch.logdet(hessian + shift * torch.eye(len(hessian), dtype=torch.float64))
    assert found[f"logdet_shift_{shift:g}"].value == pytest.approx(float(exact), abs=1e-8)


@pytest.mark.filterwarnings("ignore::curvops.UnconvergedWarning")  # the report has told already
def test_every_call_gives_its_number_again(user_folder: Path) -> None:
    problem = load_problem("mine:problem", seed=2)
    found = numbers(run_report(problem, Options(seed=2)))
    names: dict[str, object] = {}
    exec(problem.setup, names)
    checked = 0
    for name, number in found.items():
        if number.call and number.value is not None:
            again = np.asarray(eval(number.call, names), dtype=float)  # noqa: S307
            # The bound hangs on the last coupling of a Lanczos run, which rounding moves.
            rtol = 1e-2 if name == "wasserstein_bound" else 1e-6
            np.testing.assert_allclose(again, number.value, rtol=rtol, atol=1e-10, err_msg=name)
            checked += 1
    assert checked >= 20


def test_indefinite_hessian_is_told_honestly(report: Report) -> None:
    found = numbers(report)
    smallest = found["smallest_eigenvalue"].value
    assert isinstance(smallest, float)
    assert smallest < 0
    assert found["logdet_shift_0"].value is None
    assert f"most negative is {smallest:.6g}" in found["logdet_shift_0"].note
    assert found["log_volume_no_prior_threshold_0.01"].value is None
    values = [n for name, n in found.items() if name.startswith("logdet_") and n.value is not None]
    assert values, "one shift is always large enough"
    assert any(
        "indefinite" in getattr(b, "text", "") for o in report.outcomes for b in o.result.blocks
    )


def test_lines_meet_at_the_point_and_follow_the_model(report: Report) -> None:
    found = numbers(report)
    for name in ("top", "bulk", "most_negative"):
        losses, model = found[f"{name}_losses"].value, found[f"{name}_quadratic"].value
        assert isinstance(losses, list)
        assert isinstance(model, list)
        middle = len(losses) // 2
        assert losses[middle] == pytest.approx(found["loss"].value)
        assert losses[middle + 1] == pytest.approx(model[middle + 1], rel=1e-2)
    bends = found["most_negative_eigenvalue"].value
    assert isinstance(bends, float)
    assert bends < 0


def test_without_the_dense_hessian() -> None:
    report = run_report(make_problem(), Options(max_dense=10))
    got = {o.section.name: o.status for o in report.outcomes}
    assert got.pop("volume") == got.pop("training") == "skipped"
    assert set(got.values()) == {"ok"}
    names = {name for o in report.outcomes for name in o.result.numbers}
    assert not [name for name in names if "dense" in name]
    assert {"trace", "trace_layer_0", "wasserstein_bound"} <= names
    assert any(name.endswith("_estimate") for name in names)
    reason = next(o.reason for o in report.outcomes if o.section.name == "volume")
    assert "--max-dense" in reason
    assert report.exit_code == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_reported_with_its_noise(dtype: torch.dtype) -> None:
    found = numbers(run_report(make_problem(dtype=dtype)))
    exact = torch.linalg.eigvalsh(dense(make_risk(torch.float64)))
    noise = found["noise"].value
    assert isinstance(noise, float)
    assert noise > 1e-8
    if dtype == torch.float32:
        # In bfloat16 the parameters themselves are others.
        assert found["agreement_with_dense"].value < 1e-5  # type: ignore[operator]
        largest = found["largest_eigenvalue"].value
        assert largest == pytest.approx(float(exact[-1]), rel=1e-4)


def test_problem_of_one_parameter() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"],
        nn.MSELoss(),
        {"w": torch.ones(1)},
        [(torch.ones(4, 1), torch.zeros(4, 1))],
    )
    report = run_report(Problem(risk, "one", ""))
    got = {o.section.name: o.status for o in report.outcomes}
    assert got.pop("eigenpairs") == "skipped"
    assert got.pop("plane") == got.pop("training") == "skipped"
    assert set(got.values()) == {"ok"}


def test_zero_hessian() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"],
        lambda f, y: (f * y).mean(),
        {"w": torch.zeros(3)},
        [(torch.ones(4, 3), torch.ones(4))],
        reduction="mean",
    )
    report = run_report(Problem(risk, "flat", ""))
    for outcome in report.outcomes:
        # ARPACK may refuse a matrix that is zero, and no run was recorded.
        may_fail = ("eigenpairs", "training")
        assert outcome.status == "ok" or outcome.section.name in may_fail, outcome.details


def test_targets_without_classes_have_no_accuracy() -> None:
    model = nn.Linear(2, 1)
    data = [(torch.ones(3, 2), torch.zeros(3, 1))]
    assert accuracy(EmpiricalRisk(model, nn.MSELoss(), model, data)) is None


def test_accuracy_leaves_out_what_the_loss_ignores() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 1] = 1
    risk = EmpiricalRisk(
        lambda p, x: p["w"] * x,
        nn.CrossEntropyLoss(ignore_index=2),
        {"w": torch.ones(1)},
        [(logits, torch.tensor([[1, 0, 2, 1]]))],
    )
    assert accuracy(risk) == pytest.approx(2 / 3)
    found = numbers(run_report(Problem(risk, "masked", ""), Options(only=("problem",))))
    assert found["accuracy"].value == pytest.approx(2 / 3)


def test_many_parameter_tensors_are_cut() -> None:
    params = {f"p{i}": torch.ones(()) for i in range(100)}
    risk = EmpiricalRisk(
        lambda p, x: x * torch.stack(list(p.values())).sum(),
        nn.MSELoss(),
        params,
        [(torch.ones(2, 1), torch.ones(2, 1))],
    )
    report = run_report(Problem(risk, "many", ""), Options(only=("problem",)))
    tables = [b for b in report.outcomes[0].result.blocks if isinstance(b, Table) and b.columns]
    assert len(tables[0].rows) == 60
    assert "first 60 of 100" in tables[0].caption


def test_demo_is_a_minimum_and_agrees_with_dense() -> None:
    problem = load_problem(seed=0)
    assert problem.is_demo
    assert problem.risk.space.dim == 1810
    found = numbers(run_report(problem))
    assert found["gradient_norm"].value < 1e-5  # type: ignore[operator]
    assert found["accuracy"].value > 0.99  # type: ignore[operator]
    assert found["agreement_with_dense"].value < 1e-10  # type: ignore[operator]
    assert found["smallest_eigenvalue"].value > 0  # type: ignore[operator]
    assert found["agreement_with_arpack"].value < 1e-10  # type: ignore[operator]
    assert found["wasserstein_distance"].value <= found["wasserstein_bound"].value  # type: ignore[operator]
    estimated = {name: f"{name}_dense" for name in ("trace", "frobenius_norm", "trace_layer_0")}
    for prefix in ("logdet", "ggn_logdet"):
        exact_names = [n for n in found if n.startswith(f"{prefix}_shift_")]
        estimated |= {f"{n}_estimate": n for n in exact_names if f"{n}_estimate" in found}
    assert len(estimated) == 3 + 2 * 8
    for name, exact in estimated.items():
        low, high = found[f"{name}_bracket"].value  # type: ignore[misc]
        truth = found[exact].value
        assert isinstance(truth, float)
        assert low is None or low <= truth, name
        assert high is None or truth <= high, name
    logdet, volume = found["logdet_shift_0"], found["log_volume_no_prior_threshold_0.01"]
    assert isinstance(logdet.value, float)
    assert isinstance(volume.value, float)
    dim = 1810
    ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    expected = ball + dim / 2 * math.log(0.02) - logdet.value / 2
    assert volume.value == pytest.approx(expected, abs=1e-8)
