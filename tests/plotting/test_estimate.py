"""The picture of estimates: bars where the numbers are, in either theme."""

from __future__ import annotations

import io
import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes

from curvops import plotting
from curvops.errors import InputError
from curvops.linalg.estimate import Estimate
from curvops.plotting.estimate import estimates

mpl.use("Agg")


def made(value: float, stderr: float, half: float, converged: bool = True) -> Estimate:
    ends = value - half, value + half
    return Estimate(value, stderr, *ends, 20, converged, torch.empty(0), "hutchinson", 0.1)


ROWS = {
    "hutchinson": made(3.4, 0.2, 0.5),
    "one sample": made(3.1, math.inf, math.inf, converged=False),
    "exact": made(3.3, 0.0, 0.0),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_bars_stand_where_the_numbers_are(theme: str) -> None:
    with plotting.theme(theme) as colours:
        ax = estimates(ROWS, truth=3.3333, xlabel="trace", ax=plotting.new_axes())
        ax.figure.savefig(io.BytesIO(), format="png")
        assert mpl.colors.to_hex(ax.get_facecolor()) == colours.paper
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ROWS)
    assert ax.get_xlabel() == "trace"
    brackets = [collection.get_segments()[0] for collection in ax.collections]
    np.testing.assert_allclose(brackets[0], [[2.9, 0], [3.9, 0]])
    np.testing.assert_allclose(brackets[1], [[3.1, 1], [3.1, 1]])
    bars = [line for line in ax.lines if line.get_linewidth() == 4]
    np.testing.assert_allclose(bars[0].get_xdata(), [3.2, 3.6])
    markers = [line for line in ax.lines if line.get_marker() == "o"]
    filled = [mpl.colors.to_hex(line.get_markerfacecolor()) for line in markers]
    assert filled == [colours.primary, colours.paper, colours.primary]
    exact = [line for line in ax.lines if line.get_label() == "exact"]
    assert list(exact[0].get_xdata()) == [3.3333, 3.3333]
    low, high = ax.get_ylim()
    assert low > high  # the first is on top


def test_makes_its_own_figure_and_survives_odd_names() -> None:
    ax = estimates({"a$_{b}": ROWS["exact"]})
    assert isinstance(ax, Axes)
    ax.figure.savefig(io.BytesIO(), format="svg")
    pyplot.close(ax.figure)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="results is empty"):
        estimates({})
    with pytest.raises(InputError, match=r"results\['x'\] has the value nan"):
        estimates({"x": made(math.nan, 0.1, 0.2)})
    with pytest.raises(InputError, match="truth must be finite"):
        estimates(ROWS, truth=math.inf)


def test_exact_values_of_different_numbers_stand_in_their_rows() -> None:
    ax = estimates(ROWS, truth={"exact": 3.3, "hutchinson": 3.0}, ax=plotting.new_axes())
    (exact,) = [line for line in ax.lines if line.get_label() == "exact"]
    assert list(exact.get_xdata()) == [3.0, 3.3]
    assert list(exact.get_ydata()) == [0, 2]
    with pytest.raises(InputError, match="truth has 'absent'"):
        estimates(ROWS, truth={"absent": 1.0})
