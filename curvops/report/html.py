"""The report as one HTML page that needs nothing else: no network, no scripts, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from curvops.report.blocks import (
    Block,
    Code,
    Figure,
    Note,
    Number,
    Paragraph,
    Table,
    digits,
    duration,
)
from curvops.report.environment import versions
from curvops.report.pictures import DARK_VARIABLES, LIGHT_VARIABLES
from curvops.report.runner import OK, Outcome, Report

# Nothing may be loaded and nothing may run, whatever a model calls its parameters.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def to_html(report: Report, call: str = "") -> str:
    """Return the page.

    Every string is escaped here; only pictures, which curvops has drawn, go in as they are.

    Args:
        report: The report.
        call: The command that made it.
    """
    title = f"Curvature of {report.problem.name}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="generator" content="curvops">',
            '<link rel="icon" href="data:,">',
            f"<title>{_text(title)} · curvops</title>",
            f"<style>{_stylesheet()}</style>",
            "</head>",
            "<body>",
            "<header>",
            f"<h1>{_text(title)}</h1>",
            _status(report),
            _tiles(report.headlines()),
            _contents(report.outcomes),
            "</header>",
            "<main>",
            *(_section(outcome, report.problem.setup) for outcome in report.outcomes),
            "</main>",
            _footer(report, call),
            "</body>",
            "</html>",
            "",
        ]
    )


def _text(value: object) -> str:
    """Escape a string, and replace what a page cannot hold."""
    clean = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in str(value))
    return escape(clean, quote=True)


def _stylesheet() -> str:
    sheet = resources.files("curvops.report").joinpath("style.css").read_text(encoding="utf-8")
    sheet = sheet.replace("/* light plot colours */", LIGHT_VARIABLES)
    return sheet.replace("/* dark plot colours */", DARK_VARIABLES)


def _status(report: Report) -> str:
    counts: dict[str, int] = {}
    for outcome in report.outcomes:
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    plural = "" if len(report.outcomes) == 1 else "s"
    return (
        f'<p class="status {_text(report.status)}">{len(report.outcomes)} section{plural} '
        f"({_text(told)}) in {_text(duration(report.seconds))}</p>"
    )


def _tiles(headlines: Sequence[tuple[str, Number]]) -> str:
    """Show the numbers of the summary at the top."""
    tiles = [
        f'<div class="tile"><dt>{_text(number.label)}</dt>'
        f"<dd>{_text(shown(number))}{_unit(number)}</dd></div>"
        for _, number in headlines
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""


def shown(number: Number) -> str:
    """Return a scalar of the summary for a person to read.

    Example:
        >>> shown(Number(0.123456789)), shown(Number(1810)), shown(Number(None))
        ('0.123457', '1,810', '–')
    """
    if isinstance(number.value, (int, float)) or number.value is None:
        return digits(number.value)
    return str(number.value)


def _unit(number: Number) -> str:
    return f' <span class="unit">{_text(number.unit)}</span>' if number.unit else ""


def _contents(outcomes: Sequence[Outcome]) -> str:
    links = [
        f'<li><a href="#{_text(o.section.name)}">{_text(o.section.title)}</a>{_badge(o)}</li>'
        for o in outcomes
    ]
    return f'<nav aria-label="Sections"><ol>{"".join(links)}</ol></nav>'


def _badge(outcome: Outcome) -> str:
    if outcome.status == OK:
        return ""
    kind = _text(outcome.status.replace(" ", "-"))
    return f' <span class="badge {kind}">{_text(outcome.status)}</span>'


def _section(outcome: Outcome, setup: str) -> str:
    cost = duration(outcome.seconds)
    if outcome.products:
        cost = f"{digits(outcome.products)} products, {cost}"
    parts = [
        f'<section id="{_text(outcome.section.name)}">',
        f"<h2>{_text(outcome.section.title)}{_badge(outcome)}"
        f' <span class="cost">{_text(cost)}</span></h2>',
    ]
    if outcome.reason:
        kind = "warning" if outcome.status == "failed" else "info"
        parts.append(_block(Note(outcome.reason, kind)))
    if outcome.details:
        details = _block(Code(outcome.details))
        parts.append(f"<details><summary>Where it failed</summary>{details}</details>")
    parts += [_block(block) for block in outcome.result.blocks]
    parts.append(_calls(outcome, setup))
    return "\n".join([*parts, "</section>"])


def _calls(outcome: Outcome, setup: str) -> str:
    """List the calls that give the section's numbers again."""
    calls = [
        f"{name} = {number.call}"
        for name, number in outcome.result.numbers.items()
        if number.call and number.value is not None
    ]
    if not calls:
        return ""
    code = _block(Code("\n".join([setup, *calls])))
    return f"<details><summary>The calls behind these numbers</summary>{code}</details>"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Note):
        return f'<p class="note {_text(block.kind)}">{_text(block.text)}</p>'
    if isinstance(block, Code):
        return f"<pre><code>{_text(block.text)}</code></pre>"
    if isinstance(block, Table):
        return _table(block)
    return _figure(block)


def _table(table: Table) -> str:
    parts = [
        '<div class="table"><table>'
        if table.columns
        else '<div class="table"><table class="facts">'
    ]
    if table.caption:
        parts.append(f"<caption>{_text(table.caption)}</caption>")
    if table.columns:
        heads = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
        parts.append(f"<thead><tr>{heads}</tr></thead>")
    parts.append("<tbody>")
    for row in table.rows:
        first, *rest = row
        cells = f'<th scope="row">{_text(first)}</th>'
        cells += "".join(f"<td>{_text(cell)}</td>" for cell in rest)
        parts.append(f"<tr>{cells}</tr>")
    return "".join([*parts, "</tbody></table></div>"])


def _figure(figure: Figure) -> str:
    svg = figure.svg.replace("<svg ", f'<svg role="img" aria-label="{_text(figure.alt)}" ', 1)
    caption = f"<figcaption>{_text(figure.caption)}</figcaption>" if figure.caption else ""
    return f"<figure>{svg}{caption}</figure>"


def _footer(report: Report, call: str) -> str:
    known = ", ".join(f"{name} {number}" for name, number in versions().items() if number)
    command = f"<pre><code>{_text(call)}</code></pre>" if call else ""
    return (
        f"<footer>{command}<p>Seed {report.options.seed}. {_text(known)}. "
        "All numbers, their errors and costs are in report.json beside this page.</p></footer>"
    )
