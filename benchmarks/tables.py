"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Headers and cells, all strings.

    Attributes:
        headers: One per column.
        rows: Lists of as many cells.
    """

    headers: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """Return it with aligned columns, the first to the left, the others to the right."""
        lines = [self.headers, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headers))]
        ruled = [self.headers, ["-" * width for width in widths], *self.rows]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths))
            ).rstrip()
            for line in ruled
        )

    def markdown(self) -> str:
        """Return it in Markdown, the first column to the left, the others to the right."""
        rule = ["---", *["---:"] * (len(self.headers) - 1)]
        lines = [self.headers, rule, *self.rows]
        return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def number(value: float | None) -> str:
    """Return a number with three digits, or a dash for none."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
