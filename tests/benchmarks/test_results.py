from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.environment import environment
from benchmarks.peers import PEERS
from benchmarks.results import Result, Row, find, select
from benchmarks.timing import Summary

ENVIRONMENT = {"cpu": "a processor", "threads": 2, "device": "cpu", "versions": {"torch": "2"}}
ROW = Row("mlp", "Hessian", "curvops", "auto", columns=8, extra={"error": 1e-7})
OTHER = Row("cnn", "Hessian", "curvlinops", status="disagrees", note="relative error 5e-03")


def run(*rows: Row) -> Result:
    return Result("products", ENVIRONMENT, {"quick": False}, list(rows))


def test_the_versions_of_all_peers_are_told() -> None:
    """Those of the ``bench`` extra: cockpit and loss-landscapes are peers of one benchmark each."""
    versions = environment()["versions"]
    assert {peer.distribution for peer in PEERS.values()} < set(versions)
    assert {"torch", "backpack-for-pytorch", "cockpit-for-pytorch", "loss-landscapes"} < set(
        versions
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    measured = ROW.timed(Summary(1.23456, 1.2, 1.3, 9, 0.0123456))
    assert measured.value == 1.235
    assert measured.extra == {"error": 1e-7, "seconds": 0.01235}
    result, path = run(measured, OTHER), tmp_path / "a" / "products.json"
    result.save(path)
    assert Result.load(path) == result
    text = path.read_text(encoding="utf-8")
    result.save(path)
    assert path.read_text(encoding="utf-8") == text
    assert text.count("\n    {") == 2, "one row a line"


def test_empty_results_survive(tmp_path: Path) -> None:
    run().save(tmp_path / "empty.json")
    assert Result.load(tmp_path / "empty.json") == run()


def test_problems_can_be_measured_one_at_a_time() -> None:
    newer = replace(ROW, value=1.0)
    merged = run(ROW, OTHER).replaced_by(run(newer))
    assert merged.rows == [OTHER, newer]
    with pytest.raises(ValueError, match="threads"):
        run(ROW).replaced_by(Result("products", {**ENVIRONMENT, "threads": 1}, {}, []))
    with pytest.raises(ValueError, match="quick"):
        run(ROW).replaced_by(Result("products", ENVIRONMENT, {"quick": True}, []))


def test_selection() -> None:
    assert select([ROW, OTHER], problem="cnn") == [OTHER]
    assert find([ROW, OTHER], columns=8) is ROW
    assert find([ROW, OTHER], columns=7) is None
