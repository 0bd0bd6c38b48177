"""Pictures of paths, trajectories and eigenspaces: what is drawn is what was found."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor

from curvops import plotting
from curvops.errors import InputError, ShapeError
from curvops.landscape import Eigenspaces, PathScan, Trajectory, TrajectoryPCA
from tests import cases

mpl.use("Agg")

T = torch.linspace(0, 1, 21, dtype=torch.float64)


def scan(height: float = 2.0, name: str = "segment") -> PathScan:
    losses = 0.1 + height * 4 * T * (1 - T)
    accuracy = 1 - 0.4 * T * (1 - T)
    return PathScan(name, T, 7 * T, losses, {"accuracy": accuracy}, False, torch.float32, 21, 0.1)


def pca(k: int = 3) -> TrajectoryPCA:
    trajectory = Trajectory()
    for point in cases.randn(30, 200, seed=0).cumsum(0):
        trajectory.record(point)
    return trajectory.pca(k)


def track(**change: Any) -> Eigenspaces:
    T = 6
    values = torch.tensor([[4.0, 2.0, 1.0]]).double() * torch.linspace(1, 2, T).double()[:, None]
    fields: dict[str, Any] = {
        "steps": torch.arange(T) * 10,
        "eigenvalues": values,
        "residuals": 0.01 * values,
        "converged": torch.ones(T, 3, dtype=torch.bool),
        "overlaps": torch.full((T, T), 0.6).double().fill_diagonal_(1.0),
        "gradient_shares": torch.full((T,), 0.3).double(),
        "num_matvecs": torch.full((T,), 9),
        "dim": 300,
        "tol": 1e-2,
        "warm_start": True,
        "seconds": 0.1,
    }
    return Eigenspaces(**{**fields, **change})


Draw = Callable[[Any], Axes]
DRAW: dict[str, Draw] = {
    "path": lambda ax: plotting.path([scan(), scan(0.1, "bezier")], ax=ax),
    "path, metric": lambda ax: plotting.path(scan(), metric="accuracy", x="distance", ax=ax),
    "explained variance": lambda ax: plotting.explained_variance(pca(), ax=ax),
    "trajectory": lambda ax: plotting.trajectory(pca(), ax=ax),
    "eigenvalues": lambda ax: plotting.eigenvalues_over_steps(track(), ax=ax),
    "turning": lambda ax: plotting.turning(track(), ax=ax),
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


@pytest.mark.parametrize("name", list(DRAW))
def test_makes_its_own_figure(name: str) -> None:
    ax = DRAW[name](None)
    assert isinstance(ax, Axes)
    pyplot.close(ax.figure)


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = [ln for ln in ax.get_lines() if str(ln.get_label()).startswith(label)]
    return np.asarray(found[0].get_xdata()), np.asarray(found[0].get_ydata())


# Paths ---------------------------------------------------------------------------------------


def test_paths_are_drawn_with_their_barriers() -> None:
    ax = plotting.path([scan(), scan(0.1)], labels=["straight", "bent $"], ax=plotting.new_axes())
    assert legend(ax) == ["straight, barrier 2", "bent \\$, barrier 0.1"]
    x, y = line(ax, "straight")
    np.testing.assert_array_equal(x, T)
    np.testing.assert_array_equal(y, scan().losses)
    dots = [ln for ln in ax.get_lines() if ln.get_marker() == "o"]
    assert [float(ln.get_xdata()[0]) for ln in dots] == [0.5, 0.5]
    assert ax.get_yscale() == "linear"
    tall = plotting.path(scan(200.0), ax=plotting.new_axes())
    assert tall.get_yscale() == "log"
    level = plotting.path(scan(200.0), scale="linear", ax=plotting.new_axes())
    assert level.get_yscale() == "linear"


def test_distance_and_metrics() -> None:
    ax = plotting.path(scan(), metric="accuracy", x="distance", ax=plotting.new_axes())
    x, y = line(ax, "segment")
    np.testing.assert_array_equal(x, 7 * T)
    np.testing.assert_array_equal(y, scan().metrics["accuracy"])
    assert ax.get_ylabel() == "accuracy"
    assert legend(ax) == ["segment"]


def test_what_is_not_finite_is_a_gap() -> None:
    broken = scan()
    broken.losses[5:8] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    ax = plotting.path(broken, ax=plotting.new_axes())
    _, y = line(ax, "segment")
    assert not np.isfinite(y[5:8]).any()
    assert legend(ax) == ["segment, barrier nan"]
    ax.figure.savefig(io.BytesIO(), format="png")
    broken.losses[:] = torch.nan
    with pytest.raises(InputError, match="No value"):
        plotting.path(broken, ax=plotting.new_axes())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"scans": []}, InputError, "empty"),
        ({"labels": ["a", "b"]}, ShapeError, "2 labels for 1"),
        ({"metric": "error"}, InputError, "no metric 'error'"),
        ({"x": "length"}, InputError, "'length'"),
        ({"scale": "cubic"}, InputError, "'cubic'"),
    ],
)
def test_bad_paths(change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        plotting.path(**{"scans": scan(), "ax": plotting.new_axes(), **change})


# Trajectories --------------------------------------------------------------------------------


def test_the_null_is_in_the_picture() -> None:
    found = pca()
    ax = plotting.explained_variance(found, num=8, ax=plotting.new_axes())
    _, walk = line(ax, "random walk")
    _, own = line(ax, "trajectory")
    np.testing.assert_allclose(walk, found.null[:8])
    np.testing.assert_allclose(own, found.explained[:8])
    assert legend(ax)[0] == f"random walk, first two {float(found.null[:2].sum()):.0%}"
    assert ax.get_yscale() == "log"
    path = plotting.trajectory(found, ax=plotting.new_axes())
    x, y = line(path, "random walk")
    cosines = found.null_coordinates
    np.testing.assert_allclose(np.abs(np.stack([x, y], 1)), cosines[:, :2].abs())
    assert f"walk {float(found.null[0]):.1%}" in path.get_xlabel()
    # The walk is turned to the side on which the trajectory is.
    points = found.coordinates[:, :2].numpy()
    assert float((np.stack([x, y], 1) * points).sum(0).min()) >= 0
    alone = plotting.trajectory(found, null=False, first=2, second=1, ax=plotting.new_axes())
    assert not [ln for ln in alone.get_lines() if ln.get_label() == "random walk"]
    assert alone.get_xlabel().startswith("component 3")


def test_components_of_rounding_are_left_out() -> None:
    trajectory = Trajectory()
    for i in range(6):
        trajectory.record(float(i) * torch.ones(50, dtype=torch.float64))
    ax = plotting.explained_variance(trajectory.pca(), ax=plotting.new_axes())
    _, own = line(ax, "trajectory")
    assert np.isfinite(own).sum() == 1
    ax.figure.savefig(io.BytesIO(), format="png")


def test_components_that_do_not_exist() -> None:
    with pytest.raises(InputError, match="second is 3"):
        plotting.trajectory(pca(), second=3, ax=plotting.new_axes())
    with pytest.raises(InputError, match="num"):
        plotting.explained_variance(pca(), num=0, ax=plotting.new_axes())


# Eigenspaces ---------------------------------------------------------------------------------


def test_eigenvalues_and_what_has_not_converged() -> None:
    converged = torch.ones(6, 3, dtype=torch.bool)
    converged[2, 1] = False
    ax = plotting.eigenvalues_over_steps(track(converged=converged), ax=plotting.new_axes())
    _, top = line(ax, "λmax")
    np.testing.assert_allclose(top, track().largest)
    hollow = [ln for ln in ax.get_lines() if ln.get_linestyle() == "None" and len(ln.get_xdata())]
    assert [list(ln.get_xdata()) for ln in hollow] == [[20]]
    assert legend(ax) == ["ranks 2 to 3", "λmax"]
    assert ax.get_yscale() == "log"
    negative = track(eigenvalues=-track().eigenvalues)
    assert (
        plotting.eigenvalues_over_steps(negative, ax=plotting.new_axes()).get_yscale() == "linear"
    )
    one = track(eigenvalues=track().eigenvalues[:, :1], converged=converged[:, :1])
    assert legend(plotting.eigenvalues_over_steps(one, ax=plotting.new_axes())) == ["λmax"]


def test_overlaps_beside_the_random_level() -> None:
    ax = plotting.turning(track(), ax=plotting.new_axes())
    _, before = line(ax, "overlap with previous")
    np.testing.assert_allclose(before, np.full(5, 0.6))
    _, level = line(ax, "random")
    np.testing.assert_allclose(level, [0.01, 0.01])
    assert len(legend(ax)) == 4
    nothing: Tensor = torch.full((6, 6), torch.nan).double().fill_diagonal_(1.0)
    for t in range(5):
        nothing[t, t + 1] = nothing[t + 1, t] = 0.5
    no_gradient = torch.full((6,), torch.nan).double()
    bare = track(overlaps=nothing, gradient_shares=no_gradient)
    drawn = plotting.turning(bare, ax=plotting.new_axes())
    assert legend(drawn) == ["overlap with previous", "random, 0.01"]
