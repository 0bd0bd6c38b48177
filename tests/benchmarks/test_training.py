"""The training benchmark on a network of no size: its ways agree, its reasons are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import training, training_probe
from benchmarks.memory_probe import _tiny
from benchmarks.options import Options
from benchmarks.results import MEASURED, Row

OPTIONS = Options(problems=(), repeats=2, say=lambda line: None)


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_with_memory", lambda options, row, optimizer: row)


@pytest.mark.parametrize("optimizer", list(training.OPTIMIZERS))
def test_all_ways_agree_with_float64(optimizer: str) -> None:
    ways = tuple(way for way in training.WAYS if way.library != "cockpit")
    plain, *rows = training.measured(OPTIONS, "mlp", _tiny(), optimizer, ways)
    assert plain.value == 1.0
    assert [row.variant for row in rows] == [way.variant for way in ways]
    assert all(row.status == MEASURED and row.rounds == 2 for row in rows)
    errors = [row.extra["error"] for row in rows if "error" in row.extra]
    assert len(errors) == len(ways) - 1  # α alone has no norm test
    assert max(errors) < 1e-4
    assert training.overhead(rows, "mlp", optimizer, training.EVERY_FIFTH) == rows[1].value
    assert len(training.table([plain, *rows]).rows) == len(ways) + 1


def test_reasons_that_there_is_no_number() -> None:
    def broken(problem: object, optimizer: str) -> training.Loop:
        raise ValueError("no such step")

    def absent(problem: object, optimizer: str) -> training.Loop:
        raise ImportError("cockpit")

    ways = (training.Way("peer", "absent", absent), training.Way("peer", "broken", broken))
    _, first, second = training.measured(OPTIONS, "mlp", _tiny(), "SGD", ways)
    assert first.status == "not installed"
    assert (second.status, second.note) == ("fails", "ValueError: no such step")
    assert "not installed" in training.table([first, second]).text()
    assert training.overhead([first], "mlp", "SGD", training.EVERY_STEP) is None


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_probe, "build", lambda *_: _tiny())
    order = {
        "problem": "mlp", "optimizer": "SGD", "library": "curvops",
        "variant": training.EVERY_STEP, "quick": True, "threads": 1,
    }  # fmt: skip
    assert 0.0 <= training_probe.main(order)["peak_mb"] < 100.0


def test_a_probe_that_dies_leaves_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(training.sys, "executable", "/bin/false")
    row = Row("mlp", "SGD step", "curvops", training.EVERY_STEP, value=1.5)
    found = training._with_memory(OPTIONS, row, "SGD")
    assert found == replace(row, note="memory: exit status 1")
    assert training._with_memory(OPTIONS, replace(row, status="fails"), "SGD").note == ""
