"""Pictures of bridges: the ladders, and the bracket around a volume."""

from __future__ import annotations

import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from numpy.testing import assert_allclose

from curvops import plotting
from curvops.errors import InputError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.volume import StarVolume, star_volume
from curvops.volume.bridge import bridge_volume
from curvops.volume.bridge_result import BridgeVolume
from curvops.volume.cost import Cost
from tests.volume.problems import quadratic

OPTIONS = {"threshold": 0.1, "prior_std": 1.0}
QUICK = {"num_chains": 8, "num_moves": 4, "num_leapfrog": 3, "num_runs": 2, "start": "prior"}


@pytest.fixture(scope="module")
def risk():  # type: ignore[no-untyped-def]
    return quadratic(torch.diag(torch.tensor([1.0, 5.0]).double()), torch.ones(2).double())


@pytest.fixture(scope="module")
def found(risk) -> BridgeVolume:  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        return bridge_volume(Cost(risk), **OPTIONS, **QUICK, round_trip=True)


@pytest.fixture(scope="module")
def split(risk) -> BridgeVolume:  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        return bridge_volume(Cost(risk), **OPTIONS, **QUICK, path="splitting")


@pytest.fixture(scope="module")
def star(risk) -> StarVolume:  # type: ignore[no-untyped-def]
    return star_volume(risk, **OPTIONS, num_directions=100)


def test_ladders(found: BridgeVolume) -> None:
    axes = plotting.bridge(found)
    assert [ax.get_ylabel() for ax in axes] == ["mean cost", "effective share", "acceptance"]
    up = [s for s in found.ladders[0] if s.stage == "temper"]
    drawn = axes[0].lines[0]
    assert_allclose(drawn.get_xdata(), [s.beta for s in up])
    assert_allclose(drawn.get_ydata(), [s.mean_cost for s in up])
    assert axes[0].get_xscale() == axes[0].get_yscale() == "log"
    assert any("ε = 0.1" in text.get_text() for text in axes[0].texts)
    dashed = [line for line in axes[0].lines if line.get_linestyle() == "--"]
    assert len(dashed) >= 2  # the ways back of two runs
    plt.close(axes[0].figure)
    with pytest.raises(InputError, match="1 axes for 3 panels"):
        plotting.bridge(found, axes=[plotting.new_axes()])


@pytest.mark.parametrize("quantity", ["log_z", "families", "ess"])
def test_panels(found: BridgeVolume, split: BridgeVolume, quantity: str) -> None:
    ax = plotting.bridge_panel(found, quantity, ax=plotting.new_axes())
    assert ax.get_xlabel() == "inverse temperature β"
    ax = plotting.bridge_panel(split, quantity, ax=plotting.new_axes())
    assert ax.get_xlabel() == "level of the cost  [units of the loss]"
    assert ax.xaxis_inverted()
    values = {"log_z": "log_z", "families": "num_families"}
    if quantity in values:
        steps = [s for s in split.ladders[1] if s.level > 0]
        assert_allclose(ax.lines[1].get_ydata(), [getattr(s, values[quantity]) for s in steps])
    ax.figure.canvas.draw()
    with pytest.raises(InputError, match="quantity must be one of"):
        plotting.bridge_panel(found, "colour", ax=plotting.new_axes())


def test_bracket(found: BridgeVolume, split: BridgeVolume, star: StarVolume) -> None:
    ax = plotting.bracket(found, {"star": star, "published": -9.0}, ax=plotting.new_axes())
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["star", "published", "bridge, whole level set", "Chernoff"]
    marks = {line.get_marker(): line for line in ax.lines if len(line.get_xdata()) == 1}
    assert float(marks["o"].get_xdata()[0]) == float(found)
    assert float(marks["<"].get_xdata()[0]) == float(found.chernoff)  # type: ignore[arg-type]
    [span] = ax.patches
    assert span.get_x() == pytest.approx(float(star))
    assert span.get_x() + span.get_width() == pytest.approx(float(found.chernoff))  # type: ignore[arg-type]
    assert ax.get_xlabel() == "log p(cost ≤ 0.1)  [nats]"
    ax.figure.canvas.draw()
    with pytest.raises(InputError, match="no Chernoff bound"):
        plotting.bracket(split, {"star": star}, ax=plotting.new_axes())
    with pytest.raises(InputError, match="stars is empty"):
        plotting.bracket(found, {}, ax=plotting.new_axes())
    with pytest.raises(InputError, match=r"at a threshold of 0\.5"):
        plotting.bracket(found, {"star": replace(star, threshold=0.5)}, ax=plotting.new_axes())
