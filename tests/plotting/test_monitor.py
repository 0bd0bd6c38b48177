"""The panels of a monitored run: what is drawn is what was measured."""

from __future__ import annotations

import io
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from curvops import plotting
from curvops.errors import InputError, MissingDependencyError
from curvops.plotting.monitor import panels_of
from curvops.training import Record, Run

mpl.use("Agg")

VALUES = {
    "step": {"loss": 1.0, "batch_size": 32},
    "alpha": {"alpha": 0.2, "status": "ok"},
    "exact_alpha": {"alpha": -0.1, "status": "ok"},
    "gradient_noise": {"noise_scale": 50.0, "batch_size": 32},
    "sharpness": {"eigenvalues": [3.0, 2.0, 1.0], "threshold": 20.0, "sharpness": 3.0},
    "hessian_trace": {"layers": ["0", "$x$"], "traces": [1.0, 2.0], "stderrs": [0.1, 0.2]},
    "subspace_overlap": {"overlap": None, "gradient_fraction": 0.4},
    "tic": {"diagonal": 500.0, "ratio_of_traces": 0.5},
    "early_stopping": {"evidence": -1.0},
}


def run(steps: int = 12) -> Run:
    return Run({}, tuple(Record(i, q, v) for i in range(steps) for q, v in VALUES.items()))


def lines(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in ax.get_lines()
        if len(line.get_xdata()) > 0
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("quantity", list(VALUES))
def test_every_panel_renders(quantity: str, theme: str) -> None:
    settings, figures = dict(mpl.rcParams), pyplot.get_fignums()
    with plotting.theme(theme) as colours:
        ax = plotting.new_axes()
        assert plotting.monitor_panel(run(), quantity, ax=ax) is ax
        assert mpl.colors.to_hex(ax.get_facecolor()) == colours.paper
        ax.figure.savefig(io.BytesIO(), format="svg")
    assert ax.get_ylabel()
    assert ax.has_data()
    assert dict(mpl.rcParams) == settings
    assert pyplot.get_fignums() == figures


def test_one_panel_for_each_quantity_and_one_for_both_alphas() -> None:
    axes = plotting.monitor(run())
    assert [ax.get_ylabel() for ax in axes] == [
        "loss", "α", "data", "eigenvalue", "trace", "top subspace", "TIC", "evidence to stop",
    ]  # fmt: skip
    assert [bool(ax.get_xlabel()) for ax in axes] == [False] * 7 + [True]
    pyplot.close(axes[0].figure)


def test_what_is_drawn_is_what_was_measured() -> None:
    sharp = plotting.monitor_panel(run(), "sharpness", ax=plotting.new_axes())
    drawn = lines(sharp)
    assert drawn["λ_max"] == (list(range(12)), [3.0] * 12)
    assert drawn["edge of stability"][1] == [20.0] * 12
    assert sharp.get_yscale() == "log"
    loss = plotting.monitor_panel(run(), "step", ax=plotting.new_axes())
    assert next(iter(lines(loss).values()))[1] == [1.0] * 12
    assert loss.get_yscale() == "linear"


def test_alpha_tells_apart_what_is_no_distance() -> None:
    records = [
        Record(i, "alpha", {"alpha": a, "status": s})
        for i, (a, s) in enumerate(
            [(0.1, "ok"), (-1.0, "concave"), (None, "undetermined"), (900.0, "ok")]
        )
    ]
    ax = plotting.monitor_panel(Run({}, tuple(records)), "alpha", ax=plotting.new_axes())
    drawn = lines(ax)
    assert drawn["of mini-batches"] == ([0, 3], [0.1, 900.0])
    assert drawn["no minimum ahead"] == ([1], [-1.0])
    low, high = ax.get_ylim()
    assert low < -1 < 1 < high


def test_missing_values_and_failures_are_left_out() -> None:
    records = (
        Record(0, "sharpness", {"status": "failed", "notes": ["x"]}),
        Record(1, "sharpness", VALUES["sharpness"] | {"threshold": None}),
        Record(0, "gradient_noise", {"noise_scale": None, "status": "undetermined"}),
        Record(0, "early_stopping", {"status": "failed"}),
    )
    for quantity in ("sharpness", "gradient_noise", "early_stopping"):
        ax = plotting.monitor_panel(Run({}, records), quantity, ax=plotting.new_axes())
        ax.figure.savefig(io.BytesIO(), format="png")
    assert "edge of stability" not in lines(
        plotting.monitor_panel(Run({}, records), "sharpness", ax=plotting.new_axes())
    )


def test_bad_input() -> None:
    with pytest.raises(InputError, match="nothing that can be drawn"):
        plotting.monitor(Run())
    with pytest.raises(InputError, match="no panel 'tic'"):
        plotting.monitor(Run({}, run().records[:1]), panels=["tic"])
    with pytest.raises(InputError, match="2 axes for 1 panels"):
        plotting.monitor(run(), panels=["tic"], axes=[plotting.new_axes()] * 2)
    with pytest.raises(InputError, match="has not measured"):
        plotting.monitor_panel(run(), "speed")
    assert panels_of(Run()) == []
    chosen = plotting.monitor(
        run(), panels=["tic", "step"], axes=[plotting.new_axes() for _ in "ab"]
    )
    assert [ax.get_ylabel() for ax in chosen] == ["TIC", "loss"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"curvops\[plot\]"):
        plotting.monitor(run())


def test_long_runs_are_lines_and_short_ones_have_points() -> None:
    short = plotting.monitor_panel(run(5), "step", ax=plotting.new_axes()).get_lines()[0]
    long = plotting.monitor_panel(run(100), "step", ax=plotting.new_axes()).get_lines()[0]
    assert short.get_marker() == "o"
    assert long.get_marker() in ("None", "", None)
    assert np.all(np.diff(long.get_xdata()) == 1)
