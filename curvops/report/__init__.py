"""The report behind ``curvops report``: sections in, one HTML page and one JSON document out.

A section is one file in :mod:`curvops.report.sections` with one function under
:func:`curvops.report.registry.section`; nothing else needs to know about it.
"""

from __future__ import annotations

from curvops.report.blocks import Code, Figure, Note, Number, Paragraph, SectionResult, Table
from curvops.report.context import Context, Options
from curvops.report.problem import Problem, load_problem
from curvops.report.registry import Skipped, section
from curvops.report.runner import Report, run_report

__all__ = [
    "Code",
    "Context",
    "Figure",
    "Note",
    "Number",
    "Options",
    "Paragraph",
    "Problem",
    "Report",
    "SectionResult",
    "Skipped",
    "Table",
    "load_problem",
    "run_report",
    "section",
]
