"""Where a pilot goes: rungs that are near enough, an end at the threshold, and the way back."""

from __future__ import annotations

import pytest
import torch

from curvops.volume.cloud import Rung
from curvops.volume.ladder import Pilot, descend, seeded, smoothed
from curvops.volume.smc import Sampler
from curvops.volume.tilt import Tempered
from tests.volume.closed_form import ellipse
from tests.volume.test_smc import sampler

DOUBLE = torch.float64


def pilot(threshold: float, beta: float = 0.0) -> Pilot:
    cost = ellipse(torch.logspace(0, 1, 6, dtype=DOUBLE))
    found = Pilot(sampler(cost, chains=32, moves=4), 0.8, 500, lambda sampler: None)
    if beta:
        found._go(Rung(1.0, Tempered(beta)), "temper", beta=beta)
    found.temper(beta, threshold)
    return found


def test_rungs_leave_the_share_and_end_at_the_threshold() -> None:
    found = pilot(0.2)
    steps = found.sampler.steps
    betas = [s.beta for s in steps]
    assert betas == sorted(betas)
    assert len(set(betas)) == len(betas)
    assert all(s.ess / s.num_points == pytest.approx(0.8, abs=1e-6) for s in steps[:-1])
    assert steps[-1].ess / steps[-1].num_points >= 0.8
    assert min(steps[-1].predicted_cost, steps[-1].mean_cost) <= 0.2 + 1e-6
    assert all(min(s.mean_cost, s.predicted_cost) > 0.2 + 1e-6 for s in steps[:-1])
    # ½ Σ λ / (1 + βλ) = 0.2
    values = torch.logspace(0, 1, 6, dtype=DOUBLE)
    mean = float(0.5 * (values / (1 + betas[-1] * values)).sum())
    assert mean == pytest.approx(0.2, rel=0.15)


def test_down_the_temperature_where_it_began_too_cold() -> None:
    found = pilot(4.0, beta=1.0)
    betas = [s.beta for s in found.sampler.steps]
    assert betas == sorted(betas, reverse=True)
    assert found.sampler.steps[-1].predicted_cost >= 4.0 - 1e-6


def test_all_is_inside_without_a_tilt() -> None:
    found = pilot(100.0, beta=0.05)
    assert found.sampler.steps[-1].beta == 0.0


def test_there_and_back_again() -> None:
    found = pilot(0.5)
    legs = smoothed(found.legs)
    first = Rung(1.0, Tempered(0.0))
    cost = ellipse(torch.logspace(0, 1, 6, dtype=DOUBLE))
    run = sampler(cost, chains=32, moves=8, seed=5)
    for leg in legs:
        run.follow(leg)
    seen: list[Sampler] = []
    back = descend(run, legs, first, seen.append)
    assert [s.beta for s in back.steps] == [leg.beta for leg in legs[-2::-1]] + [0.0]
    assert len(run.steps) == len(legs)
    assert len(seen) == len(legs) - 1
    assert abs(back.log_z) < 0.6


def test_step_sizes_are_smoothed_along_the_temperature_alone() -> None:
    found = pilot(0.2)
    found.harden(found.legs[-1].beta, 0.2)
    legs = smoothed(found.legs)
    warm = [(a, b) for a, b in zip(found.legs, legs, strict=True) if a.stage == "temper"]
    hard = [(a, b) for a, b in zip(found.legs, legs, strict=True) if a.stage == "harden"]
    before = torch.tensor([a.step_size for a, _ in warm]).log()
    assert warm[4][1].step_size == pytest.approx(float(before[:9].mean().exp()), rel=1e-5)
    assert all(a.step_size == b.step_size for a, b in hard)
    assert hard[-1][1].step_size == 0.0
    assert hard[-1][1].level == 1.0


def test_runs_have_generators_of_their_own() -> None:
    draws = {
        float(torch.rand((), generator=seeded(seed, run), dtype=DOUBLE))
        for seed in (0, 1, 12345)
        for run in range(-1, 5)
    }
    assert len(draws) == 18
