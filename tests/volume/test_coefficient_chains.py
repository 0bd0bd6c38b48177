"""Chains: new coordinates move no chain, and everything that is evaluated is counted."""

from __future__ import annotations

import math

import pytest
import torch

from curvops.volume.coefficient_chains import Chains
from curvops.volume.diagnostics import effective_sample_size
from curvops.volume.localized import LocalizedPosterior
from tests.volume.test_learning_coefficient import closed


def chains(count: int = 5) -> tuple[Chains, list[int]]:
    posterior = LocalizedPosterior.of(closed(1.0, 10.0, 1000.0), 30.0, 2.0)
    ticks: list[int] = []
    generator = torch.Generator().manual_seed(0)
    return Chains(posterior, count, generator, lambda: ticks.append(1)), ticks


def test_preconditioning_leaves_the_chains_where_they_are() -> None:
    found, _ = chains()
    found.metropolis(40, 3, 0.01)
    rises, distances = found.take()
    found.even_out()
    assert found.posterior.frame is not None
    points = found._x
    torch.testing.assert_close(found.posterior.distances(points), distances[:, -1])
    value, _ = found.posterior(points)
    torch.testing.assert_close(-value - distances[:, -1] ** 2, rises[:, -1])
    # 1/√(root mean square of the loss's gradient + 0.1): stiff directions take smaller steps
    scales = found.posterior.frame.values
    assert scales[0] > scales[1] > scales[2]


def test_what_is_evaluated_is_counted() -> None:
    found, ticks = chains()
    found.metropolis(7, 1, 0.01)
    assert found.num_gradients == 5 * (1 + 7)
    assert found.num_passes == 1 + 1 + 7
    found.langevin(4, 1e-4, iter([found.posterior] * 4), count=2)
    assert found.num_gradients == 5 * (8 + 4)
    assert found.num_passes == 9 + 2
    assert len(ticks) == 11
    rises, distances = found.take()
    assert rises.shape == distances.shape == (5, 11)
    assert found.take()[0].shape == (5, 0)


def test_trajectories_vary_around_the_length_asked_for() -> None:
    """Alike in all directions and always of length π, they would never change the loss."""
    found, _ = chains()
    lengths = []
    for _ in range(200):
        before = found.num_gradients
        found.metropolis(1, 4, 0.001)
        lengths.append((found.num_gradients - before) // 5 - 1)
    assert set(lengths) == {2, 3, 4, 5, 6}
    assert sum(lengths) / 200 == pytest.approx(4, abs=0.5)
    posterior = LocalizedPosterior.of(closed(*[1.0] * 8), 1.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    alike = Chains(posterior, 32, generator, lambda: None)
    alike.metropolis(20, 3, math.pi / 3)
    alike.take()
    alike.metropolis(100, 3, math.pi / 3)
    assert effective_sample_size(alike.take()[0]) > 32 * 100 / 8
