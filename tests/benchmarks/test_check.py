from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import check
from benchmarks.__main__ import main
from benchmarks.results import Result, Row

ENVIRONMENT = {"cpu": "a processor", "threads": 2, "device": "cpu", "versions": {"torch": "2"}}
OURS = Row("mlp", "Hessian", "curvops", "auto", value=1.4, low=1.3, high=1.5, rounds=9)
LOOP = Row("mlp", "Hessian", "curvops", "loop", columns=8, value=1.2, rounds=9)
THEIRS = Row("mlp", "Hessian", "curvlinops", value=6.0, rounds=9)


def run(*rows: Row, quick: bool = False, benchmark: str = "products") -> Result:
    return Result(benchmark, ENVIRONMENT, {"quick": quick}, list(rows))


def test_the_same_run_is_no_regression() -> None:
    found = check.compare(run(OURS, LOOP, THEIRS), run(OURS, LOOP, THEIRS))
    assert (found.regressions, found.compared, found.missing) == ([], 2, 0)


def test_growth_within_the_tolerance_is_noise() -> None:
    limit = 1.4 * (1 + check.TOLERANCE) + check.SLACK["products"]
    for value, regressions in ((limit - 0.01, 0), (limit + 0.01, 1), (0.5, 0)):
        found = check.compare(run(OURS), run(replace(OURS, value=value)))
        assert len(found.regressions) == regressions


def test_peers_are_not_ours_to_watch() -> None:
    assert not check.compare(run(THEIRS), run(replace(THEIRS, value=60.0))).regressions


@pytest.mark.parametrize("status", ["disagrees", "fails"])
def test_what_no_longer_works_is_a_regression(status: str) -> None:
    broken = replace(OURS, value=None, status=status)
    found = check.compare(run(OURS), run(broken))
    assert found.regressions == [(OURS, broken)]
    assert status in check.table(found).text()


def test_what_was_not_measured_again_is_counted() -> None:
    found = check.compare(run(OURS, LOOP), run(LOOP))
    assert (found.compared, found.missing) == (1, 1)


def test_runs_of_other_sizes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="quick"):
        check.compare(run(OURS), run(OURS, quick=True))
    with pytest.raises(ValueError, match="memory"):
        check.compare(run(OURS), run(OURS, benchmark="memory"))


def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    run(OURS).save(old)
    run(replace(OURS, value=2.8)).save(new)
    assert main(["check", str(old), "--against", str(old)]) == 0
    capsys.readouterr()
    assert main(["check", str(new), "--against", str(old)]) == 1
    assert "2.00 ×" in capsys.readouterr().out
    assert main(["check", str(new), "--against", str(old), "--tolerance", "1.5"]) == 0
    run(OURS, quick=True).save(new)
    assert main(["check", str(new), "--against", str(old)]) == 2
