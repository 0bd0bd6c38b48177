"""Pictures: what is drawn is what was given, in either theme, without a trace left behind."""

from __future__ import annotations

import io
import sys

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes

from curvops import plotting, volume
from curvops.errors import InputError, MissingDependencyError, ShapeError
from curvops.landscape import Lines
from curvops.plotting.style import plain

mpl.use("Agg")

SPECTRUM = torch.logspace(-4, 1, 60, dtype=torch.float64)


def scan(labels: tuple[str, ...] = ("top",)) -> Lines:
    steps = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1).repeat(1, len(labels))
    ones = torch.ones(len(labels), dtype=torch.float64)
    return Lines(labels, steps, steps**2 + 3, 3.0, 0 * ones, 2 * ones, 6, 0, 0.1)


def quadratic() -> volume.QuadraticVolume:
    return volume.quadratic_volume(SPECTRUM, threshold=0.01)


DRAW = {
    "spectrum": lambda ax: plotting.spectrum(SPECTRUM, marked=SPECTRUM[-5:], ax=ax),
    "signed spectrum": lambda ax: plotting.spectrum(
        torch.cat([SPECTRUM, -SPECTRUM[:20] / 10, torch.zeros(3)]), noise=1e-9, ax=ax
    ),
    "scree": lambda ax: plotting.scree(SPECTRUM[-20:], reference=SPECTRUM[-20:], ax=ax),
    "line": lambda ax: plotting.line(scan(), ax=ax),
    "timing": lambda ax: plotting.timing(["a", "b"], [0.02, 3.0], ax=ax),
    "logdet": lambda ax: plotting.logdet(
        [volume.logdet_from_eigenvalues(SPECTRUM, c) for c in (0.0, 0.1, 1.0)],
        undefined_below=0.01,
        ax=ax,
    ),
    "volume": lambda ax: plotting.volume_terms(quadratic(), ax=ax),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", list(DRAW))
def test_renders_into_given_axes(name: str, theme: str) -> None:
    settings = dict(mpl.rcParams)
    figures = pyplot.get_fignums()
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


@pytest.mark.parametrize("name", list(DRAW))
def test_makes_its_own_figure(name: str) -> None:
    ax = DRAW[name](None)
    assert isinstance(ax, Axes)
    pyplot.close(ax.figure)


def test_spectrum_counts_every_eigenvalue() -> None:
    values = torch.cat([SPECTRUM, -SPECTRUM[:20], torch.zeros(3)])
    ax = plotting.spectrum(values, noise=1e-9, ax=plotting.new_axes())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["60 positive", "20 negative"]
    assert labels[2].startswith("3 within")
    assert ax.get_xscale() == "symlog"


@pytest.mark.parametrize(
    "values", [[0.0], [1.0], [-2.0, -2.0], [0.0, 0.0], [1e-300, 1e300], [-1.0, 1.0]]
)
def test_spectrum_of_odd_sets(values: list[float]) -> None:
    ax = plotting.spectrum(values, ax=plotting.new_axes())
    ax.figure.savefig(io.BytesIO(), format="svg")
    assert ax.has_data()


def test_scree_ranks_both_from_the_largest() -> None:
    ax = plotting.scree([1.0, 3.0, 2.0], reference=[2.0, 3.0, 1.0], ax=plotting.new_axes())
    for drawn in ax.get_lines():
        assert list(drawn.get_ydata()) == [3.0, 2.0, 1.0]
    assert ax.get_yscale() == "log"
    assert plotting.scree([1.0, -3.0], ax=plotting.new_axes()).get_yscale() == "linear"


def test_line_follows_the_loss_not_the_model() -> None:
    steps = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
    one = torch.ones(1, dtype=torch.float64)
    flat = Lines(("flat",), steps, 0 * steps + 1, 1.0, 0 * one, 1e6 * one, 6, 0, 0.1)
    low, high = plotting.line(flat, ax=plotting.new_axes()).get_ylim()
    assert 0.8 < low < 1 < high < 1.2
    with pytest.raises(InputError, match="index is 1"):
        plotting.line(flat, index=1)
    broken = Lines(("x",), steps, steps * torch.nan, 1.0, 0 * one, one, 6, 0, 0.1)
    with pytest.raises(InputError, match="finite"):
        plotting.line(broken, ax=plotting.new_axes())


def test_volume_terms_add_up() -> None:
    ax = plotting.volume_terms(quadratic(), ax=plotting.new_axes())
    *terms, total = [bar.get_width() for bar in ax.patches]
    assert sum(terms) == pytest.approx(total)
    low, high = ax.get_xlim()
    for bar in ax.patches:
        assert low < min(bar.get_x(), bar.get_x() + bar.get_width())
        assert max(bar.get_x(), bar.get_x() + bar.get_width()) < high


def test_bad_input() -> None:
    with pytest.raises(InputError, match="eigenvalues"):
        plotting.spectrum([])
    with pytest.raises(InputError, match="non-finite"):
        plotting.spectrum([1.0, float("nan")])
    with pytest.raises(InputError, match="noise"):
        plotting.spectrum([1.0], noise=0.0)
    with pytest.raises(ShapeError, match="1 names for 2"):
        plotting.timing(["a"], [1.0, 2.0])
    with pytest.raises(InputError, match="positive shift"):
        plotting.logdet([volume.logdet_from_eigenvalues(SPECTRUM)])
    with pytest.raises(InputError, match="no theme 'sepia'"), plotting.theme("sepia"):
        pass


def test_a_theme_of_ones_own() -> None:
    own = plotting.Theme(**{**plotting.LIGHT.to_dict(), "primary": "#123456"})
    with plotting.theme(own):
        ax = plotting.timing(["a"], [1.0], ax=plotting.new_axes())
    assert mpl.colors.to_hex(ax.patches[0].get_facecolor()) == "#123456"


def test_themes_name_every_colour_once() -> None:
    for theme in (plotting.LIGHT, plotting.DARK):
        assert len(set(theme.to_dict().values())) == len(theme.to_dict())


def test_names_from_outside_are_drawn_as_they_are() -> None:
    hostile = "w$_{\\frac{}$ <b>\x1b[31m\n" + "x" * 100
    assert plain(hostile).startswith("w\\$_{\\frac{}\\$ <b> [31m x")
    assert len(plain(hostile).replace("\\$", "$")) == 60
    ax = plotting.timing([hostile], [1.0], ax=plotting.new_axes())
    ax.figure.savefig(io.BytesIO(), format="svg")
    plotting.line(scan((hostile,)), ax=ax).figure.savefig(io.BytesIO(), format="svg")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"curvops\[plot\]"):
        plotting.scree([1.0])
