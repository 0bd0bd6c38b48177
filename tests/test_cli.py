"""The command line: what it writes, what it refuses before any work, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import curvops
from curvops import cli
from curvops.errors import InputError, MissingDependencyError
from curvops.report import Context, SectionResult
from curvops.report import registry as registry_module

SOURCE = """
import torch
from torch import nn

def problem():
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>", nn.Linear(4, 3))
    X, y = torch.randn(20, 4), torch.randint(3, (20,))
    return model, nn.CrossEntropyLoss(), [(X[:12], y[:12]), (X[12:], y[12:])]

def broken():
    raise ValueError("no [bold]data\\x1b[31m")
"""


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of the user's in it."""
    (tmp_path / "cliproblem.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry_module.known_sections()
    monkeypatch.setattr(registry_module, "_SECTIONS", dict(registry_module._SECTIONS))
    yield tmp_path
    sys.modules.pop("cliproblem", None)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.build_app(), list(arguments))


def test_report_writes_page_document_and_summary(user_folder: Path) -> None:
    result = run("report", "cliproblem:problem", "--out", "here", "--seed", "3")
    assert result.exit_code == 0, result.output
    page = (user_folder / "here" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.weight" in page
    document = json.loads((user_folder / "here" / "report.json").read_text(encoding="utf-8"))
    assert document["options"]["seed"] == 3
    statuses = {s["name"]: s["status"] for s in document["sections"]}
    assert statuses.pop("training") == "skipped"  # there is no run to report on
    assert set(statuses.values()) == {"ok"}
    assert "largest eigenvalue" in result.stdout
    assert "here/index.html" in result.stdout
    assert "Largest eigenpairs: ok" in result.stderr
    assert sorted(p.name for p in (user_folder / "here").iterdir()) == ["index.html", "report.json"]


def test_json_goes_to_the_standard_output_alone(user_folder: Path) -> None:
    result = run("report", "cliproblem:problem", "--only", "problem", "--json", "-")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert [s["name"] for s in document["sections"]] == ["problem"]
    assert "parameters P" in result.stderr
    assert (user_folder / "curvops-report" / "index.html").exists()


def test_json_to_a_file(user_folder: Path) -> None:
    result = run("report", "cliproblem:problem", "--only", "problem", "--json", "sub/x.json")
    assert result.exit_code == 0
    copy = (user_folder / "sub" / "x.json").read_text()
    assert copy == (user_folder / "curvops-report" / "report.json").read_text()


def test_seed_decides(user_folder: Path) -> None:
    losses = []
    for seed in ("1", "1", "2"):
        result = run(
            "report", "cliproblem:problem", "--only", "problem", "--json", "-", "--seed", seed
        )
        numbers = json.loads(result.stdout)["sections"][0]["numbers"]
        losses.append(numbers["loss"]["value"])
    assert losses[0] == losses[1] != losses[2]


def test_a_failing_section_is_exit_code_1(user_folder: Path) -> None:
    @registry_module.section("broken", "Broken", order=35)
    def broken(context: Context) -> SectionResult:
        raise RuntimeError("on <purpose>")

    result = run("report", "cliproblem:problem")
    assert result.exit_code == 1
    page = (user_folder / "curvops-report" / "index.html").read_text(encoding="utf-8")
    assert "RuntimeError: on &lt;purpose&gt;" in page
    document = json.loads((user_folder / "curvops-report" / "report.json").read_text())
    statuses = {s["name"]: s["status"] for s in document["sections"]}
    assert statuses.pop("broken") == "failed"
    assert statuses.pop("training") == "skipped"
    assert set(statuses.values()) == {"ok"}
    assert "broken: failed. RuntimeError: on <purpose>" in result.stdout


def test_ctrl_c_writes_what_is_done(user_folder: Path) -> None:
    @registry_module.section("stopped", "Stopped", order=15)
    def stopped(context: Context) -> SectionResult:
        raise KeyboardInterrupt

    result = run("report", "cliproblem:problem")
    assert result.exit_code == 130
    document = json.loads((user_folder / "curvops-report" / "report.json").read_text())
    assert document["status"] == "interrupted"
    statuses = {s["name"]: s["status"] for s in document["sections"]}
    assert statuses["problem"] == "ok"
    assert statuses["stopped"] == "interrupted"
    assert statuses["lines"] == "not run"
    assert "Interrupted by the user." in (user_folder / "curvops-report/index.html").read_text()


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_a_real_ctrl_c(user_folder: Path) -> None:
    (user_folder / "slowproblem.py").write_text(
        SOURCE
        + "\nclass Slow(nn.Linear):\n"
        + "    def forward(self, x):\n"
        + "        import time; time.sleep(0.05)\n"
        + "        return super().forward(x)\n"
        + "\ndef slow():\n"
        + "    model, loss, data = problem()\n"
        + "    return Slow(4, 3), loss, data\n"
    )
    root = str(Path(curvops.__file__).parents[1])
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "from curvops.cli import main; main()",
            "report",
            "slowproblem:slow",
        ],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("The problem: ok"):
            break
    time.sleep(0.5)  # in the middle of the next section
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    document = json.loads((user_folder / "curvops-report" / "report.json").read_text())
    assert document["sections"][0]["status"] == "ok"
    assert document["status"] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nocolon"], 2, "'nocolon' is not of the form module:function"),
        (["absent_module:f"], 2, "no module 'absent_module'"),
        (["cliproblem:probem"], 2, "Did you mean problem?"),
        (["cliproblem:broken"], 1, "failed: ValueError: no [bold]data�[31m"),
        (["--only", "spectrum,foo"], 2, "no section 'foo'; known: problem, timing, eigenpairs"),
        (["--only", ","], 2, "known: problem"),
        (["--budget", "soon"], 2, "--budget is 'soon'"),
        (["--device", "nonsense"], 2, "--device 'nonsense' cannot be used"),
        (["--out", "cliproblem.py"], 2, "Cannot write to cliproblem.py"),
        (["--json", "."], 2, "it is a folder"),
        (["--seed", "-1"], 2, "--seed"),
    ],
)
def test_refusals(arguments: list[str], code: int, message: str) -> None:
    result = run("report", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert "\x1b[31m" not in result.stderr


def test_an_unwritable_folder_is_refused_before_the_work(
    user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "curvops.report.problem.load_problem", lambda *args, **kwargs: pytest.fail("worked")
    )
    result = run("report", "cliproblem:problem", "--out", "cliproblem.py/below")
    assert result.exit_code == 2
    assert "Cannot write to" in result.stderr


def test_a_budget_leaves_out_sections(user_folder: Path) -> None:
    result = run("report", "cliproblem:problem", "--budget", "1ms")
    assert result.exit_code == 0
    document = json.loads((user_folder / "curvops-report" / "report.json").read_text())
    skipped = {s["name"]: s["reason"] for s in document["sections"] if s["status"] == "skipped"}
    assert "budget of 0.001 s is spent" in skipped["eigenpairs"]
    assert "budget" in (user_folder / "curvops-report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("90", 90), ("1.5m", 90), ("2min", 120), ("1h", 3600), ("500ms", 0.5)],
)
def test_budgets(text: str, seconds: float) -> None:
    assert cli.parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-5s", "5 parsecs", "nan", "inf", "1e3s"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        cli.parse_budget(text)


def test_info_tables_and_json() -> None:
    result = run("info")
    assert result.exit_code == 0
    for word in ("curvops", "torch", "math", "Hessian", "cpu"):
        assert word in result.stdout
    document = json.loads(run("info", "--json").stdout)
    assert document["versions"]["curvops"] == curvops.__version__
    safe = [k["kernel"] for k in document["attention_kernels"] if k["second"]]
    assert "math" in safe


def test_help_names_the_commands() -> None:
    assert {"report", "info"} <= set(run("--help").output.split())


def test_without_typer_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(MissingDependencyError, match=r"curvops\[demo\]"):
        cli.build_app()
    with pytest.raises(SystemExit, match="not installed"):
        cli.main()


def test_the_command_line_starts_without_importing_the_demo(user_folder: Path) -> None:
    (user_folder / "sklearn.py").write_text("raise RuntimeError('imported')")
    result = run("report", "cliproblem:problem", "--only", "problem")
    assert result.exit_code == 0, result.output
