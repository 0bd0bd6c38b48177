"""What a section is made of: plain values, which HTML, JSON and the terminal each show their way.

Strings in blocks are text, never markup: whoever shows them escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

Value = Union[float, int, str, bool, Sequence[Union[float, int, str, None]], None]
"""What a number in a report may be: a scalar, a list of them, or nothing."""


@dataclass(frozen=True)
class Cost:
    """Matrix-vector products and seconds."""

    products: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Number:
    """One result, with its error, what it cost, and the call that gives it again.

    Attributes:
        value: The result; None where there is none, which ``note`` then explains.
        label: What a person calls it; shown in the summary if ``headline``.
        error: A bound on, or the standard error of, the value, where it has one.
        unit: Such as ``"nats"``.
        cost: What it took, shared with whatever came out of the same work.
        call: A Python expression that evaluates to the value after the report's ``setup``.
        note: Why there is no value, or what to know about it.
        headline: Whether it belongs into the summary.
    """

    value: Value
    label: str = ""
    error: float | None = None
    unit: str = ""
    cost: Cost = Cost()
    call: str = ""
    note: str = ""
    headline: bool = False


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    text: str


@dataclass(frozen=True)
class Note:
    """A remark that deserves a frame; ``kind`` is ``"info"`` or ``"warning"``."""

    text: str
    kind: str = "info"


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells that are formatted already.

    Attributes:
        columns: Headings; none for a table of names and values.
        rows: As many cells a row as there are headings.
        caption: What the table shows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        svg: An ``<svg>`` element whose colours follow the page.
        alt: What it shows, for those who do not see it.
        caption: What to look for.
    """

    svg: str
    alt: str
    caption: str = ""


Block = Union[Paragraph, Note, Code, Table, Figure]
"""Anything a section may hold."""


@dataclass(frozen=True)
class SectionResult:
    """What a section returns: blocks in reading order, and its numbers by name."""

    blocks: Sequence[Block]
    numbers: Mapping[str, Number] = field(default_factory=dict)


def digits(value: float | int | None, precision: int = 6) -> str:
    """Return a number for a person to read.

    Example:
        >>> digits(1234567), digits(0.000123456789), digits(None)
        ('1,234,567', '0.000123457', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{precision}g}"


def duration(seconds: float) -> str:
    """Return a duration for a person to read.

    Example:
        >>> duration(0.0042), duration(3.21), duration(75)
        ('4.2 ms', '3.2 s', '1 min 15 s')
    """
    if seconds < 0.1:
        return f"{seconds * 1e3:.2g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
