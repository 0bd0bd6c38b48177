"""Sections register by name and come in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from curvops.errors import InputError
from curvops.report import Context, SectionResult
from curvops.report.registry import known_sections, select


def test_built_in_sections_in_order() -> None:
    names = [s.name for s in known_sections()]
    assert names == [
        "problem",
        "timing",
        "eigenpairs",
        "spectrum",
        "density",
        "traces",
        "logdet",
        "volume",
        "basin",
        "learning_coefficient",
        "lines",
        "rays",
        "plane",
        "training",
    ]
    assert [s.name for s in known_sections() if s.after_all] == ["timing"]


def test_one_decorator_adds_a_section(registry: Callable[..., Callable[..., object]]) -> None:
    @registry("extra", "Extra", order=35)
    def extra(context: Context) -> SectionResult:
        return SectionResult(())

    names = [s.name for s in known_sections()]
    assert names.index("extra") == names.index("eigenpairs") + 1
    registry("extra", "Extra", order=35)(extra)  # the same function again, as on a reload
    with pytest.raises(InputError, match="'extra' already"):
        registry("extra", "Other", order=36)(lambda context: SectionResult(()))


def test_select_lists_what_is_known() -> None:
    assert [s.name for s in select(["volume", "problem"])] == ["problem", "volume"]
    with pytest.raises(InputError, match="no section 'densty'; known: problem, timing, eigenpairs"):
        select(["problem", "densty"])
    with pytest.raises(InputError, match="No section was named; known: problem"):
        select([])
