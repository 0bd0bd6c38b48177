"""Sequential Monte Carlo: weights, resampling, moves that keep their target, plans that repeat."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from curvops.errors import DivergenceError
from curvops.volume.cloud import Chart, Rung
from curvops.volume.prior import Gaussian
from curvops.volume.resampling import effective, normalised, systematic
from curvops.volume.smc import Leg, Sampler, Tuning
from curvops.volume.spectral_form import SpectralForm
from curvops.volume.tilt import Level, Tempered
from tests.volume.closed_form import ClosedForm, ellipse

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampler(cost: ClosedForm, chains: int = 64, moves: int = 8, seed: int = 0) -> Sampler:
    """A cloud from the standard normal prior."""
    flat = SpectralForm(cost.dim, torch.zeros(0, dtype=DOUBLE), None)
    chart = Chart(cost, Gaussian(1.0), torch.zeros_like(cost.theta), flat.root(torch.ones_like))
    tuning = Tuning(chains, moves, 6, 0.8, floor=1.0)
    return Sampler.start(chart, tuning, generator(seed), Rung(1.0, Tempered(0.0)))


def test_effective_number() -> None:
    w = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
    assert effective(w.log()) == pytest.approx(36 / 14)
    assert effective(w.log() - 1e4) == pytest.approx(36 / 14)
    assert effective(torch.full((5,), -math.inf)) == 0.0
    assert normalised(w.log()).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert normalised(torch.full((2,), -math.inf)).tolist() == [0.0, 0.0]


def test_systematic_draws_are_proportional_to_the_last_copy() -> None:
    w = torch.tensor([0.05, 0.0, 0.35, 0.6], dtype=DOUBLE)
    counts = torch.zeros(4, dtype=DOUBLE)
    for seed in range(2000):
        drawn = systematic(w, 7, generator(seed))
        here = torch.bincount(drawn, minlength=4)
        assert len(drawn) == 7
        assert int(here[1]) == 0
        assert bool(((here - 7 * w).abs() < 1).all())
        counts += here
    assert torch.allclose(counts / 2000, 7 * w, atol=0.05)


def test_systematic_survives_rounding() -> None:
    w = torch.cat([torch.full((10,), 0.1), torch.zeros(3)])  # adds up to a little less than one
    for seed in range(200):
        assert int(systematic(w, 999, generator(seed)).max()) <= 9


def test_a_rung_leaves_the_next_density_in_place() -> None:
    values = torch.tensor([0.5, 4.0, 50.0], dtype=DOUBLE)
    cloud = sampler(ellipse(values))
    for beta in (0.3, 1.0):
        cloud.explore(Rung(1.0, Tempered(beta)), "temper", beta=beta)
    spread = cloud.cloud.z.var(0) * (1 + values)
    assert torch.allclose(spread, torch.ones(3, dtype=DOUBLE), atol=0.35)
    truth = -0.5 * float((1 + values).log().sum())
    assert abs(cloud.log_z - truth) < 0.5


def test_a_level_is_filled_evenly() -> None:
    cloud = sampler(ellipse(torch.full((2,), 2.0, dtype=DOUBLE)), chains=128)
    for level in (1.0, 0.3, 0.1):
        cloud.explore(Rung(1.0, Level(level, beta=1 / level)), "split", level=level)
    # The cost is r²; its share below half the level is the ratio of two exponentials' masses.
    assert float(cloud.cloud.cost.max()) <= 0.1
    share = float((cloud.cloud.cost < 0.05).double().mean())
    assert abs(share - math.expm1(-0.025) / math.expm1(-0.05)) < 0.08
    assert abs(cloud.log_z - float(stats.chi2.logcdf(0.1, 2))) < 0.3


def test_furthest_meets_the_share() -> None:
    cloud = sampler(ellipse(torch.ones(5, dtype=DOUBLE)))

    def path(s: float) -> Rung:
        return Rung(1.0, Tempered(s))

    step = cloud.furthest(path, 100.0, 0.7)
    assert cloud.ess(path(step)) / len(cloud.cloud) == pytest.approx(0.7, abs=1e-6)
    assert cloud.furthest(path, step / 2, 0.7) == step / 2


def test_following_a_plan_repeats_and_stretches_its_steps() -> None:
    cost = ellipse(torch.tensor([1.0, 30.0], dtype=DOUBLE))
    pilot = sampler(cost, seed=1)
    legs = [pilot.explore(Rung(1.0, Tempered(b)), "temper", beta=b) for b in (0.2, 0.5)]
    run = sampler(cost, seed=2)
    for leg in legs:
        run.follow(leg)
    assert [s.beta for s in run.steps] == [0.2, 0.5]
    first, second = run.steps
    assert first.step_size == pytest.approx(legs[0].step_size)
    stretch = math.exp(0.5 * (first.acceptance - 0.8))
    assert second.step_size == pytest.approx(stretch * legs[1].step_size)
    again = sampler(cost, seed=2)
    for leg in legs:
        again.follow(leg)
    assert again.log_z == run.log_z


def test_a_chain_moves_in_coordinates_of_the_other_half() -> None:
    cloud = sampler(ellipse(torch.ones(2, dtype=DOUBLE)), chains=4, moves=2)
    rung = Rung(1.0, Tempered(1.0))
    # Chains 0 and 1 (rows 0 to 3) lie on one axis, 2 and 3 on the other.
    z = torch.tensor([[1.0, 1e-3]] * 4 + [[1e-3, 1.0]] * 4, dtype=DOUBLE)
    cloud.cloud = cloud.chart.evaluate(z)
    weights = torch.full((8,), 1 / 8, dtype=DOUBLE)
    frame = cloud._frame(rung, weights, torch.tensor([0, 3, 4, 7]))
    assert frame.count == 2
    scale = frame.forward(torch.ones(4, 2, dtype=DOUBLE))
    # Steep gradients make short steps: the first half hears of steep w₁ from the second.
    assert bool((scale[:2, 0] > scale[:2, 1]).all())
    assert bool((scale[2:, 0] < scale[2:, 1]).all())
    # All weight on one chain: the cut stays between two chains, and both halves learn something.
    lone = torch.zeros(8, dtype=DOUBLE)
    lone[1] = 1.0
    frame = cloud._frame(rung, lone, torch.tensor([1, 1, 1, 1]))
    assert frame.count == 4
    assert bool(frame.forward(torch.ones(4, 2, dtype=DOUBLE)).isfinite().all())


def test_points_of_a_chain_stand_side_by_side() -> None:
    cloud = sampler(ellipse(torch.ones(3, dtype=DOUBLE)), chains=5, moves=4)
    cloud.tuning = Tuning(5, 4, 1, 0.999, floor=1.0)
    cloud.step_size = 1e-6  # chains hardly move, so that theirs are the near ones
    rung = Rung(1.0, Tempered(0.5))
    cloud._advance(Leg("temper", rung, 0.5, 0.0, 1e-6), adapt=False)
    z = cloud.cloud.z.reshape(5, 4, 3)
    assert float((z - z[:, :1]).abs().max()) < 1e-3
    assert cloud.families.reshape(5, 4).eq(cloud.families.reshape(5, 4)[:, :1]).all()


def test_records_of_a_rung() -> None:
    cloud = sampler(ellipse(torch.ones(4, dtype=DOUBLE)), chains=8, moves=4)
    before, weights = cloud.cloud.cost, (-0.5 * cloud.cloud.cost).softmax(0)
    cloud.explore(Rung(1.0, Tempered(0.5)), "temper", beta=0.5)
    [step] = cloud.steps
    assert step.num_points == 32
    assert 1 <= step.num_families <= 8
    assert step.predicted_cost == pytest.approx(float((weights * before).sum()))
    assert step.mean_cost == pytest.approx(float(cloud.cloud.cost.mean()))
    assert step.ess == pytest.approx(float(1 / weights.square().sum()))
    assert step.log_z == pytest.approx(float((-0.5 * before).exp().mean().log()))
    assert set(step.to_dict()) >= {"beta", "acceptance", "step_size"}


def test_weights_of_points_outside() -> None:
    def half(x: Tensor) -> Tensor:
        return x.square().sum(1) + 0 * (-x[:, 0]).log()

    cloud = sampler(ClosedForm(half, torch.zeros(2, dtype=DOUBLE)))
    outside = cloud.cloud.z[:, 0] > 0
    weights = cloud.log_weights(Rung(1.0, Tempered(0.1)))
    assert bool((weights[outside] == -math.inf).all())
    assert bool(weights[~outside].isfinite().all())
    cloud.explore(Rung(1.0, Tempered(0.1)), "temper", beta=0.1)
    assert bool((cloud.cloud.z[:, 0] < 0).all())


def test_nothing_inside() -> None:
    cloud = sampler(ellipse(torch.ones(2, dtype=DOUBLE)))
    with pytest.raises(DivergenceError, match="none of 512 points"):
        cloud.explore(Rung(1.0, Level(-1.0, beta=1.0)), "split", level=-1.0)
