"""What the terminal shows of a run, and the tables that the documentation shares with it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import bridge, landscape, logdet, training, volume
from benchmarks.problems import TITLES
from benchmarks.results import MEASURED, Result, Row, find, select
from benchmarks.scaling import slopes
from benchmarks.tables import Table, number
from benchmarks.targets import EIGENPAIRS_RESIDUAL

UNITS = {
    "products": "full-data gradients per vector; quartiles in brackets",
    "eigs": "full-data gradients, set-up included; quartiles in brackets",
    "logdet": "nats of median error over the seeds, in all some 300 products",
    "volume": "log-volumes in nats; what rests on few directions is a lower bound",
    "bridge": "log-probabilities in nats, between two bounds",
    "landscape": "times of copies of the module, one by one; quartiles in brackets",
    "memory": "MB of resident memory above that of the process with model and data",
    "training": "times of the step without a monitor; quartiles in brackets",
    "scaling": "slope of log time against log size: 1 is proportional",
}


def summary(result: Result) -> str:
    """Return a run as text."""
    environment = result.environment
    head = f"{environment['cpu']}, {environment['threads']} threads, {environment['date']}"
    body = TABLES[result.benchmark](result.rows).text()
    return f"\n{result.benchmark}: {UNITS[result.benchmark]}\n{head}\n\n{body}"


def products(rows: Sequence[Row]) -> Table:
    """One line per matrix, K, library and way; one column per problem."""
    return _by_problem(rows, lambda row: (row.quantity, str(row.columns), label(row)), spread)


def eigs(rows: Sequence[Row]) -> Table:
    """One line per problem and solver."""
    lines = []
    for row in rows:
        extra = row.extra
        lines.append(
            [
                TITLES[row.problem],
                f"{row.library}, {row.variant}",
                spread(row),
                f"{extra['products']:.0f}" if "products" in extra else "",
                _residual(row),
                f"{extra['difference']:.1e}" if "difference" in extra else "",
                row.note,
            ]
        )
    headers = ["problem", "solver", "gradients", "products", "worst residual", "off ours", "how"]
    return Table(headers, lines)


def _residual(row: Row) -> str:
    if "residual" not in row.extra:
        return ""
    missed = "" if converged(row) else " (missed)"
    return f"{row.extra['residual']:.1e}{missed}"


def converged(row: Row) -> bool:
    """Return whether eigenpairs are as good as was asked for."""
    return row.extra.get("residual", float("inf")) <= EIGENPAIRS_RESIDUAL


def memory(rows: Sequence[Row]) -> Table:
    """One line per library, way and K; one column per problem."""
    return _by_problem(
        rows,
        lambda row: (row.quantity, str(row.columns), label(row)),
        lambda row: f"{row.value:.0f}" if row.value is not None else row.status,
    )


def scaling(rows: Sequence[Row]) -> Table:
    """One line per problem and axis; the slopes of the gradient and of our products."""
    found = slopes(rows)
    lines = []
    for problem, axis in dict.fromkeys((row.problem, row.axis) for row in rows):
        sizes = [row.size for row in select(rows, problem=problem, axis=axis)]
        values = (
            found.get((problem, axis, *series))
            for series in (("gradient", ""), ("Hessian", "kept"), ("Hessian", "streamed"))
        )
        span = f"{min(sizes)} … {max(sizes)}"
        lines.append([TITLES[problem], axis, span, *(number(value) for value in values)])
    return Table(["problem", "axis", "sizes", "gradient", "Hessian kept", "streamed"], lines)


TABLES = {
    "products": products,
    "eigs": eigs,
    "logdet": logdet.table,
    "volume": volume.table,
    "bridge": bridge.table,
    "landscape": landscape.table,
    "memory": memory,
    "training": training.table,
    "scaling": scaling,
}


def label(row: Row) -> str:
    """Return library and way in a few words."""
    return f"{row.library}, {row.variant}" if row.variant else row.library


def spread(row: Row | None) -> str:
    """Return a cell: the median and its quartiles, or why there is none."""
    if row is None:
        return ""
    if row.status != MEASURED:
        return row.status
    if row.rounds < 2:
        return number(row.value)
    return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"


def problems_of(rows: Sequence[Row]) -> list[str]:
    """Return the problems that a run measured, in the usual order."""
    present = {row.problem for row in rows}
    return [name for name in TITLES if name in present]


def notes(rows: Sequence[Row]) -> list[str]:
    """Return why numbers are missing, one line each, without repetition."""
    lines = (
        f"{label(row)}, {row.quantity}, K = {row.columns}, {TITLES[row.problem]}: "
        f"{row.status}, {row.note}"
        for row in rows
        if row.status not in (MEASURED, "not offered", "not installed") and row.note
    )
    return list(dict.fromkeys(lines))


def _by_problem(rows, line_of, cell):  # type: ignore[no-untyped-def]
    names = problems_of(rows)
    keys = list(dict.fromkeys(line_of(row) for row in rows if row.library))
    lines = []
    for key in keys:
        mine = [row for row in rows if row.library and line_of(row) == key]
        cells = [find(mine, problem=name) for name in names]
        lines.append([*key, *(cell(row) if row is not None else "" for row in cells)])
    return Table(["matrix", "K", "way", *(TITLES[name] for name in names)], lines)
