"""Pictures of chains and sweeps show what the results hold."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from curvops import plotting
from curvops.errors import InputError
from curvops.plotting.coefficient_sweep import coefficient_sweep as draw_sweep
from curvops.plotting.learning_coefficient import learning_coefficient as draw
from curvops.volume.coefficient_result import LearningCoefficient
from curvops.volume.coefficient_sweep import CoefficientSweep, coefficient_sweep
from tests.volume.test_learning_coefficient import closed, quietly

mpl.use("Agg")


def chains(**options: Any) -> LearningCoefficient:
    settings: dict[str, Any] = {"num_draws": 60, "num_burnin": 40, "num_leapfrog": 3}
    return quietly(closed(1.0, 2.0, 3.0), **(settings | options))


@pytest.fixture(scope="module")
def sweep() -> CoefficientSweep:
    return coefficient_sweep(
        closed(1.0, 2.0),
        method="sgld",
        step_sizes=(1e-4, 1e-3, 1e2),
        localizations=(0.5, 5.0),
        num_draws=200,
        num_burnin=50,
    )


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_they_render_into_given_axes(sweep: CoefficientSweep, theme: str) -> None:
    before = pyplot.get_fignums()
    with plotting.theme(theme) as colours:
        for picture, result in ((draw, chains()), (draw_sweep, sweep)):
            ax = plotting.new_axes()
            assert picture(result, ax=ax) is ax  # type: ignore[operator]
            assert to_hex(ax.get_facecolor()) == colours.paper
            buffer = io.BytesIO()
            ax.figure.savefig(buffer, format="png")
            assert buffer.getvalue().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == before


def test_traces_are_the_draws() -> None:
    result = chains(num_chains=3)
    ax = draw(result, ax=plotting.new_axes())
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(
        lines["mean of the chains"].get_ydata(), result.samples.mean(0).numpy()
    )
    np.testing.assert_allclose(lines["burn-in"].get_xdata(), np.arange(-40, 0))
    np.testing.assert_allclose(lines["burn-in"].get_ydata(), result.burnin.mean(0).numpy())
    thin = [line for line in ax.lines if len(line.get_ydata()) == 60 and line.get_alpha()]
    assert len(thin) == 3
    np.testing.assert_allclose(thin[1].get_ydata(), result.samples[1].numpy())
    level = next(line for line in ax.lines if line.get_label().startswith("λ̂ = "))
    assert level.get_ydata()[0] == result.value
    assert ax.get_xlabel() == "draw"


def test_doubts_are_in_the_legend() -> None:
    result = chains(num_chains=2, num_draws=10)
    assert not result.converged
    assert any("not converged" in text for text in texts(draw(result, ax=plotting.new_axes())))


def test_many_draws_are_averaged_and_many_chains_cut() -> None:
    result = chains(method="sgld", num_draws=1000, num_burnin=0, num_chains=20, step_size=1e-4)
    ax = draw(result, ax=plotting.new_axes())
    mean = next(line for line in ax.lines if line.get_label() == "mean of the chains")
    assert len(mean.get_xdata()) == 250
    np.testing.assert_allclose(mean.get_ydata()[3], result.samples[:, 12:16].mean())
    assert mean.get_xdata()[3] == 13.5
    assert len([line for line in ax.lines if line.get_alpha()]) == 12
    assert ax.get_xlabel() == "step"
    assert "burn-in" not in texts(ax)


def test_a_sweep_along_its_longest_choice(sweep: CoefficientSweep) -> None:
    ax = draw_sweep(sweep, ax=plotting.new_axes())
    assert ax.get_xlabel() == "step size"
    assert ax.get_xscale() == "log"
    assert texts(ax) == ["γ = 0.5", "γ = 5"]
    drawn = [line for line in ax.lines if line.get_label() == "γ = 5"]
    values = [r.result.value for r in sweep.runs if r.localization == 5.0 and r.result]
    np.testing.assert_allclose(drawn[0].get_ydata(), values)
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[1e2], [1e2]]


def test_a_sweep_along_another_choice(sweep: CoefficientSweep) -> None:
    ax = draw_sweep(sweep, "localization", ax=plotting.new_axes())
    assert ax.get_xlabel() == "γ"
    assert texts(ax) == ["step size = 0.0001", "step size = 0.001", "step size = 100"]
    with pytest.raises(InputError, match="along must be one of"):
        draw_sweep(sweep, "seed")  # type: ignore[arg-type]


def test_a_mark_is_hollow_where_chains_have_not_converged() -> None:
    found = coefficient_sweep(
        closed(1.0, 2.0), localizations=(1.0,), num_draws=10, num_burnin=20, num_chains=2
    )
    with plotting.theme("light") as colours:
        ax = draw_sweep(found, ax=plotting.new_axes())
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    assert [to_hex(m.get_markerfacecolor()) for m in marks] == [colours.paper]
    assert ax.get_legend() is None
