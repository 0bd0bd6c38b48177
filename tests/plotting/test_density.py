"""Pictures of densities and eigenpairs: what is drawn is what was computed."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes

from curvops import plotting
from curvops.errors import InputError
from curvops.linalg.density import spectral_density
from curvops.linalg.eigsh import eigsh
from curvops.plotting.density import density
from curvops.plotting.eigenpairs import eigenpairs

mpl.use("Agg")

VALUES = torch.cat([torch.linspace(-1, 2, 200), torch.tensor([6.0, 9.0])]).double()
RESULT = spectral_density(torch.diag(VALUES), 6, 30, deflate=2)
MANY = spectral_density(torch.diag(VALUES), 1, 30, deflate=12)
EVERYTHING = spectral_density(torch.diag(VALUES[-2:]), 3, 3, deflate=2)
PAIRS = eigsh(torch.diag(VALUES), 5, "LA")

DRAW = {
    "linear": lambda ax: density(RESULT, ax=ax),
    "log": lambda ax: density(RESULT, scale="log", bandwidth=0.01, ax=ax),
    "beside the truth": lambda ax: density(RESULT, eigenvalues=VALUES, ax=ax),
    "many outliers, one probe": lambda ax: density(MANY, scale="log", ax=ax),
    "nothing but outliers": lambda ax: density(EVERYTHING, ax=ax),
    "eigenpairs": lambda ax: eigenpairs(PAIRS, reference=VALUES[-5:], ax=ax),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", list(DRAW))
def test_renders_into_given_axes(name: str, theme: str) -> None:
    settings, figures = dict(mpl.rcParams), pyplot.get_fignums()
    with plotting.theme(theme) as colours:
        ax = plotting.new_axes()
        assert DRAW[name](ax) is ax
        assert mpl.colors.to_hex(ax.get_facecolor()) == colours.paper
        buffer = io.BytesIO()
        ax.figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")
    assert ax.get_xlabel()
    assert dict(mpl.rcParams) == settings
    assert pyplot.get_fignums() == figures


@pytest.mark.parametrize("name", ["log", "eigenpairs"])
def test_makes_its_own_figure(name: str) -> None:
    ax = DRAW[name](None)
    assert isinstance(ax, Axes)
    pyplot.close(ax.figure)


def test_the_curve_is_the_density_and_the_outliers_are_named() -> None:
    ax = density(RESULT, bandwidth=0.1, ax=plotting.new_axes())
    curve, ticks = ax.get_lines()
    x = torch.as_tensor(np.asarray(curve.get_xdata()))
    np.testing.assert_allclose(curve.get_ydata(), RESULT.pdf(x, 0.1).values)
    assert float(torch.trapezoid(RESULT.pdf(x, 0.1).values, x)) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(ticks.get_xdata(), [6.0, 9.0])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["6 probes, 30 steps", "95 % band", "2 outliers: 6, 9"]
    assert ax.get_yscale() == "linear"
    many = density(MANY, scale="log", ax=plotting.new_axes())
    labels = [text.get_text() for text in many.get_legend().get_texts()]
    assert labels[0] == "1 probe, 30 steps"
    assert labels[1].startswith("12 outliers: 1.86 … 9")
    assert many.get_yscale() == "log"
    assert many.get_ylim()[0] > 0


def test_eigenpairs_show_their_residuals() -> None:
    doubtful = replace(
        PAIRS,
        residuals=torch.full((5,), 0.25).double(),
        converged=torch.tensor([False, True, True, True, True]),
    )
    ax = eigenpairs(doubtful, ax=plotting.new_axes())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["4 converged", "1 not converged"]
    (segment,) = ax.containers[1].lines[2][0].get_segments()
    low = float(PAIRS.eigenvalues[0])
    np.testing.assert_allclose(segment, [[5, low - 0.25], [5, low + 0.25]])
    assert ax.get_yscale() == "log"
    wide = replace(PAIRS, residuals=torch.full((5,), 50.0).double())
    assert eigenpairs(wide, ax=plotting.new_axes()).get_yscale() == "linear"


def test_bad_input() -> None:
    with pytest.raises(InputError, match="scale"):
        density(RESULT, scale="symlog")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="bandwidth"):
        density(RESULT, bandwidth=-1.0)
    with pytest.raises(InputError, match="reference"):
        eigenpairs(PAIRS, reference=[])
