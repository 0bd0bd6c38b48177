"""Values on disk as they come: a killed run loses nothing that was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvops.errors import DataError, InputError, MissingDependencyError
from curvops.training import (
    Alpha,
    GradientNoise,
    JournalWarning,
    Monitor,
    Record,
    Run,
    Sharpness,
    read_journal,
)
from curvops.training.journal import Journal
from curvops.training.live import LiveTable
from tests.cases import randint, randn, seeded


def monitored(log: Path | None = None, steps: int = 4, **options: Any) -> Monitor:
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    quantities = [Alpha(), GradientNoise(), Sharpness(every=2, k=2)]
    monitor = Monitor(
        model, nn.CrossEntropyLoss(), optimizer, quantities, log, probe_size=6, **options
    )
    for i in range(steps):
        monitor.backward(randn(6, 4, seed=i), randint(3, 6, seed=i))
        optimizer.step()
        optimizer.zero_grad()
    return monitor


def test_what_is_read_is_what_was_measured(tmp_path: Path) -> None:
    monitor = monitored(tmp_path / "deep" / "run.jsonl")
    run = read_journal(tmp_path / "deep" / "run.jsonl")  # the monitor is still open
    assert run.records == monitor.records
    assert run.header["model"] == "Sequential"
    assert run.header["num_params"] == 43
    assert run.header["optimizer"] == "SGD"
    assert run.header["quantities"] == ["alpha", "gradient_noise", "sharpness"]
    for line in (tmp_path / "deep" / "run.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_second_run_is_appended(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    first = monitored(log, steps=3)
    first.close()
    with open(log, "a") as file:
        file.write('{"step": 2, "quantity": "alp')  # torn by a crash
    second = monitored(log, steps=2)
    assert read_journal(log).records == second.records
    assert read_journal(log, run=0).records == first.records
    with pytest.raises(DataError, match="holds 2"):
        read_journal(log, run=2)


SCRIPT = """
import sys, torch
from torch import nn
from curvops.training import Alpha, GradientNoise, Monitor

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
monitor = Monitor(model, nn.CrossEntropyLoss(), optimizer, [Alpha(), GradientNoise()], sys.argv[1])
while True:
    X, y = torch.randn(8, 4), torch.randint(3, (8,))
    monitor.backward(X, y)
    optimizer.step()
    optimizer.zero_grad()
    latest = monitor.latest("alpha")
    if latest is not None:
        print(latest.step, latest.values["alpha"].hex(), flush=True)
"""


def test_a_run_killed_by_sigkill_keeps_every_value(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(log)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().splitlines()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    told += [line.split() for line in rest if len(line.split()) == 2]
    steps, alphas = read_journal(log).series("alpha", "alpha")
    assert len(told) >= 50
    # Everything that the process could have said, it had written.
    assert [(int(s), float.fromhex(a)) for s, a in told] == list(zip(steps, alphas))[: len(told)]
    noise, _ = read_journal(log).series("gradient_noise", "trace")
    assert noise[: len(told)] == steps[: len(told)]


def test_a_full_disk_ends_the_journal_and_not_the_training(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.warns(JournalWarning, match="in memory only"):
        monitor = monitored(Path("/dev/full"))
    assert len(monitor.run.series("alpha", "alpha")[0]) == 3


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    with pytest.raises(DataError, match="no journal"):
        monitored(other)
    assert other.read_text() == "mine\n"
    with pytest.raises(DataError, match="not a journal"):
        read_journal(other)
    with pytest.raises(DataError, match="cannot be read"):
        read_journal(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="cannot be written"):
        monitored(tmp_path)


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", {})
    values = {"a": float("nan"), "b": [1.0, float("inf")], "c": torch.tensor(2.0), "d": True}
    journal.append([Record(0, "x", values)])
    journal.close()
    read = read_journal(tmp_path / "j.jsonl").records[0].values
    assert read == {"a": None, "b": [1.0, None], "c": 2.0, "d": True}


def test_broken_lines_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    monitored(log).close()
    whole = read_journal(log)
    with open(log, "ab") as file:
        file.write(
            b'\xff\xfe garbage\n[1, 2]\n{"step": 1}\n{"step": 9, "quantity": "x", "values": 3}\n'
        )
    again = read_journal(log)
    assert again.records[: len(whole)] == whole.records
    assert again.records[-1].values == {}


def test_series_and_table() -> None:
    run = monitored().run
    steps, values = run.series("sharpness", "sharpness")
    assert steps == [0, 2]
    assert values == [r.values["sharpness"] for r in run.records if r.quantity == "sharpness"]
    table = run.table()
    assert table["step"] == [0, 1, 2, 3]
    assert table["alpha"][:3] == run.series("alpha", "alpha")[1]
    assert table["alpha"][3] is None
    assert table["sharpness.threshold"][1] is None
    assert "gradient_noise.trace" in table
    assert "loss" in table
    assert run.series("tic", "diagonal") == ([], [])
    with pytest.raises(InputError, match="it has alpha, stderr"):
        run.series("alpha", "length_of_step")
    assert "4 steps" in str(run)
    assert run.to_dict()["records"][1]["quantity"] == "step"
    assert len(Run()) == 0


def test_pandas_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        def __init__(self, columns: dict[str, list[Any]]) -> None:
            self.columns = columns

        def set_index(self, name: str) -> tuple[str, dict[str, list[Any]]]:
            return name, self.columns

    monitor = monitored()
    fake = type(sys)("pandas")
    fake.DataFrame = Frame  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", fake)
    assert monitor.to_pandas() == ("step", monitor.run.table())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="needs pandas"):
        monitor.to_pandas()


def test_the_live_table_shows_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    rich = pytest.importorskip("rich.console")
    console = rich.Console(record=True, width=120, force_terminal=False, file=open(os.devnull, "w"))  # noqa: SIM115
    table = LiveTable(console)
    run = monitored().run
    table.show(run.records, run.header, ("a note",))
    time.sleep(0)
    console.print(table.table())
    table.close()
    text = console.export_text()
    assert "Sequential, SGD" in text
    assert "alpha" in text
    assert "a note" in text
    console.file.close()
    monkeypatch.setitem(sys.modules, "rich.live", None)
    with pytest.raises(MissingDependencyError, match=r"curvops\[cli\]"):
        monitored(live=True)


def test_live_in_a_loop(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    monitored(live=True).close()
    assert "sharpness" in capsys.readouterr().out


def test_names_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    log = tmp_path / "j.jsonl"
    journal = Journal(log, {"model": "a\u2028b"})
    journal.append([Record(0, "x\u2028y", {"a": 1.0, "layers": ["\x85", "\u2029"]})])
    journal.close()
    run = read_journal(log)
    assert run.header == {"model": "a\u2028b"}
    assert run.records == (Record(0, "x\u2028y", {"a": 1.0, "layers": ["\x85", "\u2029"]}),)


@pytest.mark.parametrize("torn", ['{"curvops_tr', "{", '{"cur\n{"curvops_tra', '{"curv\n'])
def test_a_journal_that_begins_with_a_torn_header_is_continued(tmp_path: Path, torn: str) -> None:
    log = tmp_path / "run.jsonl"
    log.write_text(torn)
    for count in (1, 2):
        run = monitored(log, steps=2)
        run.close()
        assert read_journal(log).records == run.records
        assert log.read_text().startswith(torn.rstrip("\n") + "\n")
        with pytest.raises(DataError, match=f"holds {count}"):
            read_journal(log, run=count)


@pytest.mark.parametrize("text", ['{\n  "a": 1\n}', '{"curvop": 1}', "curvops"])
def test_what_only_looks_like_a_torn_header_is_not_touched(tmp_path: Path, text: str) -> None:
    log = tmp_path / "other.json"
    log.write_text(text)
    with pytest.raises(DataError, match="no journal"):
        monitored(log)
    assert log.read_text() == text
