"""Radii along rays: crossings to the tolerance, excursions seen on the grid, clear errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError
from curvops.volume.radii import Radii, Rays, find_radii


class Along:
    """A cost that is a function of the distance from zero alone, one a direction of the axes."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        self.functions = functions
        self.theta = torch.zeros(len(functions), dtype=torch.float64)
        self.calls = 0

    def __call__(self, X: Tensor) -> Tensor:
        self.calls += X.shape[1]
        axis = X.abs().argmax(0)
        values = torch.stack([f(X[i]) for i, f in enumerate(self.functions)])
        return values.gather(0, axis.unsqueeze(0))[0]

    def with_gradient(self, X: Tensor) -> tuple[Tensor, Tensor]:
        leaf = X.clone().requires_grad_()
        values = self(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient


def search(
    *functions: Callable[[Tensor], Tensor],
    threshold: float = 1.0,
    guess: float = 1.0,
    inside: float = 0.0,
    reach: float = math.inf,
    grid: int = 8,
    rtol: float = 1e-9,
) -> tuple[Radii, int]:
    cost = Along(*functions)
    count = len(functions)
    D = torch.eye(count, dtype=torch.float64)

    def full(value: float) -> Tensor:
        return torch.full((count,), value, dtype=torch.float64)

    rays = Rays(cost, D, full(reach))  # type: ignore[arg-type]
    found = find_radii(rays, threshold, full(guess), full(inside), rtol=rtol, grid=grid)
    return found, cost.calls


@pytest.mark.parametrize("guess", [1e-6, 0.3, 1.0, 50.0, 1e6])
def test_crossings_from_any_guess(guess: float) -> None:
    found, calls = search(
        lambda r: r.square(),  # 1
        lambda r: 1e4 * r.square(),  # 0.01
        lambda r: r.abs() ** 7,  # 1
        lambda r: r.abs().exp() - 1,  # log 2
        lambda r: 2 * torch.sigmoid(50 * (r - 3)),  # a step at 3
        guess=guess,
    )
    expected = [1.0, 0.01, 1.0, math.log(2), 3.0]
    assert found.radius.tolist() == pytest.approx(expected, rel=1e-8)
    assert not bool(found.open.any())
    assert not bool(found.reentered.any())
    assert calls / 5 < 60


def test_a_quadratic_cost_takes_few_evaluations() -> None:
    _, calls = search(lambda r: r.square(), lambda r: 5 * r.square(), guess=0.7)
    assert calls / 2 - 7 - 4 <= 6  # beside the grid within and beyond


def test_excursions_are_seen_on_the_grid_and_cut_the_ray() -> None:
    def hill(r: Tensor) -> Tensor:  # above 1 between 0.4 and 0.6, then from 2 on
        return torch.where((r > 0.4) & (r < 0.6), 3.0, r.square() / 4)

    def later(r: Tensor) -> Tensor:  # above 1 from 1 to 1.4, below it again to 1.7
        return torch.where((r > 1.4) & (r < 1.7), 0.5, r.square())

    found, _ = search(hill, later, guess=1.9)
    assert found.radius.tolist() == pytest.approx([0.4, 1.0], rel=1e-6)
    assert found.reentered.tolist() == [True, True]
    # A grid too coarse does not see the hill from 1.9.
    coarse, _ = search(hill, guess=1.9, grid=1)
    assert coarse.radius.tolist() == pytest.approx([2.0], rel=1e-6)


def test_an_excursion_in_the_first_part_of_the_grid() -> None:
    def hill(r: Tensor) -> Tensor:
        return torch.where((r > 0.1) & (r < 0.3), 3.0, r.square() / 4)

    found, _ = search(hill, guess=1.9)
    assert found.radius.tolist() == pytest.approx([0.1], rel=1e-6)
    assert found.reentered.tolist() == [True]


def test_rays_that_end_with_the_measure() -> None:
    found, _ = search(lambda r: r.square(), lambda r: 0.01 * r.square(), reach=3.0)
    assert found.radius.tolist() == pytest.approx([1.0, 3.0], rel=1e-9)
    assert found.open.tolist() == [False, True]


def test_a_radius_known_to_be_inside_is_where_it_goes_on() -> None:
    found, _ = search(lambda r: r.square(), inside=0.9, guess=0.95)
    assert found.radius.tolist() == pytest.approx([1.0], rel=1e-9)


def test_costs_that_fall_below_zero_and_infinite_ones() -> None:
    found, _ = search(
        lambda r: torch.where(r < 1.0, -r, r.square() - 2),  # to √3
        lambda r: torch.where(r < 2.0, 0.0, torch.inf),
        guess=0.1,
    )
    assert found.radius.tolist() == pytest.approx([math.sqrt(3), 2.0], rel=1e-8)


def test_slopes_by_log_radius() -> None:
    cost = Along(lambda r: r**3, lambda r: 2 * r)
    rays = Rays(cost, torch.eye(2).double(), torch.ones(2).double())  # type: ignore[arg-type]
    slope = rays.log_slope(torch.tensor([0, 1]), torch.tensor([2.0, 3.0]).double())
    assert slope.tolist() == [24.0, 6.0]


def test_nan_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="NaN at radius"):
        search(lambda r: torch.where(r > 0.5, torch.nan, r.square()))


def test_a_ray_without_an_end_is_an_error() -> None:
    with pytest.raises(InputError, match="no end"):
        search(lambda r: 0.5 * torch.tanh(r), lambda r: r.square())


def test_a_threshold_below_the_noise_is_an_error() -> None:
    with pytest.raises(InputError, match="rounding of the loss"):
        search(lambda r: r.square() + 1e-3 * (r > 0), threshold=1e-4)
