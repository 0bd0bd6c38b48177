"""The progress line and the summary."""

from __future__ import annotations

import io
import time
from dataclasses import replace

from rich.console import Console

from curvops.report import Report
from curvops.report.registry import known_sections
from curvops.report.terminal import ProgressLine, summary
from tests.report.conftest import HOSTILE


def test_live_line_shows_section_count_and_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    section = known_sections()[2]
    with ProgressLine(console) as line:
        line.announce("Building mine:problem")
        line.begin(section, 2, 7, None)
        line.begin(section, 2, 7, 65.0)
        line.tick(1, 100, "columns")
        time.sleep(0.05)
        line.tick(50, 100, "columns")
        line._progress.refresh()
        line.tick(12, None, "products")
        line._progress.refresh()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Building mine:problem" in text
    assert "[3/7] Largest eigenpairs" in text
    assert "50/100 columns, about " in text
    assert "12 products, about 1 min 5 s left" in text


def test_plain_lines_without_a_terminal(report: Report) -> None:
    console = Console(file=io.StringIO(), width=200)
    failed = replace(report.outcomes[2], status="failed", reason="why [bold]\x1b[31m")
    with ProgressLine(console) as line:
        line.announce("Building")
        line.begin(report.outcomes[0].section, 0, 1, None)
        line.tick(1, 2, "columns")
        line.end(report.outcomes[0])
        line.end(failed)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.splitlines()[:1] == ["Building ..."]
    assert "The problem: ok (" in text
    assert "Largest eigenpairs: failed: why [bold]�[31m" in text
    assert "\x1b" not in text


def test_summary_names_what_went_wrong(report: Report) -> None:
    console = Console(file=io.StringIO(), width=200)
    failed = replace(report.outcomes[2], status="failed", reason="ValueError: [bold]no\x1b")
    console.print(summary(replace(report, outcomes=(report.outcomes[0], failed))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert HOSTILE in text
    assert "parameters P" in text
    assert "eigenpairs: failed. ValueError: [bold]no�" in text
    assert "1 of 2 sections in" in text
