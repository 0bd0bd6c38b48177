"""report.json is strict, complete, and says what everything cost."""

from __future__ import annotations

import json
import math
from typing import Any

from curvops.report import Number, Report, SectionResult
from curvops.report.document import to_document, to_json
from curvops.report.runner import OK, Outcome
from tests.report.conftest import HOSTILE


def refuse(token: str) -> Any:
    raise AssertionError(f"{token} is not JSON")


def test_round_trip_is_strict(report: Report) -> None:
    document = to_document(report, "curvops report")
    assert json.loads(to_json(document), parse_constant=refuse) == document


def test_it_says_who_when_and_how(report: Report) -> None:
    document = to_document(report, "curvops report mine:problem --seed 1")
    assert document["call"] == "curvops report mine:problem --seed 1"
    assert document["options"]["seed"] == 1
    assert document["status"] == "ok"
    assert document["problem"] == f"mine:{HOSTILE}"
    assert document["environment"]["versions"]["torch"]
    assert document["environment"]["devices"][0]["device"] == "cpu"
    assert document["created"].endswith("+00:00")


def test_every_number_has_value_error_cost_and_call(report: Report) -> None:
    document = to_document(report)
    sections = {s["name"]: s for s in document["sections"]}
    largest = sections["eigenpairs"]["numbers"]["largest_eigenvalue"]
    assert largest["error"] < 1e-9
    assert largest["products"] > 20
    assert largest["seconds"] > 0
    assert "native_eigsh(hessian, 20, 'LA'" in largest["call"]
    arpack = sections["eigenpairs"]["numbers"]["arpack_eigenvalues"]
    assert arpack["call"].startswith("eigsh(hessian.to_scipy(), k=20")
    for section in sections.values():
        for number in section["numbers"].values():
            assert set(number) == {
                "value",
                "error",
                "unit",
                "label",
                "products",
                "seconds",
                "call",
                "note",
            }
            assert number["value"] is not None or number["note"]
    done = sum(task["products"] for task in document["tasks"])
    assert done == sum(section["products"] for section in sections.values())


def test_what_is_not_finite_is_null_with_a_note(report: Report) -> None:
    section = report.outcomes[0].section
    result = SectionResult((), {"a": Number(math.inf, note="Why."), "b": Number([1.0, math.nan])})
    odd = Report(
        report.problem, report.options, (Outcome(section, OK, result=result),), (), math.nan
    )
    document = to_document(odd, "bad \udc80 name")
    numbers = document["sections"][0]["numbers"]
    assert numbers["a"]["value"] is None
    assert numbers["a"]["note"] == "The value is inf. Why."
    assert numbers["b"]["value"] == [1.0, None]
    assert document["seconds"] is None
    json.loads(to_json(document).encode("utf-8"), parse_constant=refuse)
