"""Learning coefficients: exact ones, error bars that hold, flags, and bad input."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.autodiff.ensemble import Ensemble
from curvops.errors import (
    DivergenceError,
    InputError,
    MissingDependencyError,
    NonFiniteError,
)
from curvops.linalg.estimate import UnconvergedWarning
from curvops.tensors import Space
from curvops.volume.coefficient_result import LearningCoefficient
from curvops.volume.learning_coefficient import local_learning_coefficient
from curvops.volume.spectral_form import SpectralForm
from tests.volume.deep_linear import deep_linear, exact

DOUBLE = torch.float64
FLAT = SpectralForm(2, torch.zeros(2, dtype=DOUBLE), None)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Quadratic:
    """½ Σ a w² at its minimum, in closed form: a risk as far as chains are concerned."""

    model = None
    normalizer, num_data, _data = 1000.0, 1000, (None,)

    def __init__(self, curvatures: Tensor) -> None:
        self.curvatures = curvatures
        self.theta = torch.zeros_like(curvatures)
        self.space = Space.flat(len(curvatures))
        self.dtype = curvatures.dtype

    def loss(self) -> Tensor:
        return torch.zeros((), dtype=self.dtype)

    def losses_and_gradients(self, thetas: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        gradients = self.curvatures.unsqueeze(1) * thetas
        return 0.5 * (thetas * gradients).sum(0), gradients


def closed(*curvatures: float) -> Any:
    return Quadratic(torch.tensor(curvatures, dtype=DOUBLE))


def quadratic(curvatures: Tensor, **choices: Any) -> EmpiricalRisk:
    """½ Σ a w² as the mean over P data of ½ P a_i w_i², at its minimum w = 0."""
    dim = len(curvatures)
    X = torch.diag((dim * curvatures).sqrt())
    data = list(zip(X.split(3), torch.zeros(dim, dtype=curvatures.dtype).split(3), strict=True))
    return EmpiricalRisk(
        lambda p, x: x @ p["w"],
        lambda f, y: 0.5 * (f - y).square().mean(),
        {"w": torch.zeros(dim, dtype=curvatures.dtype)},
        data,
        reduction="mean",
        **choices,
    )


def regression(num: int = 60, dim: int = 5) -> tuple[EmpiricalRisk, Tensor]:
    """Least squares at their solution, with residuals that do not vanish, and their Hessian."""
    X, y = draw(num, dim, seed=1), draw(num, seed=2)
    solution = torch.linalg.lstsq(X, y.unsqueeze(1)).solution[:, 0]
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"],
        lambda f, y: 0.5 * (f - y).square().mean(),
        {"w": solution},
        list(zip(X.split(10), y.split(10), strict=True)),
        reduction="mean",
        merge_batches=False,
    )
    return risk, X.T @ X / num


def expected(curvature: Tensor, heat: float, gamma: float) -> float:
    """½ Σ nβa/(nβa + γ): nβ E[L - L*] under a normal distribution."""
    values = heat * (torch.linalg.eigvalsh(curvature) if curvature.ndim == 2 else curvature)
    return float(0.5 * (values / (values + gamma)).sum())


def quietly(risk: EmpiricalRisk, **options: Any) -> LearningCoefficient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        return local_learning_coefficient(risk, **options)


# --------------------------------------------------------------------- exact coefficients


@pytest.mark.parametrize(("widths", "truth"), [((5, 3, 5), 6.5), ((4, 3, 8), 6.0)])
def test_deep_linear_networks_by_adjusted_chains(
    widths: tuple[int, int, int], truth: float
) -> None:
    """Of true rank 0 (Aoyagi & Watanabe 2005); at nβ = 1e4 a log-log term is left of (5, 3, 5)."""
    result = quietly(
        deep_linear(*widths),
        inverse_temperature=1e4,
        num_chains=64,
        num_draws=100,
        num_burnin=80,
        num_leapfrog=8,
    )
    assert result.rhat < 1.1
    assert result.value == pytest.approx(truth, rel=0.05)
    at_this_temperature = exact(*widths, heat=1e4)
    assert abs(at_this_temperature - truth) < 0.03 * truth
    assert abs(result.value - at_this_temperature) < 3 * result.stderr
    assert result.stderr < 0.1


@pytest.mark.parametrize(("widths", "truth"), [((5, 3, 5), 6.5), ((4, 3, 8), 6.0)])
def test_deep_linear_networks_by_sgld(widths: tuple[int, int, int], truth: float) -> None:
    result = quietly(
        deep_linear(*widths),
        method="sgld",
        inverse_temperature=1e4,
        num_chains=64,
        num_draws=800,
        num_burnin=800,
    )
    assert result.rhat < 1.1
    assert result.value == pytest.approx(truth, rel=0.1)
    error = result.value - exact(*widths, heat=1e4)
    assert -3 * result.stderr < error < result.bias + 3 * result.stderr
    assert result.bias < 0.1 * truth


def test_the_temperature_and_its_log_log_term() -> None:
    """λ(nβ) of (5, 3, 5) climbs to 6.5 like the inverse of log nβ; that of (4, 3, 8) is there."""
    values = [exact(5, 3, 5, heat=heat) for heat in (1e2, 1e4, 1e8, 1e12)]
    assert values == sorted(values)
    gaps = [6.5 - v for v in values]
    assert gaps[2] * math.log(1e8) == pytest.approx(gaps[3] * math.log(1e12), rel=0.15)
    assert exact(4, 3, 8, heat=1e8) == pytest.approx(6.0, abs=1e-3)
    result = quietly(
        deep_linear(5, 3, 5),
        inverse_temperature=100.0,
        num_chains=64,
        num_draws=60,
        num_burnin=40,
        num_leapfrog=6,
    )
    assert abs(result.value - values[0]) < 3 * result.stderr


@pytest.mark.parametrize("method", ["hmc", "sgld"])
def test_half_the_parameters_at_a_regular_minimum(method: str) -> None:
    curvatures = torch.logspace(-0.5, 0.5, 12, dtype=DOUBLE)
    result = local_learning_coefficient(
        quadratic(curvatures),
        method=method,
        inverse_temperature=1e4,
        num_chains=64,
        num_draws=100 if method == "hmc" else 600,
        num_burnin=60 if method == "hmc" else 400,
        seed=1,
    )
    assert result.converged
    assert result.value - result.bias == pytest.approx(6.0, rel=0.02)
    assert result.lower < 6.0 < result.upper
    assert result.num_batches == 1


def test_error_bars_hold_over_seeds() -> None:
    risk = closed(0.3, 1.0, 3.0, 10.0)
    truth, held = expected(risk.curvatures, 20.0, 2.0), 0
    for seed in range(50):
        result = quietly(
            risk,
            inverse_temperature=20.0,
            localization=2.0,
            num_chains=6,
            num_draws=60,
            num_burnin=30,
            num_leapfrog=3,
            seed=seed,
        )
        held += result.lower <= truth <= result.upper
    assert held >= 45


def test_localization_is_in_the_density() -> None:
    risk = closed(0.01, 0.1, 1.0, 10.0)
    for gamma in (0.5, 5.0, 50.0):
        result = local_learning_coefficient(
            risk, inverse_temperature=10.0, localization=gamma, num_chains=64
        )
        assert result.stderr < 0.02
        assert abs(result.value - expected(risk.curvatures, 10.0, gamma)) < 3.5 * result.stderr


# --------------------------------------------------------------------- mini-batches


def test_the_bias_of_mini_batches_is_told() -> None:
    """Gradients' noise adds to the variance; on a quadratic the reported bias is exact."""
    risk, _ = regression()
    results = [
        quietly(
            risk,
            method="sgld",
            localization=0.0,
            num_chains=64,
            num_draws=700,
            num_burnin=100,
            step_size=step,
        )
        for step in (0.01, 0.04)
    ]
    for result in results:
        assert result.num_batches == 6
        assert result.inverse_temperature == pytest.approx(60 / math.log(60))
        assert result.value - result.bias == pytest.approx(2.5, abs=3 * result.stderr)
        assert result.lower < 2.5 < result.upper
    assert results[1].bias > 3 * results[0].bias > 0
    assert results[1].value > 2.5 + 5 * results[1].stderr


def test_the_common_noise_of_mini_batches_is_in_the_error() -> None:
    risk, _ = regression()
    options: dict[str, Any] = {"method": "sgld", "num_draws": 160, "num_burnin": 40}
    values = [quietly(risk, num_chains=64, step_size=0.01, seed=s, **options) for s in range(6)]
    spread = float(torch.tensor([v.value for v in values]).std())
    stderr = sum(v.stderr for v in values) / len(values)
    assert spread < 1.5 * stderr
    # What 64 chains without anything in common would claim.
    assert stderr > 1.2 * values[0].samples.std() / values[0].ess ** 0.5


def test_the_learned_step_size_knows_of_the_mini_batches() -> None:
    risk, _ = regression()
    result = quietly(
        risk, method="sgld", localization=0.0, num_draws=150, num_burnin=400, batch_size=2
    )
    assert 0.02 * 2.5 < result.bias < 0.1 * 2.5  # 5 % is aimed at; without their noise, 70 %


def test_batch_size_cuts_the_data() -> None:
    risk, _ = regression()
    options = {"num_draws": 50, "num_burnin": 0, "step_size": 0.01}
    result = quietly(risk, method="sgld", batch_size=4, **options)
    assert result.num_batches == 15
    assert result.num_gradients == 50 * 8
    assert result.num_passes == math.ceil(2 + 50 / 15)
    assert len(risk._data) == 6


# --------------------------------------------------------------------- choices


@pytest.mark.parametrize("method", ["hmc", "sgld"])
def test_the_normalisation_of_the_loss_does_not_matter(method: str) -> None:
    """Mean or sum, batches cut in any way: the same chains, to rounding."""
    X, y = draw(24, 3, seed=1), draw(24, 2, seed=2)
    weight = torch.linalg.lstsq(X, y).solution
    values = []
    for reduction, size in (("mean", 24), ("sum", 24), ("mean", 7)):
        risk = EmpiricalRisk(
            lambda p, x: x @ p["w"],
            nn.MSELoss(reduction=reduction),
            {"w": weight},
            list(zip(X.split(size), y.split(size), strict=True)),
            merge_batches=24,
        )
        result = quietly(risk, method=method, num_draws=12, num_burnin=5, step_size=0.02)
        assert result.num_data == 24
        assert result.inverse_temperature == pytest.approx(24 / math.log(24))
        assert result.loss == pytest.approx(float((X @ weight - y).square().sum() / 24))
        values.append(result.value)
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("method", ["hmc", "sgld"])
def test_rmsprop_evens_out_scales(method: str) -> None:
    """Six decades of curvature: without it, chains would take a thousand steps to cross."""
    risk = closed(*torch.logspace(0, 6, 8).tolist())
    options: dict[str, Any] = {"method": method, "inverse_temperature": 100.0, "num_chains": 32}
    truth = expected(risk.curvatures, 100.0, 1.0)
    result = quietly(risk, preconditioner="rmsprop", **options)
    assert result.value - result.bias == pytest.approx(truth, abs=4 * result.stderr)
    assert result.preconditioner == "rmsprop"
    plain = quietly(risk, **options)
    assert result.ess > 1.5 * plain.ess
    assert not plain.converged


@pytest.mark.parametrize("method", ["hmc", "sgld"])
def test_columns_go_to_every_evaluation(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fixed by hand is not measured, so that rounding cannot send chains elsewhere."""
    risk, _ = regression()
    monkeypatch.setattr(Ensemble, "_seconds", lambda *_: pytest.fail("a choice was measured"))
    options: dict[str, Any] = {
        "method": method,
        "num_chains": 4,
        "num_draws": 10,
        "num_burnin": 20 if method == "hmc" else 80,
        "num_leapfrog": 2,
    }
    for columns in ("loop", "vmap", 3):
        first, second = (quietly(risk, columns=columns, **options) for _ in range(2))
        assert torch.equal(first.samples, second.samples)
    with pytest.raises(InputError, match="columns must be"):
        quietly(risk, columns="all")


@pytest.mark.parametrize("preconditioner", ["none", "diagonal", "lowrank", "dense", "given"])
def test_coordinates_change_the_speed_and_not_the_answer(preconditioner: str) -> None:
    """Four decades of curvature, not along the axes, by trajectories of three steps."""
    X = draw(40, 8, seed=1) * torch.logspace(0, -2, 8, dtype=DOUBLE)
    data = [(X @ torch.linalg.qr(draw(8, 8)).Q, torch.zeros(40, dtype=DOUBLE))]
    zero = {"w": torch.zeros(8, dtype=DOUBLE)}
    risk = EmpiricalRisk(lambda p, x: x @ p["w"], nn.MSELoss(), zero, data)
    hessian = 2 * data[0][0].T @ data[0][0] / 40
    given = SpectralForm(8, *torch.linalg.eigh(hessian))
    result = quietly(
        risk,
        inverse_temperature=1e4,
        num_chains=32,
        num_draws=60,
        num_burnin=60,
        num_leapfrog=3,
        preconditioner=given if preconditioner == "given" else preconditioner,
    )
    assert result.preconditioner == preconditioner
    truth = expected(hessian, 1e4, 1.0)
    if preconditioner in ("dense", "given"):
        assert result.value == pytest.approx(truth, abs=4 * result.stderr)
        assert result.ess > 400
    elif preconditioner == "none":
        assert abs(result.value - truth) > 3 * result.stderr
        assert not result.converged
    assert (result.num_matvecs > 0) == (preconditioner in ("lowrank", "dense"))


def test_the_step_size_is_learned_or_kept() -> None:
    risk = closed(*[1.0] * 6)
    learned = local_learning_coefficient(risk, inverse_temperature=1e4)
    assert learned.acceptance == pytest.approx(0.8, abs=0.1)
    assert learned.step_size == pytest.approx(0.012, rel=0.6)
    langevin = local_learning_coefficient(closed(1.0), method="sgld", inverse_temperature=1e4)
    assert langevin.acceptance == pytest.approx(0.95, abs=0.03)
    # With few directions a bias of 5 % is reached first: (η/8) Σ a = 0.05 P/2, so η = 0.2/a.
    assert langevin.step_size == pytest.approx(0.2e-4, rel=0.15)
    many = local_learning_coefficient(
        closed(*[1.0] * 600), method="sgld", inverse_temperature=1e4, num_draws=1000
    )
    assert many.step_size < 0.1e-4  # a test would not accept more
    assert many.acceptance == pytest.approx(0.95, abs=0.03)
    given = quietly(risk, inverse_temperature=1e4, step_size=0.005, num_draws=20)
    assert given.step_size == 0.005
    assert quietly(risk, method="sgld", step_size=1e-3, num_draws=20).acceptance is None


def test_counts_and_shapes() -> None:
    risk = closed(*[1.0] * 6)
    result = quietly(risk, num_chains=3, num_draws=10, num_burnin=7, num_leapfrog=1, step_size=0.05)
    assert result.samples.shape == result.distances.shape == (3, 10)
    assert result.burnin.shape == (3, 7)
    assert (result.num_chains, result.num_draws) == (3, 10)
    # The centre, the start of the burn-in and of the draws, and every leapfrog step.
    assert result.num_passes == 1 + 2 + 17
    assert result.num_gradients == 3 * (2 + 17)
    assert result.value == pytest.approx(float(result.samples.mean()))
    assert result.value == pytest.approx(float(result.per_chain.mean()))
    torch.testing.assert_close(
        result.losses, result.loss + result.samples / result.inverse_temperature
    )
    assert (result.distances > 0).all()


def test_a_part_of_the_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    X, y = draw(20, 3), draw(20, 2, seed=1)
    risk = EmpiricalRisk(model, nn.MSELoss(), model, [(X, y)])
    with torch.no_grad():
        hidden = torch.cat([model[0](X), torch.ones(20, 1, dtype=DOUBLE)], 1)
        solution = torch.linalg.lstsq(hidden, y).solution.T
    risk = risk.at(risk.params | {"1.weight": solution[:, :-1], "1.bias": solution[:, -1]})
    result = quietly(
        risk,
        scope="1.*",
        inverse_temperature=50.0,
        localization=10.0,
        num_chains=64,
        num_draws=60,
    )
    curvature = torch.block_diag(*[2 * hidden.T @ hidden / 20] * 2)
    assert abs(result.value - expected(curvature, 50.0, 10.0)) < 4 * result.stderr
    assert result.stderr < 0.1


# --------------------------------------------------------------------- what is left untouched


@pytest.mark.parametrize("method", ["hmc", "sgld"])
def test_module_mode_and_random_state_remain(method: str, global_rng_untouched: None) -> None:
    """A module in train mode is sampled in eval mode: its dropout does nothing to the chains."""
    state = torch.get_rng_state()
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = model.double().train()
    torch.set_rng_state(state)
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    data = [(draw(8, 3), torch.arange(8) % 2)]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, check_deterministic=False)
    options: dict[str, Any] = {"method": method, "num_draws": 8, "num_burnin": 4, "step_size": 0.01}
    in_train = quietly(risk, **options)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.eval()
    in_eval = quietly(EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data), **options)
    assert in_train.value == pytest.approx(in_eval.value, rel=1e-6)


def test_seeds() -> None:
    risk = closed(*[1.0] * 3)
    options = {"num_draws": 20, "num_burnin": 20}
    first, again, other = (quietly(risk, seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(first.samples, again.samples)
    assert not torch.equal(first.samples, other.samples)
    drawn = quietly(risk, seed=torch.Generator().manual_seed(3), **options)
    assert drawn.num_draws == 20


# --------------------------------------------------------------------- doubts


def test_too_short_chains_say_so() -> None:
    curvatures = torch.logspace(-4, 4, 20, dtype=DOUBLE)
    with pytest.warns(UnconvergedWarning, match=r"not converged.*effective sample size.*Raise"):
        result = local_learning_coefficient(
            closed(*curvatures.tolist()), num_draws=20, num_burnin=20, num_chains=2
        )
    assert not result.converged
    assert "effective sample size is" in result.reason
    assert "not converged: " in str(result)


def test_sgld_that_has_not_arrived_says_so() -> None:
    """At steps of 1e-6 the chains are still on their way from the centre."""
    result = quietly(
        deep_linear(4, 3, 8),
        method="sgld",
        inverse_temperature=1e4,
        num_chains=16,
        num_draws=500,
        num_burnin=100,
        step_size=1e-6,
    )
    assert not result.converged
    assert "R-hat is" in result.reason
    assert result.value < 4.0


def test_steps_that_bend_the_answer_say_so() -> None:
    result = quietly(
        closed(*[1.0] * 4),
        method="sgld",
        inverse_temperature=100.0,
        step_size=0.02,
    )
    assert "bias of up to" in result.reason
    assert result.value > 2.2


def test_a_point_that_is_no_minimum_says_so() -> None:
    risk = quadratic(torch.ones(3, dtype=DOUBLE)).at(torch.full((3,), 0.5, dtype=DOUBLE))
    result = quietly(risk, inverse_temperature=100.0, num_draws=50)
    assert not result.converged
    assert "lie below L(θ*): the point is no minimum" in result.reason
    assert result.value < 0


def test_rounding_that_drowns_the_loss_says_so() -> None:
    """A loss of 1000 in float32 is known to 6e-5; times 1e6 nothing is left of λ."""
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"],
        lambda f, y: 1000 + 0.5 * (f - y).square().mean(),
        {"w": torch.zeros(2)},
        [(torch.eye(2), torch.zeros(2))],
        reduction="mean",
    )
    result = quietly(risk, inverse_temperature=1e6, num_draws=30)
    assert not result.converged
    assert "use risk.to(torch.float64)" in result.reason


def test_large_steps_are_rejected_and_told() -> None:
    risk = closed(*[1.0] * 20)
    result = quietly(risk, inverse_temperature=1e4, step_size=0.0142, num_leapfrog=1)
    assert "of moves were accepted: the step size is too large" in result.reason


# --------------------------------------------------------------------- errors


@pytest.mark.parametrize("method", ["hmc", "sgld"])
def test_a_step_size_that_is_far_too_large_is_an_error(method: str) -> None:
    risk = closed(*[1.0] * 20)
    with pytest.raises(DivergenceError, match=r"step_size=0\.5.*smaller.*auto"):
        local_learning_coefficient(
            risk, method=method, inverse_temperature=1e4, step_size=0.5, num_draws=50
        )


def nan_risk(where: float) -> EmpiricalRisk:
    """√(w - where)²: NaN below."""
    return EmpiricalRisk(
        lambda p, x: x * (p["w"] - where).sqrt(),
        nn.MSELoss(),
        {"w": torch.zeros(1, dtype=DOUBLE)},
        [(torch.ones(2, 1, dtype=DOUBLE), torch.zeros(2, 1, dtype=DOUBLE))],
    )


def test_a_loss_that_is_nan_at_the_point_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="the loss at the risk's point is nan"):
        local_learning_coefficient(nan_risk(1.0))


def test_a_loss_that_is_nan_around_the_point() -> None:
    """HMC stays where it is finite; SGLD cannot."""
    result = quietly(nan_risk(-1.0), num_draws=50)
    assert torch.isfinite(result.samples).all()
    with pytest.raises(DivergenceError, match="NaN"):
        local_learning_coefficient(nan_risk(-1.0), method="sgld", step_size=0.1)


def test_one_datum_has_no_default_temperature() -> None:
    X, y = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"], nn.MSELoss(), {"w": torch.zeros(1, dtype=DOUBLE)}, [(X, y)]
    )
    with pytest.raises(InputError, match=r"one datum.*inverse_temperature="):
        local_learning_coefficient(risk)
    result = local_learning_coefficient(risk, inverse_temperature=1e3, num_draws=100)
    assert result.value == pytest.approx(0.5, abs=4 * result.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nuts"}, 'method must be "hmc" or "sgld"; got \'nuts\''),
        ({"preconditioner": "adam"}, 'preconditioner must be "none", "rmsprop", "diagonal"'),
        ({"preconditioner": FLAT}, "preconditioner has the dimension 2; the risk has 1"),
        ({"num_chains": 0}, "num_chains is 0"),
        ({"num_draws": 3}, "num_draws is 3; it must be an integer, at least 4"),
        ({"num_draws": 10.0}, "num_draws is 10.0"),
        ({"num_burnin": -1, "step_size": 0.1}, "num_burnin is -1"),
        ({"num_burnin": 5}, "num_burnin is 5; it must be an integer, at least 20, to learn"),
        ({"num_leapfrog": 0}, "num_leapfrog is 0"),
        ({"step_size": 0.0}, 'step_size is 0.0; it must be positive and finite, or "auto"'),
        ({"step_size": "small"}, "step_size is 'small'"),
        ({"step_size": math.nan}, "step_size is nan"),
        ({"localization": -1.0}, "localization is -1.0"),
        ({"localization": math.inf}, "localization is inf"),
        ({"inverse_temperature": 0.0}, "inverse_temperature is 0.0"),
        ({"inverse_temperature": math.nan}, "inverse_temperature is nan"),
        ({"batch_size": 4}, 'batch_size is 4; only method="sgld"'),
        ({"batch_size": 0, "method": "sgld"}, "batch_size is 0"),
        ({"seed": -1}, "seed must be"),
        ({"scope": "v*"}, "matches none of the parameters"),
    ],
)
def test_bad_choices_are_named_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        local_learning_coefficient(nan_risk(1.0), **options)


def test_a_risk_without_a_loss() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(InputError, match="loss=None"):
        local_learning_coefficient(EmpiricalRisk(model, None, model, [(torch.ones(3, 2), None)]))


# --------------------------------------------------------------------- the result


def test_the_result_prints_and_converts(capsys: pytest.CaptureFixture[str]) -> None:
    risk = closed(*[1.0] * 4)
    result = local_learning_coefficient(risk, inverse_temperature=1e4, progress=True)
    assert "8 chains (hmc)" in capsys.readouterr().err
    assert str(result).startswith(f"λ̂ = {result.value:.3f} ± ")
    assert "nβ = 1e+04 (hmc, 8 chains of 200 draws, ESS" in str(result)
    assert float(result) == result.value
    plain = result.to_dict()
    assert plain["value"] == result.value
    assert len(plain["samples"]) == 8
    assert plain["reason"] == ""
    langevin = local_learning_coefficient(risk, method="sgld", inverse_temperature=1e4)
    assert ", bias up to " in str(langevin)


def test_pandas_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result = quietly(closed(*[1.0] * 2), num_draws=20, num_burnin=20)

    class Pandas:
        DataFrame = dict

    monkeypatch.setitem(__import__("sys").modules, "pandas", Pandas)
    table = result.to_pandas()
    assert list(table) == ["chain", "draw", "coefficient", "loss", "distance"]
    assert {len(column) for column in table.values()} == {160}
    assert table["coefficient"][20] == float(result.samples[1, 0])
    assert (table["chain"][20], table["draw"][20]) == (1, 0)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="needs pandas"):
        result.to_pandas()
