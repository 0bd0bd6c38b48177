"""Pictures of rays and planes: what is drawn is what was found, with its gaps and its doubts."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from curvops import plotting
from curvops.errors import InputError
from curvops.landscape import Noise, Overlay, Plane, Rays
from tests.cases import rng

mpl.use("Agg")

NUM, RAYS = 12, 4
LABELS = ("descent", "descent on fc1", "random", "random on fc1")


def scan(accuracy: bool = True) -> Rays:
    """A quadratic of curvatures 1 to 4, resolved from the fifth distance on."""
    curvatures = torch.arange(1, RAYS + 1).double()
    distances = 1e-4 * 2.0 ** torch.arange(NUM).double().unsqueeze(1) * torch.ones(RAYS).double()
    losses = 1 + curvatures * distances**2 / 2
    floor = float((curvatures * distances**2)[4].min()) / 4 / 6**0.5 * 0.99
    flat = torch.full((NUM, RAYS), floor, dtype=torch.float64)
    return Rays(
        labels=LABELS,
        directions=("descent", "descent", "random", "random"),
        subspaces=("*", "fc1", "*", "fc1"),
        lengths=torch.ones(RAYS).double(),
        normalization="unit",
        distances=distances,
        losses=losses,
        loss=1.0,
        noise=Noise(flat, torch.zeros_like(flat), floor, 0.0, 9),
        metrics={"accuracy": 1 - distances} if accuracy else {},
        point_metrics={"accuracy": 1.0} if accuracy else {},
        losses_behind=losses,
        dtype=torch.float32,
        num_losses=50,
        num_gradients=1,
        num_matvecs=0,
        seconds=0.1,
    )


def surface() -> Plane:
    x, y = torch.linspace(-1, 1, 9).double(), torch.linspace(-2, 2, 7).double()
    losses = 0.01 + x**2 + y.unsqueeze(1) ** 2
    return Plane(
        labels=("u", "v"),
        x=x,
        y=y,
        losses=losses,
        origin=torch.zeros(3).double(),
        axes=torch.eye(3).double()[:, :2],
        loss=0.01,
        marks=torch.tensor([[0.0, 0.0], [0.5, 1.0]]).double(),
        mark_labels=("θ", "$x_{w}$"),
        mark_losses=torch.tensor([0.01, 1.26]).double(),
        metrics={"accuracy": 1 - losses / 10},
        dtype=torch.float64,
        num_losses=64,
        num_gradients=0,
        num_matvecs=0,
        seconds=0.1,
    )


def path() -> Overlay:
    t = torch.linspace(-1, 0, 5).double()
    losses = 0.01 + t**2
    return Overlay("run", torch.stack([t, t], dim=1), t.abs(), losses + 1, losses, 10, 0.1)


DRAW = {
    "rays": lambda ax: plotting.rays(scan(), ax=ax),
    "rise": lambda ax: plotting.rays(scan(), "rise", ax=ax),
    "curvature": lambda ax: plotting.rays(scan(), "curvature", ax=ax),
    "two-sided": lambda ax: plotting.rays(scan(), "two_sided_curvature", ax=ax),
    "accuracy": lambda ax: plotting.rays(scan(), "accuracy", ax=ax),
    "roughness": lambda ax: plotting.roughness(scan(), only="random*", ax=ax),
    "grit": lambda ax: plotting.grit(scan(), by="subspace", ax=ax),
    "plane": lambda ax: plotting.plane(surface(), path(), ax=ax),
    "plane of a metric": lambda ax: plotting.plane(surface(), path(), metric="accuracy", ax=ax),
    "overlay": lambda ax: plotting.overlay(path(), ax=ax),
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
    assert ax.get_ylabel()
    assert dict(mpl.rcParams) == settings
    assert pyplot.get_fignums() == figures


@pytest.mark.parametrize("name", ["grit", "plane", "overlay"])
def test_makes_its_own_figure(name: str) -> None:
    ax = DRAW[name](None)
    assert isinstance(ax, Axes)
    pyplot.close(ax.figure)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_surface_is_drawn_in_three_dimensions(theme: str) -> None:
    gap = surface()
    gap.losses[2, 3] = math.nan
    with plotting.theme(theme):
        ax = plotting.surface(gap)
        assert ax.name == "3d"
        ax.figure.savefig(io.BytesIO(), format="png")
        pyplot.close(ax.figure)
        figure = mpl.figure.Figure()
        given = figure.add_subplot(projection="3d")
        assert plotting.surface(surface(), scale="linear", limits=(0.0, 2.0), ax=given) is given
        assert given.get_zlim()[1] < 2.5
        with pytest.raises(InputError, match='projection="3d"'):
            plotting.surface(surface(), ax=plotting.new_axes())


# --------------------------------------------------------------------------- rays


def drawn(ax: Axes, marker: str) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Finite points of every line with that marker, and whether they are hollow."""
    found = []
    for line in ax.get_lines():
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata(), dtype=float)
        known = np.isfinite(y)
        if str(line.get_marker()) == marker and known.any():
            found.append((x[known], y[known], line.get_markerfacecolor() == "none"))
    return found


def test_what_rounding_hides_is_hollow_and_not_joined() -> None:
    result = scan()
    ax = plotting.grit(result, only="descent", ax=plotting.new_axes())
    resolved = result.resolved[:, :2]
    assert resolved[:, 0].tolist() == [False] * 4 + [True] * 7
    filled = [(x, y) for x, y, hollow in drawn(ax, "o") if not hollow]
    hollow = [(x, y) for x, y, hollow in drawn(ax, "o") if hollow]
    for k, (x, y) in enumerate(filled):
        np.testing.assert_allclose(x, result.distances[:-1, k][resolved[:, k]])
        np.testing.assert_allclose(y, result.grit[:, k][resolved[:, k]].abs())
    for k, (x, _) in enumerate(hollow):
        assert len(x) == int((~resolved[:, k]).sum())
    joined = drawn(ax, "None")
    assert sum(len(x) for x, _, _ in joined) == int(resolved.sum())
    assert ax.get_xscale() == ax.get_yscale() == "log"
    (shade,) = ax.collections
    floors = result.quantity("grit").floors[:, 0].numpy()
    heights = shade.get_paths()[0].vertices[:, 1]
    assert np.isclose(heights[:, None], floors).any(0).all()


def test_non_finite_losses_are_gaps() -> None:
    result = scan()
    result.losses[7, 0], result.losses[9:, 0] = math.nan, math.inf
    ax = plotting.rays(result, ax=plotting.new_axes())
    line = ax.get_lines()[0]
    seen = np.isfinite(np.asarray(line.get_ydata(), dtype=float))
    assert seen.tolist() == [True] * 7 + [False, True] + [False] * 3
    rough = plotting.roughness(result, only="descent", ax=plotting.new_axes())
    assert np.isfinite(np.asarray(rough.get_lines()[0].get_ydata(), dtype=float)).sum() == 2


def test_negative_values_point_down() -> None:
    result = scan()
    bent = replace(result, losses=2 - result.losses)
    ax = plotting.grit(bent, ax=plotting.new_axes())
    assert sum(len(x) for x, _, _ in drawn(ax, "v")) == int(bent.resolved.sum())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[-1] == "negative"


def test_colours_tell_directions_and_dashes_subspaces() -> None:
    ax = plotting.rays(scan(), ax=plotting.new_axes())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["descent", "random", "all parameters", "fc1"]
    lines = [line for line in ax.get_lines() if str(line.get_marker()) == "None"][:4]
    colours = [line.get_color() for line in lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    styles = [line.get_linestyle() for line in lines]
    assert styles[0] == styles[2] != styles[1] == styles[3]
    swapped = plotting.rays(scan(), by="subspace", ax=plotting.new_axes())
    labels = [text.get_text() for text in swapped.get_legend().get_texts()]
    assert labels == ["all parameters", "fc1", "descent", "random"]
    one = plotting.rays(scan(), only=["descent"], ax=plotting.new_axes())
    labels = [text.get_text() for text in one.get_legend().get_texts()]
    assert labels == ["all parameters", "fc1"]


def test_more_directions_than_colours_are_told_apart() -> None:
    many = scan()
    ten = 10

    def wide(t: torch.Tensor) -> torch.Tensor:
        return t[:, :1].repeat(1, ten)

    many = replace(
        many,
        labels=tuple(f"d{k}" for k in range(ten)),
        directions=tuple(f"d{k}" for k in range(ten)),
        subspaces=("*",) * ten,
        distances=wide(many.distances),
        losses=wide(many.losses),
        noise=replace(many.noise, spread=wide(many.noise.spread), shift=wide(many.noise.shift)),
    )
    ax = plotting.rays(many, ax=plotting.new_axes())
    lines = [line for line in ax.get_lines() if str(line.get_marker()) == "None"][:ten]
    styles = {(line.get_color(), str(line._dash_pattern)) for line in lines}
    assert len(styles) == ten


def test_a_metric_is_on_a_linear_axis_with_its_value_at_the_point() -> None:
    ax = plotting.rays(scan(), "accuracy", ax=plotting.new_axes())
    assert ax.get_yscale() == "linear"
    assert ax.get_ylabel() == "accuracy"
    assert any(set(np.asarray(line.get_ydata())) == {1.0} for line in ax.get_lines())


def test_bad_rays() -> None:
    with pytest.raises(InputError, match=r"only='fc9' matches none"):
        plotting.rays(scan(), only="fc9")
    with pytest.raises(InputError, match="no quantity 'rough'"):
        plotting.rays(scan(), "rough")
    with pytest.raises(InputError, match="by is 'layer'"):
        plotting.rays(scan(), by="layer")  # type: ignore[arg-type]
    lost = scan()
    lost.losses.fill_(math.nan)
    with pytest.raises(InputError, match="No loss on these rays is finite"):
        plotting.rays(lost)


# --------------------------------------------------------------------------- planes


def test_points_above_the_plane_have_the_colour_of_their_true_loss() -> None:
    ax = plotting.plane(surface(), path(), ax=plotting.new_axes())
    (points,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(points.get_array(), path().losses)
    np.testing.assert_allclose(points.get_offsets(), path().coordinates)
    background = ax.collections[0]
    assert points.norm is background.norm or points.norm.vmin == background.norm.vmin
    assert [t.get_text() for t in ax.texts] == ["θ", r"\$x_{w}\$"]
    assert ax.get_aspect() == 1


def test_scales_and_limits() -> None:
    log = plotting.plane(surface(), ax=plotting.new_axes())
    assert isinstance(log.collections[0].norm, mpl.colors.LogNorm)
    linear = plotting.plane(surface(), scale="linear", ax=plotting.new_axes())
    assert not isinstance(linear.collections[0].norm, mpl.colors.LogNorm)
    cut = plotting.plane(surface(), limits=(0.1, 1.0), levels=5, ax=plotting.new_axes())
    assert cut.collections[0].norm.vmax == 1.0
    level = replace(surface(), losses=torch.ones(7, 9).double())
    plotting.plane(level, ax=plotting.new_axes())


def test_gaps_of_a_plane_are_seen() -> None:
    gap = surface()
    gap.losses[0, :4] = math.nan
    gap.losses[5, 5] = math.inf
    with plotting.theme("light") as colours:
        ax = plotting.plane(gap, ax=plotting.new_axes())
        assert mpl.colors.to_hex(ax.get_facecolor()) == colours.grid
        ax.figure.savefig(io.BytesIO(), format="png")


def test_overlays_show_both_losses() -> None:
    ax = plotting.overlay(path(), ax=plotting.new_axes())
    true, below = ax.get_lines()
    np.testing.assert_allclose(true.get_ydata(), path().losses)
    np.testing.assert_allclose(below.get_ydata(), path().plane_losses)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["true loss", "loss of the plane below"]


def test_bad_planes() -> None:
    with pytest.raises(InputError, match="scale is 'symlog'"):
        plotting.plane(surface(), scale="symlog")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no metric 'error'"):
        plotting.plane(surface(), metric="error")
    with pytest.raises(InputError, match="levels is 1"):
        plotting.plane(surface(), levels=1)
    with pytest.raises(InputError, match="limits"):
        plotting.plane(surface(), limits=(1.0, 0.0))
    negative = replace(surface(), losses=-surface().losses)
    with pytest.raises(InputError, match="positive"):
        plotting.plane(negative, scale="log")
    lost = replace(surface(), losses=torch.full((7, 9), math.nan).double())
    for draw in (plotting.plane, plotting.surface):
        with pytest.raises(InputError, match="No value on this plane"):
            draw(lost)
    nowhere = replace(
        path(), losses=path().losses * math.nan, plane_losses=path().losses * math.nan
    )
    with pytest.raises(InputError, match="No loss of 'run' is finite"):
        plotting.overlay(nowhere)


def test_random_data_are_drawn_without_warnings() -> None:
    g = rng(0)
    noisy = replace(scan(), losses=1 + 1e-9 * torch.randn(NUM, RAYS, generator=g).double())
    for name in ("rise", "roughness", "grit", "curvature"):
        assert plotting.rays(noisy, name, ax=plotting.new_axes()).has_data()
