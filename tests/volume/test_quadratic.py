"""Ellipsoids against closed forms, and the choices that go into the shift."""

from __future__ import annotations

import json
import math

import pytest
import torch

from curvops.errors import InputError, ShapeError
from curvops.volume import IndefiniteError, log_ellipsoid, quadratic_volume


@pytest.mark.parametrize("axes", [[2.0], [2.0, 3.0], [2.0, 3.0, 0.5]])
def test_ellipsoids(axes: list[float]) -> None:
    # {x : x^T H x / 2 <= T} has half-axes sqrt(2T / lambda).
    threshold = 0.7
    eigenvalues = torch.tensor([2 * threshold / a**2 for a in axes], dtype=torch.float64)
    unit = {1: 2.0, 2: math.pi, 3: 4 / 3 * math.pi}[len(axes)]
    result = quadratic_volume(eigenvalues, threshold=threshold)
    assert math.exp(result.log_volume) == pytest.approx(unit * math.prod(axes), rel=1e-13)


def test_matrix_and_eigenvalues_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    matrix = root @ root.T
    of_matrix = quadratic_volume(matrix, threshold=0.1)
    of_values = quadratic_volume(torch.linalg.eigvalsh(matrix), threshold=0.1)
    assert float(of_matrix) == pytest.approx(float(of_values), abs=1e-10)
    expected = log_ellipsoid(12, 0.1, float(torch.logdet(matrix)))
    assert float(of_matrix) == pytest.approx(expected, abs=1e-10)


def test_monte_carlo_in_three_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]]).double()
    points = 4 * torch.rand(400_000, 3, generator=generator, dtype=torch.float64) - 2
    inside = (0.5 * ((points @ matrix) * points).sum(1) <= 1.0).double().mean()
    volume = math.exp(float(quadratic_volume(matrix, threshold=1.0)))
    assert float(inside) * 64 == pytest.approx(volume, rel=0.02)


def test_shift_is_weight_decay_plus_counted_precision() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    result = quadratic_volume(ones, threshold=1.0, weight_decay=0.5, prior_std=0.5, prior_count=2.0)
    assert result.shift == 0.5 + 2 / 0.25
    assert result.logdet == pytest.approx(4 * math.log(9.5))
    total = result.ball_term + result.threshold_term - result.logdet / 2
    assert result.log_volume == pytest.approx(total)


def test_indefinite_without_shift_is_an_error_and_with_it_is_not() -> None:
    eigenvalues = torch.tensor([-0.5, 1.0], dtype=torch.float64)
    with pytest.raises(IndefiniteError, match=r"-0\.5"):
        quadratic_volume(eigenvalues, threshold=1.0)
    with pytest.raises(IndefiniteError, match="singular"):
        quadratic_volume(torch.zeros(2, 2), threshold=1.0)
    assert math.isfinite(float(quadratic_volume(eigenvalues, threshold=1.0, weight_decay=1.0)))


def test_noise_is_that_of_the_matrix_not_of_its_diagonalisation() -> None:
    nearly_singular = torch.diag(torch.tensor([1.0, 1e-8]))
    with pytest.raises(IndefiniteError, match="singular"):
        quadratic_volume(nearly_singular, threshold=1.0)
    assert quadratic_volume(nearly_singular.double(), threshold=1.0).error < 1e-6


@pytest.mark.parametrize(
    "choices",
    [{"weight_decay": -1.0}, {"prior_std": 0.0}, {"prior_std": math.nan}, {"prior_count": -1.0}],
)
def test_bad_choices(choices: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(choices))):
        quadratic_volume(torch.ones(2), threshold=1.0, **choices)


def test_not_square() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3\]"):
        quadratic_volume(torch.ones(2, 3), threshold=1.0)


def test_result_prints_and_serialises() -> None:
    result = quadratic_volume(torch.ones(3, dtype=torch.float64), threshold=0.5)
    assert str(result).startswith("log V = 1.4324 ± ")
    assert json.loads(json.dumps(result.to_dict()))["prior_std"] is None
