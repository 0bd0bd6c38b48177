"""Chains: new coordinates move no chain, and everything that is evaluated is counted."""

from __future__ import annotations

import torch

from curvops.volume.coefficient_chains import Chains
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
    found.precondition()
    assert found.posterior.scale is not None
    points = found._x
    torch.testing.assert_close(found.posterior.distances(points), distances[:, -1])
    value, _ = found.posterior(points)
    torch.testing.assert_close(-value - distances[:, -1] ** 2, rises[:, -1])
    # 1/√(root mean square of the loss's gradient + 0.1): stiff directions take smaller steps
    assert found.posterior.scale[0] > found.posterior.scale[1] > found.posterior.scale[2]


def test_what_is_evaluated_is_counted() -> None:
    found, ticks = chains()
    found.metropolis(7, 3, 0.01)
    assert found.num_gradients == 5 * (1 + 7 * 3)
    assert found.num_passes == 1 + 1 + 7 * 3
    found.langevin(4, 1e-4, iter([found.posterior] * 4), count=2)
    assert found.num_gradients == 5 * (22 + 4)
    assert found.num_passes == 23 + 2
    assert len(ticks) == 11
    rises, distances = found.take()
    assert rises.shape == distances.shape == (5, 11)
    assert found.take()[0].shape == (5, 0)
