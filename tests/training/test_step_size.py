"""α: exact on quadratics, the formula by another route, a status for everything else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from curvops.errors import InputError
from curvops.risk import EmpiricalRisk
from curvops.training import exact_step, fit_step
from tests.cases import randn

mpmath = pytest.importorskip("mpmath")


def quadratic_fit(ratio: float, variances: list[float], t: float = 3.0) -> float:
    """α of a step to ``ratio`` times the minimum of a parabola, observed without error."""
    minimum = t / ratio
    q, dq = (lambda s: 0.7 + (s - minimum) ** 2 / 5), (lambda s: 2 * (s - minimum) / 5)
    return fit_step([q(0), q(t)], [dq(0), dq(t)], t, variances).alpha


@pytest.mark.parametrize(("ratio", "alpha"), [(1.0, 0.0), (2.0, 1.0), (0.5, -0.5), (3.0, 2.0)])
@pytest.mark.parametrize("variances", [[1, 1, 1, 1], [0, 0, 0, 0], [1e-3, 5, 2, 1e-6]])
def test_noiseless_quadratics(ratio: float, alpha: float, variances: list[float]) -> None:
    assert quadratic_fit(ratio, variances) == pytest.approx(alpha, abs=1e-12)


def test_the_fit_is_the_formula_in_fifty_digits() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        f, g, v = generator.normal(size=2), generator.normal(size=2), generator.gamma(1.0, size=4)
        t = float(np.exp(generator.normal()))
        with mpmath.workdps(50):
            phi = mpmath.matrix([[1, 0, 0], [1, t, t * t], [0, 1, 0], [0, 1, 2 * t]])
            weight = mpmath.diag([1 / mpmath.mpf(x) for x in v])
            y = mpmath.matrix([*f, *g])
            w = mpmath.lu_solve(phi.T * weight * phi, phi.T * weight * y)
            alpha = float(t / (-w[1] / (2 * w[2])) - 1)
        found = fit_step(f, g, t, v)
        assert found.alpha == pytest.approx(alpha, rel=1e-9)
        np.testing.assert_allclose(found.coefficients, [float(x) for x in w], rtol=1e-9)


def test_the_standard_error_is_that_of_simulated_noise() -> None:
    generator = np.random.default_rng(1)
    truth, v = np.array([2.0, 0.0, -2.0, 0.0]), np.array([4e-4, 9e-4, 1e-4, 16e-4])
    draws = truth + generator.normal(size=(4000, 4)) * np.sqrt(v)
    alphas = [fit_step(d[:2], d[2:], 2.0, v).alpha for d in draws]
    stderr = fit_step(truth[:2], truth[2:], 2.0, v).stderr
    assert np.std(alphas) == pytest.approx(stderr, rel=0.05)


@pytest.mark.parametrize("eta", [1e-6, 0.03, 0.1, 1.0, 40.0])
def test_exact_step_of_gradient_descent(eta: float) -> None:
    X, y = randn(12, 4, seed=1), randn(12, 2, seed=2)
    theta = randn(2, 4, seed=3)
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"].T, nn.MSELoss(), {"w": theta}, [(X[:5], y[:5]), (X[5:], y[5:])]
    )
    g = risk.gradient()
    H = torch.func.hessian(lambda w: nn.functional.mse_loss(X @ w.reshape(2, 4).T, y))(
        theta.reshape(-1)
    )
    closed = float(eta * (g @ H @ g) / (g @ g) - 1)
    exact = exact_step(risk, -eta * g)
    assert exact.alpha == pytest.approx(closed, abs=1e-12 * max(1.0, abs(closed)))
    # The fit sees the loss and the slope at both ends, and is the same on a quadratic.
    d = -eta * g
    t = float(d.norm())
    end = risk.at(theta.reshape(-1) + d)
    f = [float(risk.loss()), float(end.loss())]
    slopes = [float(risk.gradient() @ d) / t, float(end.gradient() @ d) / t]
    fitted = fit_step(f, slopes, t, [0.0] * 4)
    assert fitted.alpha == pytest.approx(closed, abs=1e-12 * max(1.0, abs(closed)))
    assert exact.losses == pytest.approx(f)
    assert exact(t) == pytest.approx(f[1])


def test_statuses() -> None:
    one = [1.0, 1.0, 1.0, 1.0]
    assert fit_step([2, 0], [-2, 0], 2, one).status == "ok"
    assert fit_step([1, -2], [-1, -5], 1, one).status == "concave"
    assert fit_step([1, 0], [-1, -1], 1, one).status == "linear"
    assert fit_step([1, 4], [1, 5], 1, one).status == "uphill"
    assert fit_step([1, 4], [0, 6], 1, one).status == "uphill"
    zero = fit_step([1, 1], [0, 0], 0, one)
    assert (zero.alpha, zero.status) == (-1.0, "zero_step")
    single = fit_step([2, 0], [-2, 0], 2, None)
    assert single.status == "undetermined"
    assert single.alpha == pytest.approx(0.0)
    assert fit_step([2, 0], [-2, 0], 2, [math.nan] * 4).status == "undetermined"
    diverged = fit_step([2, math.inf], [-2, 0], 2, one)
    assert diverged.status == "undetermined"
    assert "not finite" in diverged.notes[0]
    assert fit_step([0, 0], [0, 0], 1, one).status == "linear"


@pytest.mark.parametrize("length", [1e-160, 1e-300, 5e-324, 1e160])
@pytest.mark.parametrize("variances", [[1e-2] * 4, [0.0] * 4, None])
def test_tiny_and_huge_steps(length: float, variances: list[float] | None) -> None:
    with np.errstate(all="raise", under="ignore"):
        step = fit_step([1.0, 1.0], [-1.0, -1.0], length, variances)
    assert math.isfinite(step.alpha)
    assert math.isfinite(step.stderr)
    if length < 1:
        assert step.alpha == pytest.approx(-1.0)
        assert step.status == ("linear" if variances else "undetermined")


def test_zero_variances_are_floored_with_a_note() -> None:
    step = fit_step([2, 0], [-2, 0], 2, [0.0, 1.0, 0.0, 1.0])
    assert "f(0), f'(0)" in step.notes[0]
    assert step.alpha == pytest.approx(0.0, abs=1e-12)
    assert min(step.variances) > 0


def test_prints_and_converts() -> None:
    step = fit_step([2, 2], [-2, 2], 4, [0.1] * 4)
    assert str(step) == "α = 1 ± 0.1"
    assert float(step) == step.to_dict()["alpha"]
    assert "(linear)" in str(fit_step([1, 0], [-1, -1], 1, [1.0] * 4))
    assert isinstance(step.to_dict()["losses"], list)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], 1.0), "two losses"),
        (([1.0, 2.0], [1.0, 2.0], -1.0), "length"),
        (([1.0, 2.0], [1.0, 2.0], 1.0, [1.0, 1.0]), "four nonnegative"),
        (([1.0, 2.0], [1.0, 2.0], 1.0, [1.0, 1.0, 1.0, -1.0]), "four nonnegative"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_step(*arguments)


def test_exact_step_takes_one_step_even_of_length_zero() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"], nn.MSELoss(), {"w": torch.ones(3)}, [(torch.ones(2, 3),) * 2]
    )
    assert exact_step(risk, torch.zeros(3)).status == "zero_step"
    with pytest.raises(InputError, match="one step"):
        exact_step(risk, torch.zeros(3, 2))
    tiny = exact_step(risk, torch.full((3,), 1e-30))
    assert tiny.length == pytest.approx(math.sqrt(3) * 1e-30)
