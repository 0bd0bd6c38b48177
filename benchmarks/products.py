"""The price of a product: ours in every way, and the peers', in full-data gradients.

Every entry is compared with a float64 product before it is timed; what disagrees gets no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmarks import ours
from benchmarks.options import Options
from benchmarks.peers.base import NotOfferedError, Peer, Product
from benchmarks.problems import Problem
from benchmarks.results import Row
from benchmarks.targets import AGREEMENT
from benchmarks.timing import Summary, collected, duration, interleave, summarize

WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "residuals": {"keep": "residuals"},
    "graph": {"keep": "graph"},
    "streamed": ours.STREAMED,
}
COLUMN_WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "vmap": {"columns": "vmap"},
    "loop": {"columns": "loop"},
}
BLOCKS = (8, 32)

WARM_UP = 3
"""Products until full swing: the second may begin to keep, and to trace."""

LONG_RUN = 10_000
"""Products that ours is told to expect: a price in full swing is that of a long run."""

# A block of columns that a library differentiates all at once, without chunks, multiplies the
# activations of a batch: on ResNet-18 that is tens of gigabytes.
TOO_WIDE = {"resnet18": 8}

MOST_COLUMNS = {"resnet18": 8}
"""Wider blocks take minutes a product there, so that only the automatic way is timed."""


@dataclass(frozen=True)
class Entry:
    """Something to be timed.

    Attributes:
        row: Where its number goes.
        make: Returns the product; what it does is not timed.
        free: Frees what the product holds.
    """

    row: Row
    make: Callable[[], Product]
    free: Callable[[], None] = lambda: None


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one problem after the other."""
    for name in options.problems:
        problem = options.build(name)
        if problem is None:
            yield [Row(name, "", "", status="not run", note="its data are not on this machine")]
            continue
        rows = setup_rows(options, name, problem)
        for quantity in ("Hessian", "GGN", "EF"):
            entries = [*our_entries(name, problem, quantity)]
            entries += [
                peer_entry(name, problem, quantity, peer) for peer in options.chosen_peers()
            ]
            rows += group(options, problem, entries)
        for columns in BLOCKS:
            entries = [*block_entries(name, problem, columns)]
            entries += [
                peer_entry(name, problem, "Hessian", peer, columns)
                for peer in options.chosen_peers()
                if peer.blocks
            ]
            rows += group(options, problem, entries)
        yield rows


def our_entries(name: str, problem: Problem, quantity: str) -> Iterator[Entry]:
    """Yield one vector's product in each of our ways."""
    for variant, knobs in WAYS.items():
        yield _ours(Row(name, quantity, "curvops", variant), problem, knobs)


def block_entries(name: str, problem: Problem, columns: int) -> Iterator[Entry]:
    """Yield Hessian products of a block in each of our ways with columns."""
    for variant, knobs in COLUMN_WAYS.items():
        row = Row(name, "Hessian", "curvops", variant, columns)
        if variant == "vmap" and columns > TOO_WIDE.get(name, columns):
            row = replace(
                row, status="not run", note="one vmap over the block needs too much memory"
            )
        elif variant != "auto" and columns > MOST_COLUMNS.get(name, columns):
            row = replace(row, status="not run", note="it takes too long")
        yield _ours(row, problem, knobs)


def _ours(row: Row, problem: Problem, knobs: dict[str, Any]) -> Entry:
    held: list[Any] = []

    def make() -> Product:
        held.append(ours.prepared(problem, row.quantity, LONG_RUN, **knobs))
        return lambda v: held[0] @ v

    def free() -> None:
        while held:
            ours.release(held.pop())

    return Entry(row, make, free)


def peer_entry(name: str, problem: Problem, quantity: str, peer: Peer, columns: int = 1) -> Entry:
    """Return a peer's product."""
    row = Row(name, quantity, peer.name, columns=columns)
    if peer.missing():
        row = replace(row, status=str(peer.missing()))
    elif columns > 1 and columns >= TOO_WIDE.get(name, columns + 1):
        row = replace(row, status="not run", note="one vmap over the block needs too much memory")
    return Entry(row, lambda: peer.product(problem, quantity))


def group(options: Options, problem: Problem, entries: list[Entry]) -> list[Row]:
    """Check entries of one matrix and one K, and time those that are right, interleaved."""
    if not entries:
        return []
    row = entries[0].row
    columns = row.columns
    options.say(f"{problem.name}: {row.quantity}, K = {columns}")
    X = ours.vectors(problem, columns)
    probe = sorted({0, columns - 1})
    exact = ours.truth(problem, row.quantity, X[:, probe])
    x = X[:, 0] if columns == 1 else X
    rows, tasks = [], {}
    for entry in entries:
        row, product = checked(entry, x, probe, exact)
        rows.append(row)
        if product is not None:
            tasks[row.library + row.variant] = _task(product, x)
    if tasks:
        summaries = interleave(ours.gradient(problem), tasks, options.rounds())
        rows = [
            row.timed(summaries[row.library + row.variant].per(columns))
            if row.library + row.variant in summaries
            else row
            for row in rows
        ]
    for entry in entries:
        entry.free()
    return rows


def checked(entry: Entry, x: Tensor, probe: list[int], exact: Tensor) -> tuple[Row, Product | None]:
    """Make an entry's product, warm it up and compare it with the truth.

    Returns:
        The row, with the error or the reason why there is none, and the product if it is right.
    """
    row = entry.row
    if row.status != "measured":
        return row, None
    try:
        product = entry.make()
        for _ in range(WARM_UP):
            result = product(x)
    except NotOfferedError as error:
        return replace(row, status="not offered", note=str(error)), None
    except Exception as error:  # a peer may fail in any way; the table says how
        return replace(row, status="fails", note=_first_line(error)), None
    result = result.reshape(len(exact), -1)[:, probe]
    error = ours.relative_error(result, exact)
    row = replace(row, extra={"error": float(f"{error:.1e}")})
    if not error <= AGREEMENT:
        return replace(row, status="disagrees", note=f"relative error {error:.1e}"), None
    return row, product


def setup_rows(options: Options, name: str, problem: Problem) -> list[Row]:
    """Time what comes before full swing: from the operator's construction to the third product.

    The price of three products in full swing is taken off. Measured once per way and before
    everything else, since what was traced may be remembered.
    """
    baseline = ours.gradient(problem)
    baseline()
    rows = []
    for variant, knobs in WAYS.items():
        row = Row(name, "set-up of the Hessian", "curvops", variant)
        options.say(f"{problem.name}: {row.quantity}, {variant}")
        entry = _ours(replace(row, quantity="Hessian"), problem, knobs)
        try:
            rows.append(row.timed(_setup(entry, ours.vectors(problem, 1)[:, 0], baseline)))
        except Exception as error:
            rows.append(replace(row, status="fails", note=_first_line(error)))
        finally:
            entry.free()
    return rows


def _setup(entry: Entry, x: Tensor, baseline: Callable[[], Any]) -> Summary:
    made: list[Product] = []

    def start() -> None:
        made.append(entry.make())
        for _ in range(WARM_UP):
            made[0](x)

    with collected():
        seconds = duration(start)
        made[0](x)
        product = min(duration(_task(made[0], x)) for _ in range(3))
        unit = min(duration(baseline) for _ in range(5))
    return summarize([max(seconds - WARM_UP * product, 0.0) / unit], [seconds])


def _task(product: Product, x: Tensor) -> Callable[[], Any]:
    return lambda: product(x)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}"
