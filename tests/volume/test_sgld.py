"""SGLD: the step's formula, mini-batches without bias, what steps add, and chains that run away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.errors import DivergenceError, InputError
from curvops.volume.cost import Cost
from curvops.volume.forms import spectral_form
from curvops.volume.localized import LocalizedPosterior, evaluating
from curvops.volume.moves import evaluate
from curvops.volume.sgld import MiniBatches, langevin
from curvops.volume.spectral_form import SpectralForm

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DOUBLE)


class Stream:
    """Batches that are read again for every pass."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def network(sizes: tuple[int, ...] = (7, 7, 4), **choices: object) -> EmpiricalRisk:
    """A small net on ragged batches, its parameters away from the module's own."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = draw(sum(sizes), 3, seed=1), torch.arange(sum(sizes)) % 2
    data = list(zip(X.split(sizes), y.split(sizes), strict=True))
    params = {n: draw(*p.shape, seed=i) for i, (n, p) in enumerate(model.named_parameters())}
    choices.setdefault("merge_batches", False)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), params, data, **choices)  # type: ignore[arg-type]


def quadratic() -> EmpiricalRisk:
    """½ w², on two data."""
    return EmpiricalRisk(
        lambda p, x: x * p["w"],
        lambda f, y: 0.5 * (f - y).square().mean(),
        {"w": torch.zeros(1, dtype=DOUBLE)},
        [(torch.ones(2, 1, dtype=DOUBLE), torch.zeros(2, 1, dtype=DOUBLE))],
        reduction="mean",
    )


def run(posterior: LocalizedPosterior, chains: int, step_size: float, steps: int) -> Tensor:
    x, rng = torch.zeros(chains, len(posterior.center), dtype=DOUBLE), generator()
    for _ in range(steps):
        _, x = langevin(posterior, x, step_size, rng)
    return x


def by_hand(risk: EmpiricalRisk, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient by torch.func, over all data, in one batch."""
    assert risk.model is not None
    X = torch.cat([b.X for b in risk._data])
    y = torch.cat([b.y for b in risk._data])

    def loss(theta: Tensor) -> Tensor:
        params = dict(zip(risk.space.names, risk.space.unflatten(theta), strict=True))
        f = torch.func.functional_call(risk.model, params, (X,))
        return nn.functional.cross_entropy(f, y) + risk.weight_decay / 2 * theta.square().sum()

    gradient, value = torch.func.grad_and_value(loss)(theta)
    return value, gradient


# --------------------------------------------------------------------- the density


@pytest.mark.parametrize("framed", [False, True])
def test_the_density_is_the_formula(framed: bool) -> None:
    risk = network(weight_decay=0.3)
    dim = risk.space.dim
    posterior = LocalizedPosterior.of(risk, inverse_temperature=40.0, localization=2.0)
    S = torch.eye(dim, dtype=DOUBLE)
    if framed:
        form = SpectralForm(dim, draw(dim, seed=5).abs(), torch.linalg.qr(draw(dim, dim)).Q)
        posterior = posterior.framed(form.root(lambda x: x + 0.1))
        assert posterior.frame is not None
        S = posterior.frame.forward(S)
    z = draw(5, dim, seed=3)
    points = evaluate(posterior, z)
    for k in range(5):
        offset = S @ z[k]
        value, gradient = by_hand(risk, risk.theta + offset)
        rise = 40.0 * (value - by_hand(risk, risk.theta)[0])
        torch.testing.assert_close(points.value[k], -rise - offset @ offset, rtol=1e-9, atol=1e-9)
        slope = S.T @ (-40 * gradient - 2 * offset)
        torch.testing.assert_close(points.gradient[k], slope, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(posterior.rises(points)[k], rise, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(posterior.distances(z)[k], offset.norm(), rtol=1e-12, atol=0)
        if not framed:
            loss_gradient = posterior.loss_gradients(points)[k]
            torch.testing.assert_close(loss_gradient, gradient, rtol=1e-8, atol=1e-9)


def test_a_normal_distribution_is_a_standard_one_in_its_round_frame() -> None:
    """The rotation is right: log π = -½‖z‖² whatever the eigenvectors."""
    A = draw(6, 6)
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"], nn.MSELoss(), {"w": torch.zeros(6, dtype=DOUBLE)}, [(A, 0 * A[0])]
    )
    posterior = LocalizedPosterior.of(risk, inverse_temperature=50.0, localization=2.0)
    form, _ = spectral_form(Cost(risk), "dense")
    round_one = posterior.framed(posterior.round_frame(form))
    z = draw(4, 6, seed=2)
    value, gradient = round_one(z)
    torch.testing.assert_close(value, -0.5 * z.square().sum(1))
    torch.testing.assert_close(gradient, -z)


def test_flat_directions_have_a_frame() -> None:
    flat = SpectralForm(2, torch.zeros(2, dtype=DOUBLE), None)
    half = SpectralForm(2, torch.tensor([0.0, 4.0], dtype=DOUBLE), None)
    posterior = LocalizedPosterior.of(quadratic(), inverse_temperature=1.0, localization=0.0)
    identity = torch.eye(2, dtype=DOUBLE)
    torch.testing.assert_close(posterior.round_frame(flat).forward(identity), identity)
    stretched = posterior.round_frame(half).forward(identity).diagonal()
    torch.testing.assert_close(stretched, torch.tensor([0.5e4, 0.5], dtype=DOUBLE))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_density_does_not_depend_on_the_reduction(reduction: str) -> None:
    """MSELoss averages over outputs too; n β L is β times the whole sum in any case."""
    X, y, theta = draw(6, 3), draw(6, 2, seed=1), draw(3, 2, seed=2)
    data = [(X[:4], y[:4]), (X[4:], y[4:])]
    risk = EmpiricalRisk(
        lambda p, x: x @ p["w"],
        nn.MSELoss(reduction=reduction),
        {"w": torch.zeros_like(theta)},
        data,
    )
    posterior = LocalizedPosterior.of(risk, inverse_temperature=6.0, localization=0.0)
    value, _ = posterior(theta.reshape(1, -1))
    expected = -((X @ theta - y).square().sum() - y.square().sum())
    torch.testing.assert_close(value[0], expected)


# --------------------------------------------------------------------- steps


def test_one_step_is_the_formula() -> None:
    risk = network()
    posterior = LocalizedPosterior.of(risk, inverse_temperature=40.0, localization=2.0)
    x = 0.1 * draw(3, risk.space.dim, seed=3)
    points, moved = langevin(posterior, x, 0.01, generator(9))
    noise = torch.randn(x.shape, generator=generator(9), dtype=DOUBLE)
    for k in range(3):
        _, gradient = by_hand(risk, risk.theta + x[k])
        expected = x[k] - 0.005 * (40 * gradient + 2 * x[k]) + 0.1 * noise[k]
        torch.testing.assert_close(moved[k], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(points.x, x)


def test_stationary_variance_on_a_quadratic() -> None:
    """1/(a (1 - ηa/4)): what the discretisation adds, and what the reported bias says."""
    x = run(LocalizedPosterior.of(quadratic(), 3.0, 1.0), 4000, 0.4, 40)
    assert float(x.var()) == pytest.approx(1 / (4 * (1 - 0.4)), rel=0.08)


# --------------------------------------------------------------------- mini-batches


@pytest.mark.parametrize("batch_size", [None, 5])
def test_batches_average_to_the_whole(batch_size: int | None) -> None:
    risk = network(weight_decay=0.1)
    posterior = LocalizedPosterior.of(risk, inverse_temperature=40.0, localization=2.0)
    batches = MiniBatches(posterior, batch_size, generator())
    assert len(batches) == (3 if batch_size is None else 4)
    z = 0.3 * draw(2, risk.space.dim, seed=3)
    value, gradient = posterior(z)
    parts = [batches._through(batch) for batch in batches._data]
    values, gradients = zip(*(part(z) for part in parts), strict=True)
    assert not torch.allclose(values[0], values[1])
    torch.testing.assert_close(torch.stack(values).mean(0), value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient, rtol=1e-9, atol=1e-9)
    for part in parts:  # the loss at the centre is that of the same data
        assert float(part(torch.zeros_like(z))[0].abs().max()) < 1e-10


def test_kept_batches_are_drawn_with_replacement() -> None:
    posterior = LocalizedPosterior.of(network(), inverse_temperature=40.0, localization=2.0)
    seen = [
        int(part.risk.num_data) for part in islice(MiniBatches(posterior, None, generator()), 600)
    ]
    assert seen.count(4) == pytest.approx(200, abs=4 * math.sqrt(600 * 2 / 9))
    assert any(a == b == 4 for a, b in pairwise(seen))
    again = [
        int(part.risk.num_data) for part in islice(MiniBatches(posterior, None, generator()), 600)
    ]
    assert seen == again


def test_streamed_batches_come_in_their_order() -> None:
    first = network()
    batches = [(b.X, b.y) for b in first._data]
    risk = EmpiricalRisk(
        first.model,
        nn.CrossEntropyLoss(),
        first.params,
        Stream(batches),  # type: ignore[arg-type]
        cache_data=0,
        merge_batches=False,
    )
    posterior = LocalizedPosterior.of(risk, inverse_temperature=40.0, localization=2.0)
    seen = [part.risk.num_data for part in islice(MiniBatches(posterior, None, generator()), 6)]
    assert seen == [7, 7, 4, 7, 7, 4]


def test_one_batch_is_all_data() -> None:
    posterior = LocalizedPosterior.of(network((18,)), inverse_temperature=40.0, localization=2.0)
    batches = MiniBatches(posterior, None, generator())
    assert len(batches) == 1
    assert next(iter(batches)) is posterior


def test_batches_that_hang_together_are_not_cut() -> None:
    X, y = draw(12, 3), draw(12, 1, seed=1)
    risk = EmpiricalRisk(
        lambda p, x: (x - x.mean(0)) @ p["w"], nn.MSELoss(), {"w": draw(3, 1, seed=2)}, [(X, y)]
    )
    posterior = LocalizedPosterior.of(risk, inverse_temperature=1.0, localization=1.0)
    MiniBatches(posterior, None, generator())
    with pytest.raises(InputError, match=r"batch_size is 4.*depend on what else is in the batch"):
        MiniBatches(posterior, 4, generator())


# --------------------------------------------------------------------- trouble


@pytest.mark.parametrize("localization", [0.0, 1.0])
def test_chains_that_run_away_are_named(localization: float) -> None:
    """By the distance where the localisation bounds it, else when nothing is finite any more."""
    posterior = LocalizedPosterior.of(quadratic(), 3.0, localization)
    with pytest.raises(
        DivergenceError, match=r"[1-4] of 4 chains diverged at step_size=1e\+03.*auto"
    ):
        run(posterior, 4, 1e3, 200)


def test_a_loss_that_is_nan_is_told() -> None:
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"].sqrt(),
        nn.MSELoss(),
        {"w": torch.full((1,), 0.1, dtype=DOUBLE)},
        [(torch.ones(2, 1, dtype=DOUBLE), torch.zeros(2, 1, dtype=DOUBLE))],
    )
    posterior = LocalizedPosterior.of(risk, inverse_temperature=1.0, localization=1.0)
    with pytest.raises(DivergenceError, match=r"of 8 chains diverged at step_size=0\.1: NaN"):
        run(posterior, 8, 0.1, 100)


def test_modes_are_put_back_also_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model.train()
    model[2].eval()
    before = [m.training for m in model.modules()]

    def interrupted() -> None:
        with evaluating(model):
            assert not any(m.training for m in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [m.training for m in model.modules()] == before
    with evaluating(None):
        pass
