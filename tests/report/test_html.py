"""The page: well-formed, self-contained, and deaf to whatever a model calls its parameters."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from curvops.report import Code, Figure, Note, Paragraph, Report, SectionResult, Table
from curvops.report.html import to_html
from tests.report.conftest import HOSTILE

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and insists that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return to_html(report, "curvops report mine:problem")


def test_well_formed_with_all_sections(page: str, report: Report) -> None:
    checker = check(page)
    ids = [value for name, value in checker.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "ids are unique on the page"
    for outcome in report.outcomes:
        assert outcome.section.name in ids
        assert outcome.section.title in checker.text
    links = {v for n, v in checker.attributes if n in ("href", "xlink:href") and v}
    assert {v[1:] for v in links if v.startswith("#")} <= set(ids)
    used = set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(ids)


def test_nothing_is_loaded_and_nothing_runs(page: str) -> None:
    checker = check(page)
    assert "script" not in checker.tags
    assert "iframe" not in checker.tags
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    for name, value in checker.attributes:
        if name in ("href", "src", "xlink:href", "action", "data"):
            assert value is not None
            assert value.startswith(("#", "data:,")), (name, value)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\((?!#)", page)


def test_hostile_names_are_text(page: str) -> None:
    assert "<script" not in page
    assert HOSTILE in check(page).text


def test_every_kind_of_block_is_escaped(report: Report) -> None:
    bad = '</title><img src=x onerror="x">\x00&'
    outcome = report.outcomes[0]
    result = SectionResult(
        (
            Paragraph(bad),
            Note(bad, bad),
            Code(bad),
            Table((bad, bad), ((bad, bad),), bad),
            Figure("<svg ></svg>", bad, bad),
        )
    )
    hostile = replace(outcome, status="failed", reason=bad, details=bad, result=result)
    problem = replace(report.problem, name=bad, setup=bad)
    checker = check(to_html(replace(report, problem=problem, outcomes=(hostile,)), bad))
    assert "img" not in checker.tags
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    assert "\x00" not in checker.text
    assert checker.text.count('onerror="x"') >= 8


def test_light_dark_print_and_phone(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert 'name="viewport"' in page
    for mode in ("--plot-primary:#2458b3", "--plot-primary:#7fb0ff"):
        assert mode in page
    # Colours of pictures are the page's: none is fixed.
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "var(--plot-ink,#1c2230)" in svg
        if "Contours" in svg[:200]:
            continue  # the colours of a field are its values
        fixed = re.sub(r"var\([^)]*\)", "", svg)
        assert not re.search(r"(?:fill|stroke): #", fixed)


def test_pictures_have_a_text_alternative(page: str) -> None:
    pictures = re.findall(r"<svg [^>]*>", page)
    assert len(pictures) >= 5
    for picture in pictures:
        assert 'role="img"' in picture
        assert re.search(r'aria-label="[^"]{10,}"', picture)
        assert "viewBox" in picture
        assert not re.search(r'\swidth="', picture)
