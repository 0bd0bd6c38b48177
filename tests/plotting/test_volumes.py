"""Pictures of basin volumes: what is drawn, and what refuses to be."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from matplotlib.axes import Axes
from numpy.testing import assert_allclose

from curvops import plotting
from curvops.errors import InputError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.volume import (
    Box,
    QuadraticVolume,
    StarVolume,
    VolumeScaling,
    basin_volume,
    ellipsoid_volume,
    star_volume,
    volume_scaling,
)
from tests.volume.problems import crossing, quadratic, toy


@pytest.fixture(scope="module")
def good() -> StarVolume:
    risk = quadratic(torch.diag(torch.tensor([1.0, 2.0, 5.0]).double()))
    return star_volume(
        risk, threshold=0.1, measure="lebesgue", preconditioner="none", num_directions=200
    )


@pytest.fixture(scope="module")
def bound() -> StarVolume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        return star_volume(
            toy()[0], threshold=0.1, measure="lebesgue", preconditioner="none", num_directions=50
        )


@pytest.fixture(scope="module")
def exact() -> QuadraticVolume:
    risk = quadratic(torch.diag(torch.tensor([1.0, 2.0, 5.0]).double()))
    return ellipsoid_volume(risk, threshold=0.1)


@pytest.fixture(scope="module")
def scaling() -> VolumeScaling:
    return volume_scaling(crossing(), [1e-4, 1e-3, 1e-2], measure=Box(-1.0, 1.0))


def markers(ax: Axes) -> list[float]:
    """Abscissae of the round markers, in the order of the rows."""
    return [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]


def test_volumes_by_method(exact: QuadraticVolume, good: StarVolume, bound: StarVolume) -> None:
    ax = plotting.volumes(
        {"quadratic": exact, "star": good, "isotropic": bound}, ax=plotting.new_axes()
    )
    assert_allclose(markers(ax), [r.log_volume for r in (exact, good, bound)])
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["quadratic", "star", "isotropic"]
    assert ax.get_xlabel() == "log V  [nats]"
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    assert faces[0] == faces[1] != faces[2]  # a lower bound is open, and has an arrow
    assert len(ax.texts) == 1
    ax.figure.canvas.draw()


def test_a_bridge_stands_below_its_bound() -> None:
    risk = quadratic(torch.eye(2, dtype=torch.float64), torch.ones(2).double())
    options = {"threshold": 0.1, "measure": "gaussian", "prior_std": 1.0}
    bridge = basin_volume(risk, "bridge", **options, num_runs=2, num_chains=8)  # type: ignore[arg-type]
    star = basin_volume(risk, "star", **options)  # type: ignore[arg-type]
    ax = plotting.volumes({"star": star, "bridge": bridge}, ax=plotting.new_axes())
    across = [line for line in ax.lines if line.get_marker() == "|" and line.get_label()[0] == "C"]
    assert [float(x) for x in across[0].get_xdata()] == [float(bridge.chernoff)]  # type: ignore[arg-type]
    assert across[0].get_ydata()[0] == 1
    assert ax.get_xlabel() == "log p  [nats]"


def test_measures_are_not_mixed(good: StarVolume, exact: QuadraticVolume) -> None:
    risk = quadratic(torch.eye(3, dtype=torch.float64), torch.ones(3).double())
    gaussian = ellipsoid_volume(risk, threshold=0.1, measure="gaussian")
    with pytest.raises(InputError, match="mixes measures"):
        plotting.volumes({"a": exact, "b": gaussian}, ax=plotting.new_axes())
    with pytest.raises(InputError, match="empty"):
        plotting.volumes({}, ax=plotting.new_axes())
    with pytest.raises(InputError, match="no sum of terms"):
        plotting.volume_terms(gaussian, ax=plotting.new_axes())


def test_weights(good: StarVolume, bound: StarVolume) -> None:
    ax = plotting.volume_weights(bound, ax=plotting.new_axes())
    steps = next(line for line in ax.lines if line.get_label() == "their share of the volume")
    shares = bound.weights.sort(descending=True).values.cumsum(0)
    assert_allclose(steps.get_ydata(), shares)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"ESS {bound.ess:.3g}" in labels
    ax = plotting.volume_weights(good, ax=plotting.new_axes())
    line = next(line for line in ax.lines if line.get_label().startswith("ESS"))
    assert float(line.get_xdata()[0]) == pytest.approx(good.ess)


def test_radii(good: StarVolume) -> None:
    ax = plotting.star_radii(good, bins=10, ax=plotting.new_axes())
    heights = {p.get_label(): p.get_data().values for p in ax.patches if p.get_label()}
    for label in ("of the directions", "of the volume"):
        assert float(sum(heights[label])) == pytest.approx(1.0)
    # Volume sits where rays are long.
    assert heights["of the volume"][-1] > heights["of the directions"][-1]
    same = replace(good, radii=torch.ones(200).double())
    plotting.star_radii(same, ax=plotting.new_axes()).figure.canvas.draw()


def test_scaling_and_exponents(scaling: VolumeScaling) -> None:
    ax = plotting.volume_scaling(scaling, ax=plotting.new_axes())
    assert ax.get_xscale() == "log"
    drawn = next(line for line in ax.lines if line.get_marker() == "o")
    assert_allclose(drawn.get_ydata(), scaling.log_volume)
    ax = plotting.local_exponent(scaling, reference=0.5, ax=plotting.new_axes())
    drawn = next(line for line in ax.lines if line.get_marker() == "o")
    assert_allclose(drawn.get_ydata(), scaling.exponent)
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert_allclose(dashed.get_ydata(), 0.5)
    assert "log ε" in ax.get_ylabel()
    doubtful = replace(scaling, converged=torch.tensor([False, True, True]))
    ax = plotting.volume_scaling(doubtful, ax=plotting.new_axes())
    counts = sorted(len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o")
    assert counts == [1, 2]


def test_a_regular_minimum_is_drawn_beside_half_its_dimension() -> None:
    risk = quadratic(torch.eye(4, dtype=torch.float64))
    result = volume_scaling(risk, [0.1, 1.0], measure="lebesgue", num_directions=20)
    ax = plotting.local_exponent(result, ax=plotting.new_axes())
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert_allclose(dashed.get_ydata(), 2.0)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_both_themes(name: str, good: StarVolume, scaling: VolumeScaling) -> None:
    with plotting.theme(name):
        for draw, result in (
            (plotting.volume_weights, good),
            (plotting.star_radii, good),
            (plotting.volume_scaling, scaling),
            (plotting.local_exponent, scaling),
        ):
            ax = draw(result, ax=plotting.new_axes())  # type: ignore[operator]
            ax.figure.canvas.draw()
            assert all(math.isfinite(x) for x in (*ax.get_xlim(), *ax.get_ylim()))
