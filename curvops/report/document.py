"""The report as a JSON document: every number, its error, its cost, the call that repeats it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from curvops.report.blocks import Number, SectionResult
from curvops.report.environment import environment
from curvops.report.runner import Outcome, Report

SCHEMA = 1


def to_document(report: Report, call: str = "") -> dict[str, Any]:
    """Return the report as plain Python that is strict JSON.

    Args:
        report: The report.
        call: The command that made it.

    Returns:
        Nested dicts and lists. Numbers that are not finite become None, and their ``note``
        tells what they were.
    """
    problem, options = report.problem, report.options
    document = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "call": call,
        "status": report.status,
        "seconds": report.seconds,
        "problem": problem.name,
        "setup": problem.setup,
        "options": {
            "only": None if options.only is None else list(options.only),
            "seed": options.seed,
            "budget": options.budget,
            "max_dense": options.max_dense,
            "run": options.run,
        },
        "environment": environment(),
        "sections": [_outcome(outcome) for outcome in report.outcomes],
        "tasks": [
            {
                "task": task.name,
                "section": task.section,
                "products": task.products,
                "seconds": task.seconds,
            }
            for task in report.tasks
        ],
    }
    strict: dict[str, Any] = strictly(document)
    return strict


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as text, refusing whatever JSON does not know."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def strictly(value: Any) -> Any:
    """Return a copy in which what is not finite is None.

    Example:
        >>> strictly({"a": [1.0, float("nan")]})
        {'a': [1.0, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strictly(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strictly(item) for item in value]
    if isinstance(value, str):
        # Lone surrogates, which file names may hold, have no encoding.
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.section.name,
        "title": outcome.section.title,
        "status": outcome.status,
        "reason": outcome.reason,
        "products": outcome.products,
        "seconds": outcome.seconds,
        "numbers": _numbers(outcome.result),
    }


def _numbers(result: SectionResult) -> dict[str, Any]:
    return {name: _number(number) for name, number in result.numbers.items()}


def _number(number: Number) -> dict[str, Any]:
    note = number.note
    if isinstance(number.value, float) and not math.isfinite(number.value):
        note = f"The value is {number.value}. {note}".strip()
    return {
        "value": number.value,
        "error": number.error,
        "unit": number.unit,
        "label": number.label,
        "products": number.cost.products,
        "seconds": number.cost.seconds,
        "call": number.call,
        "note": note,
    }
