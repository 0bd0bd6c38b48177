"""Sections by name: one decorator a section, one file each, found by looking.

A new section is a new file in :mod:`curvops.report.sections`::

    @section("trace", "Traces", order=45)
    def trace(context: Context) -> SectionResult: ...
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curvops.errors import InputError

if TYPE_CHECKING:
    from curvops.report.blocks import SectionResult
    from curvops.report.context import Context

Run = Callable[["Context"], "SectionResult"]
"""What computes a section."""

Estimate = Callable[["Context"], float]
"""What guesses how many seconds a section will take from now."""


class Skipped(Exception):  # noqa: N818 - not an error: the section has nothing to say here
    """Raised by a section that does not apply; the message says why, in its place."""


class BudgetSpent(Skipped):
    """Raised when the time the caller gave is over."""


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        name: What ``--only`` calls it.
        title: Its heading.
        order: Where it stands in the report.
        run: What computes it.
        estimate: What guesses its duration, where that can be guessed.
        after_all: Whether it runs after all others, wherever it stands.
    """

    name: str
    title: str
    order: float
    run: Run
    estimate: Estimate | None = None
    after_all: bool = False


_SECTIONS: dict[str, Section] = {}


def section(
    name: str,
    title: str,
    order: float,
    *,
    estimate: Estimate | None = None,
    after_all: bool = False,
) -> Callable[[Run], Run]:
    """Register a function as a section of the report.

    Args:
        name: What ``--only`` calls it; unique.
        title: Its heading.
        order: Where it stands; the built-in ones count in tens.
        estimate: Guesses the seconds it will take, so that a budget can leave it out in time.
        after_all: Run it after all others, because it reports on them.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        InputError: If another function has registered the name.
    """

    def register(run: Run) -> Run:
        known = _SECTIONS.get(name)
        if known is not None and _identity(known.run) != _identity(run):
            raise InputError(f"There is a section {name!r} already: {_identity(known.run)}.")
        _SECTIONS[name] = Section(name, title, order, run, estimate, after_all)
        return run

    return register


def known_sections() -> list[Section]:
    """Return every section in the order of the report, importing their files first."""
    from curvops.report import sections

    for module in pkgutil.iter_modules(sections.__path__):
        importlib.import_module(f"{sections.__name__}.{module.name}")
    return sorted(_SECTIONS.values(), key=lambda s: (s.order, s.name))


def select(only: Iterable[str] | None) -> list[Section]:
    """Return the sections of the given names, in the order of the report; all, without names.

    Raises:
        InputError: If a name is unknown; the message lists those that are known.
    """
    sections = known_sections()
    if only is None:
        return sections
    wanted = list(only)
    names = [s.name for s in sections]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        what = f"There is no section {unknown[0]!r}" if unknown else "No section was named"
        raise InputError(f"{what}; known: {', '.join(names)}.")
    return [s for s in sections if s.name in wanted]


def _identity(run: Run) -> str:
    return f"{run.__module__}.{getattr(run, '__qualname__', run)}"
