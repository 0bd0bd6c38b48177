"""The landscape benchmark on a network of no size: its ways agree, its reasons are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import isolated, landscape, landscape_probe
from benchmarks.options import Options
from benchmarks.results import MEASURED, Row

OPTIONS = Options(problems=(), repeats=2, say=lambda line: None)


@pytest.fixture
def plane() -> landscape.Plane:
    return landscape_probe._tiny()


def test_the_grid_is_what_the_columns_are(plane: landscape.Plane) -> None:
    columns, affine = plane.columns, plane.affine
    assert columns.shape[1] == landscape.SIDE**2 == 81
    middle = landscape.SIDE**2 // 2
    assert torch.equal(columns[:, middle], plane.origin)
    corner = plane.origin - landscape.RADIUS * plane.directions.sum(1)
    torch.testing.assert_close(columns[:, 0], corner)
    torch.testing.assert_close(plane.risk().losses(affine), plane.risk().losses(columns))
    assert torch.linalg.matrix_rank(plane.scattered - plane.origin.unsqueeze(1)) > 2


def test_all_ways_of_ours_agree_with_copies(
    plane: landscape.Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "_with_memory", lambda options, row: row)
    ways = tuple(way for way in landscape.WAYS if way.library == "curvops")
    rows = landscape.measured(OPTIONS, plane, 4, ways)
    assert [row.variant for row in rows] == [landscape.COPIES, *(way.variant for way in ways)]
    assert all(row.status == MEASURED and row.extra["error"] < 1e-5 for row in rows)
    assert all(row.rounds == 2 for row in rows[1:])
    assert len(landscape.table(rows).rows) == len(rows)


def test_reasons_that_there_is_no_number(
    plane: landscape.Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "_with_memory", lambda options, row: row)

    def broken(plane: landscape.Plane) -> landscape.Evaluate:
        raise ValueError("no plane")

    ways = (
        landscape.Way("peer", "absent", landscape._loss_landscapes, "no_such_package_at_all"),
        landscape.Way("peer", "broken", broken),
    )
    _, absent, fails = landscape.measured(OPTIONS, plane, 4, ways)
    assert absent.status == "not installed"
    assert (fails.status, fails.note) == ("fails", "ValueError: no plane")
    assert "not installed" in landscape.table([absent, fails]).text()


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape_probe.landscape, "build", lambda *_: landscape_probe._tiny())
    order = {"variant": "any points", "size": 4, "quick": True, "root": None, "threads": 1}
    assert 0.0 <= landscape_probe.main(order)["peak_mb"] < 100.0


def test_a_probe_that_dies_leaves_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated.sys, "executable", "/bin/false")
    row = Row("landscape", "losses", "curvops", "any points", value=0.5)
    assert landscape._with_memory(OPTIONS, row) == replace(row, note="memory: exit status 1")
