"""The volume benchmark at a small size: its toy is right, its table says what is a bound."""

from __future__ import annotations

import pytest

from benchmarks import volume
from benchmarks.options import Options
from benchmarks.results import Row

OPTIONS = Options(problems=(), quick=True, say=lambda line: None)


def test_the_toy() -> None:
    rows = {row.variant: row for row in volume.toy(OPTIONS, 60)}
    assert rows["exact"].extra["log_volume"] == pytest.approx(-410.21, abs=0.01)
    assert rows["dense"].extra["log_volume"] == pytest.approx(-410.21, abs=0.01)
    assert rows["dense"].extra["ess"] > 59
    assert rows["none"].note == "lower bound"
    assert rows["none"].extra["log_volume"] < rows["lowrank"].extra["log_volume"]
    text = volume.table(list(rows.values())).text()
    assert text.count("(lower bound)") == 3


def test_a_published_number_stands_beside() -> None:
    extra = {"log_volume": -9000.0, "stderr": 1.0, "ess": 1.0, "largest_weight": 1.0}
    row = Row("digits", "log p, star", "curvops", "none", value=3.0, note="lower bound",
              extra=extra | {"published": -9795.0})  # fmt: skip
    assert "-9795" in volume.table([row]).text()
