"""Log-determinants with brackets, and distributions: what is drawn is what was given."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch

from curvops.errors import InputError
from curvops.linalg.density import spectral_density
from curvops.linalg.estimate import Estimate
from curvops.plotting.cumulative import cumulative
from curvops.plotting.logdet import logdet
from curvops.plotting.style import new_axes
from curvops.volume.logdet import logdet_from_eigenvalues

mpl.use("Agg")

SPECTRUM = torch.logspace(-2, 1, 30, dtype=torch.float64)
EXACT = {c: logdet_from_eigenvalues(SPECTRUM, c) for c in (0.0, 0.1, 1.0)}


def made(value: float, lower: float, upper: float) -> Estimate:
    return Estimate(value, 0.1, lower, upper, 9, True, torch.empty(0), "krylov", 0.1)


def test_brackets_are_drawn_about_the_values() -> None:
    found = {"H": {0.0: made(1, 0, 2), 0.1: made(5, 3, 6), 1.0: made(7, -math.inf, 8)}}
    ax = logdet(found, ax=new_axes())
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose(segments[0], [[0.1, 3], [0.1, 6]])
    np.testing.assert_allclose(segments[1], [[1.0, 7], [1.0, 8]])
    assert ax.get_ylabel() == "log det(H + cI)  [nats]"


def test_difference_is_to_the_exact_value_of_the_same_shift() -> None:
    truth = EXACT[0.1].value
    found = {"H": {0.1: made(truth + 1, truth - 1, truth + 2), 5.0: made(0, 0, 0)}}
    ax = logdet(found, exact={"H": EXACT}, difference=True, ax=new_axes())
    segments = ax.collections[0].get_segments()
    assert len(segments) == 1
    np.testing.assert_allclose(segments[0], [[0.1, -1], [0.1, 2]])
    with pytest.raises(InputError, match="and an exact value"):
        logdet(found, difference=True)


def test_cumulative_curve_beside_the_true_one() -> None:
    result = spectral_density(torch.diag(SPECTRUM), 4, 10)
    ax = cumulative(result, eigenvalues=SPECTRUM, ax=new_axes())
    true, estimated = ax.lines
    assert true.get_ydata()[-1] == 1
    assert estimated.get_ydata()[-1] == pytest.approx(1)
    signed = cumulative(spectral_density(torch.diag(SPECTRUM - 1), 4, 10), ax=new_axes())
    assert signed.get_xscale() == "symlog"
