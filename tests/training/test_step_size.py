"""α: exact on quadratics, the formula by another route, a status for everything else."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from curvops.errors import InputError
from curvops.risk import EmpiricalRisk
from curvops.training import Alpha, ExactAlpha, Quantity, exact_step, fit_step
from curvops.training.step_size import STATUSES
from tests.cases import randn
from tests.training.test_gradient_noise import diverging

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


def exact_fit(
    f: list[float], g: list[float], t: float, v: tuple[float, ...]
) -> tuple[Fraction, Fraction]:
    """α and its variance by the normal equations for f(t) − f(0), t f'(0), t f'(t), exactly."""
    f0, ft, g0, gt, length = (Fraction(x) for x in (*f, *g, t))
    vf0, vft, vg0, vgt = (Fraction(x) for x in v)
    rows = [(1, 1, ft - f0, vf0 + vft), (1, 0, length * g0, length**2 * vg0)]
    rows.append((1, 2, length * gt, length**2 * vgt))
    aa, ab, bb = (sum(r[i] * r[j] / r[3] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    ay, by = (sum(r[i] * r[2] / r[3] for r in rows) for i in (0, 1))
    det = aa * bb - ab * ab
    w1, w2 = (bb * ay - ab * by) / det, (aa * by - ab * ay) / det
    j1, j2 = 2 * w2 / w1**2, -2 / w1
    return -2 * w2 / w1 - 1, (j1**2 * bb - 2 * j1 * j2 * ab + j2**2 * aa) / det


def test_observations_of_any_size() -> None:
    """Exponents over the whole range of floats: no exception, and α and its error are exact."""
    draw = random.Random(0)
    checked = 0
    for case in range(2400):
        reach = (3, 20, 100, 320)[case % 4]

        def number(reach: int = reach) -> float:
            if draw.random() < 0.1:
                return 0.0
            exponent = draw.randint(-reach, min(reach, 307))
            return draw.choice((-1, 1)) * draw.uniform(1.0, 9.0) * 10.0**exponent

        f, g, t = [number(), number()], [number(), number()], abs(number())
        v = draw.choice((None, [0.0] * 4, [abs(number()) for _ in range(4)]))
        step = fit_step(f, g, t, v)
        if step.status == "undetermined":
            assert step.notes
            continue
        numbers = (step.alpha, step.stderr, *step.coefficients, *step.variances)
        assert not any(math.isnan(x) for x in numbers)
        weighed = all(0.0 < x < math.inf for x in step.variances)
        if step.status == "zero_step" or not math.isfinite(step.alpha) or not weighed:
            continue
        alpha, variance = exact_fit(f, g, t, step.variances)
        error = Fraction(step.alpha) - alpha
        # What is given is rounded too: to eps, by which a variance never falls short.
        assert error**2 <= Fraction(1e-6) ** 2 * (variance + alpha**2 + 1)
        if 1e-280 < step.stderr < 1e100:
            stderr_variance = Fraction(step.stderr) ** 2
            assert abs(stderr_variance - variance) <= Fraction(1e-6) * variance
        checked += 1
    assert checked > 500


def test_huge_observations_by_their_formula() -> None:
    step = fit_step([1e160, 1e170], [-1e80, 1e90], 1e60, [1e300] * 4)
    assert (step.alpha, step.status) == (-1.0, "linear")  # the slopes' noise is 1e150
    tiny = fit_step([-9.27e-30, -1.03e-179], [5.9e-62, 0.0], 1.7e298, [6.5e-213, 0.0, 6.8e27, 0.0])
    assert (tiny.alpha, tiny.status) == (1.0, "concave")
    apart = fit_step(
        [-1.017621129386212e17, 0.0], [-3.624557031790871e89, 9.764409759589112e-133],
        1.2856183542315253e287, None,
    )  # fmt: skip
    assert apart.status == "undetermined"
    assert "too far apart" in apart.notes[0]
    scaled = fit_step([2e300, 2e300], [-2e300, 2e300], 4.0, [0.0] * 4)
    assert (scaled.alpha, scaled.status) == (pytest.approx(1.0), "ok")
    unknown = fit_step([2.0, 0.0], [-2.0, 0.0], 2.0, [math.inf, 1.0, 1.0, 1.0])
    assert unknown.status == "undetermined"
    assert "not finite" in unknown.notes[0]


def test_variances_of_unequal_trust_by_the_formula() -> None:
    f, g, t = [-131.4, 1295.6], [0.0, 0.0143], 0.149
    step = fit_step(f, g, t, [0.0164, 1.396, 1698.2, 0.0])
    alpha, variance = exact_fit(f, g, t, step.variances)
    assert step.alpha == pytest.approx(float(alpha), rel=1e-9)
    assert step.stderr == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_a_step_on_a_diverged_risk_is_undetermined() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"], nn.MSELoss(), {"w": torch.full((3,), 1e30)},
        [(torch.ones(2, 3),) * 2],
    )  # fmt: skip
    step = exact_step(risk, torch.full((3,), -1.0))
    assert step.status == "undetermined"
    assert "not finite" in step.notes[0]


@pytest.mark.parametrize("make", [Alpha, partial(Alpha, end="own"), partial(ExactAlpha, every=7)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.filterwarnings("ignore:step .* exact_alpha failed")
def test_a_run_that_diverges_goes_on(make: Callable[[], Quantity], dtype: torch.dtype) -> None:
    quantity = make()
    records = [r for r in diverging([quantity], dtype).records if r.quantity == quantity.name]
    statuses = [r.values["status"] for r in records]
    assert set(statuses) <= {*STATUSES, "failed"}
    assert "ok" in statuses
    assert set(statuses[len(statuses) // 2 :]) <= {"undetermined", "failed"}
    assert all(r.values["alpha"] is not None for r in records if r.values["status"] == "ok")
