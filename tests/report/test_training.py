"""The section on training: what a journal holds, or a run of the demo, or why there is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from curvops.cli import build_app
from curvops.report import Options, Table, load_problem, run_report
from curvops.report.training_run import demo_run
from curvops.training import Alpha, GradientNoise, Monitor, Record, Run, Sharpness, read_journal
from curvops.training.journal import Journal
from tests.cases import randint, randn, seeded
from tests.report.conftest import HOSTILE, make_problem

ONLY = ("training",)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    quantities = [Alpha(), GradientNoise(), Sharpness(every=2)]
    path = tmp_path / "run.jsonl"
    with Monitor(model, nn.CrossEntropyLoss(), optimizer, quantities, path, probe_size=8) as m:
        for i in range(8):
            m.backward(randn(8, 4, seed=i), randint(3, 8, seed=i))
            optimizer.step()
            optimizer.zero_grad()
    return path


def test_a_journal_is_told(journal: Path) -> None:
    [outcome] = run_report(make_problem(), Options(only=ONLY, run=str(journal))).outcomes
    assert outcome.status == "ok", outcome.details
    run = read_journal(journal)
    numbers = outcome.result.numbers
    assert numbers["training_alpha_alpha"].value == median(run.series("alpha", "alpha")[1])
    last = run.series("sharpness", "ratio")[1][-1]
    assert numbers["training_sharpness_ratio"].value == last
    assert "8 steps" in outcome.result.blocks[0].text
    table = next(b for b in outcome.result.blocks if isinstance(b, Table))
    assert [row[0] for row in table.rows] == list(run.quantities)


def test_every_call_gives_its_number_again(journal: Path) -> None:
    problem = load_problem(seed=0)
    [outcome] = run_report(problem, Options(only=ONLY, run=str(journal))).outcomes
    names: dict[str, object] = {}
    exec(problem.setup.split("risk = ")[0], names)
    for number in outcome.result.numbers.values():
        assert eval(number.call, names) == number.value  # noqa: S307


def test_without_a_run_it_says_how_to_have_one() -> None:
    [outcome] = run_report(make_problem(), Options(only=ONLY)).outcomes
    assert outcome.status == "skipped"
    assert "--run" in outcome.reason


def test_a_run_without_values_is_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run.jsonl", {"model": "x"})
    journal.close()
    [outcome] = run_report(make_problem(), Options(only=ONLY, run=str(journal.path))).outcomes
    assert outcome.status == "skipped"


def test_strings_of_a_journal_are_escaped(tmp_path: Path) -> None:
    from curvops.report.html import to_html

    journal = Journal(tmp_path / "run.jsonl", {"model": HOSTILE, "optimizer": HOSTILE})
    values = {"alpha": 0.5, "status": HOSTILE, "notes": [HOSTILE]}
    traces = {"layers": [HOSTILE], "traces": [1.0], "stderrs": [0.1], "total": 1.0}
    journal.append([Record(0, "alpha", values), Record(0, "hessian_trace", traces)])
    journal.append([Record(0, HOSTILE, {"x": 1.0})])
    journal.close()
    report = run_report(make_problem(), Options(only=ONLY, run=str(journal.path)))
    assert report.outcomes[0].status == "ok", report.outcomes[0].details
    assert HOSTILE not in to_html(report, "call")


def test_the_demo_records_a_run_of_its_own(global_rng_untouched: None) -> None:
    [outcome] = run_report(load_problem(seed=0), Options(only=ONLY)).outcomes
    assert outcome.status == "ok", outcome.details
    numbers = outcome.result.numbers
    assert -1 < numbers["training_alpha_alpha"].value < 1  # type: ignore[operator]
    assert 0 < numbers["training_sharpness_ratio"].value < 1  # type: ignore[operator]
    run = demo_run(0)
    assert isinstance(run, Run)
    again = median(run.series("alpha", "alpha")[1])
    assert numbers["training_alpha_alpha"].value == pytest.approx(again)


def test_the_command_line_takes_a_journal(journal: Path, user_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["report", "mine:problem", "--only", "training", "--out", str(out)]
    done = CliRunner().invoke(build_app(), [*arguments, "--run", str(journal)])
    assert done.exit_code == 0, done.output
    document = json.loads((out / "report.json").read_text())
    assert document["options"]["run"] == str(journal)
    wrong = CliRunner().invoke(build_app(), [*arguments, "--run", str(tmp_path / "none.jsonl")])
    assert wrong.exit_code == 2
    assert "cannot be read" in wrong.output
