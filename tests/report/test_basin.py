"""The basin's volume by method in the report: at a minimum, for the whole and for the end of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk, basin_volume
from curvops.report import Options, Problem, run_report
from curvops.report.blocks import Figure, Note, Number, Table
from curvops.volume import restrict


def minimum(inputs: int, classes: int) -> EmpiricalRisk:
    """Softmax regression with weight decay, at its minimum by Newton's method."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, inputs, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (60,), generator=generator)
    sizes = (classes, inputs), (classes,)
    theta = torch.zeros(classes * (inputs + 1), dtype=torch.float64)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        weight = flat[: classes * inputs].reshape(sizes[0])
        f = X @ weight.T + flat[classes * inputs :]
        return nn.functional.cross_entropy(f, y) + 0.05 * flat.square().sum()

    for _ in range(20):
        gradient, hessian = torch.func.grad(loss)(theta), torch.func.hessian(loss)(theta)
        theta = theta - torch.linalg.solve(hessian, gradient)
    params = {
        "weight": theta[: classes * inputs].reshape(sizes[0]),
        "bias": theta[classes * inputs :],
    }

    def model(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return x @ p["weight"].T + p["bias"]

    return EmpiricalRisk(model, nn.CrossEntropyLoss(), params, [(X, y)], weight_decay=0.1)


def section(risk: EmpiricalRisk, **options: object) -> tuple[dict[str, Number], list[object]]:
    report = run_report(
        Problem(risk, "minimum", ""),
        Options(only=("basin",), **options),  # type: ignore[arg-type]
    )
    (outcome,) = report.outcomes
    assert outcome.status == "ok", outcome.details or outcome.reason
    return dict(outcome.result.numbers), list(outcome.result.blocks)


def test_three_methods_on_a_small_minimum() -> None:
    risk = minimum(3, 2)
    found, blocks = section(risk, seed=3)
    exact = basin_volume(risk, "quadratic", threshold=1e-2, measure="gaussian")
    value = found["log_p_whole_quadratic_model"].value
    assert value == pytest.approx(exact.log_volume, abs=1e-6)
    star, bridge = (found[f"log_p_whole_{name}"] for name in ("star_domain", "bridge"))
    assert star.value == pytest.approx(value, abs=0.5)
    assert bridge.value == pytest.approx(value, abs=2.0)
    assert float(found["log_p_whole_bridge_chernoff"].value) > float(bridge.value)  # type: ignore[arg-type]
    assert float(found["log_p_whole_star_domain_ess"].value) > 10  # type: ignore[arg-type]
    assert star.headline
    assert bridge.call == ""
    assert "basin_volume(risk, 'bridge'" in bridge.note
    assert sum(isinstance(block, Figure) for block in blocks) == 1
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[0] for row in table.rows] == [
        "quadratic model", "star domain", "star, isotropic", "bridge",
    ]  # fmt: skip
    assert table.rows[1][3] == "converged"


def test_the_end_of_a_larger_one_has_its_own_picture() -> None:
    risk = minimum(39, 8)
    assert risk.space.dim == 320
    found, blocks = section(risk)
    assert {"log_p_whole_quadratic_model", "log_p_whole_star_domain"} <= set(found)
    assert "log_p_whole_bridge" not in found
    part = basin_volume(risk, "quadratic", threshold=1e-2, measure="gaussian", scope="bias")
    assert found["log_p_last_quadratic_model"].value == pytest.approx(part.log_volume, abs=1e-6)
    assert found["log_p_last_bridge"].value == pytest.approx(part.log_volume, abs=2.0)
    assert sum(isinstance(block, Figure) for block in blocks) == 2


def test_without_the_dense_hessian_there_is_still_a_star_domain() -> None:
    found, _ = section(restrict(minimum(39, 8), "weight"), max_dense=10)
    assert "log_p_whole_quadratic_model" not in found
    assert found["log_p_whole_star_domain"].value is not None
    assert "'lowrank'" in found["log_p_whole_star_domain"].call


def test_where_there_is_no_scale_it_says_so() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"],
        nn.MSELoss(),
        {"w": torch.zeros(3)},
        [(torch.ones(4, 3), torch.ones(4))],
    )
    found, blocks = section(risk)
    assert found == {}
    assert isinstance(blocks[0], Note)
    assert "wide" in blocks[0].text
