"""log det(H + cI): right, with an honest error, and never of an indefinite matrix."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.volume import IndefiniteError, logdet_from_eigenvalues


def test_against_a_dense_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(30, 20, generator=generator, dtype=torch.float64)
    matrix = root @ root.T  # rank 20: singular without a shift
    eigenvalues = torch.linalg.eigvalsh(matrix)
    for shift in (1e-3, 1.0):
        result = logdet_from_eigenvalues(eigenvalues, shift)
        exact = torch.logdet(matrix + shift * torch.eye(30, dtype=torch.float64))
        assert abs(result.value - float(exact)) <= max(result.error, 1e-12 * abs(result.value))
        assert result.error < 1e-8
    with pytest.raises(IndefiniteError, match="singular up to rounding"):
        logdet_from_eigenvalues(eigenvalues)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20),
    st.floats(0, 10),
    st.integers(0, 2**32 - 1),
)
def test_noise_within_its_bound_moves_the_value_within_the_error(
    values: list[float], shift: float, seed: int
) -> None:
    eigenvalues, noise = torch.tensor(values, dtype=torch.float64), 1e-7
    generator = torch.Generator().manual_seed(seed)
    moved = eigenvalues + noise * (
        2 * torch.rand(len(values), generator=generator, dtype=torch.float64) - 1
    )
    result = logdet_from_eigenvalues(eigenvalues, shift, noise=noise)
    other = logdet_from_eigenvalues(moved, shift, noise=noise)
    # The bound is first order; eigenvalues are ten thousand times the noise or more.
    assert abs(result.value - other.value) <= 1.001 * result.error + 1e-12


def test_indefinite_names_the_culprit_and_the_cure() -> None:
    eigenvalues = torch.tensor([-0.25, -0.125, 1.0, 2.0], dtype=torch.float64)
    with pytest.raises(IndefiniteError, match=r"indefinite: 2 of 4 .* -0\.25.*above 0\.25") as info:
        logdet_from_eigenvalues(eigenvalues)
    error = info.value
    assert (error.smallest, error.num_bad, error.shift) == (-0.25, 2, 0.0)
    with pytest.raises(IndefiniteError):
        logdet_from_eigenvalues(eigenvalues, error.sufficient_shift * (1 - 1e-9))
    # The shift it names does what it says.
    fine = logdet_from_eigenvalues(eigenvalues, error.sufficient_shift * (1 + 1e-9))
    assert math.isfinite(fine.value)


def test_zero_eigenvalue_is_an_error_not_minus_infinity() -> None:
    with pytest.raises(IndefiniteError, match="1 of 2 eigenvalues is"):
        logdet_from_eigenvalues(torch.tensor([0.0, 1.0]))


def test_result_prints_and_serialises() -> None:
    result = logdet_from_eigenvalues(torch.tensor([1.0, math.e], dtype=torch.float64))
    assert float(result) == pytest.approx(1.0)
    assert str(result).startswith("1.000000 ± ")
    assert json.loads(json.dumps(result.to_dict()))["dim"] == 2


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 2\]"):
        logdet_from_eigenvalues(torch.eye(2))
    with pytest.raises(NonFiniteError):
        logdet_from_eigenvalues(torch.tensor([1.0, math.nan]))
    with pytest.raises(InputError, match="shift"):
        logdet_from_eigenvalues(torch.ones(2), math.inf)


def test_empty_spectrum_has_determinant_one() -> None:
    assert float(logdet_from_eigenvalues(torch.zeros(0))) == 0.0
