"""docs/benchmarks.md out of the committed results: the same results give the same page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import bridge, landscape, logdet, products, report, training, volume
from benchmarks.problems import TITLES
from benchmarks.results import FOLDER, MEASURED, Result, Row, committed, find, select
from benchmarks.tables import Table, number
from benchmarks.targets import (
    AGREEMENT,
    EIGENPAIRS,
    EIGENPAIRS_K,
    EIGENPAIRS_RESIDUAL,
    LANDSCAPE_BUDGET_MB,
    LANDSCAPE_LEAD,
    LEADS,
    LOGDET_LEAD,
    MEMORY_BUDGET,
    MEMORY_BUDGET_MB,
    PROBLEMS,
    TARGETS,
    TRAINING_OVERHEAD,
)

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
ASSETS = "assets/benchmarks"
"""Where the page finds the folder of results."""

MET, MISSED = "✓", "✗"

_INTRODUCTION = f"""\
# Benchmarks

This page is generated from the results in `benchmarks/results` by `python -m benchmarks docs`.
Targets stand beside what was measured; {MET} is a target reached and {MISSED} one that was missed.

The unit of time is **one gradient**: forward and backward pass over all data, in plain torch, batch
by batch. Every entry is timed between two such gradients, in rounds that go through all entries of
a table in one process; a number is the median over the rounds, in brackets the quartiles. Before
anything is timed, its numbers are compared with a product in float64; a relative error above
{AGREEMENT:g} is reported as *disagrees*, without a time.
"""

_PROBLEMS = """\
## Problems

All use float32, cross entropy and the mean over the data.

| problem | model | data |
| --- | --- | --- |
| MLP | 784-512-256-10, ReLU | 8 × 128 images of 28 × 28, random |
| CNN | two 3 × 3 convolutions (16, 32) with max pooling, linear 1568-64-10, ReLU | the same |
| GPT | 2 pre-norm blocks, width 64, 4 heads, vocabulary 64 | 8 × 16 sequences of 32, random |
| ResNet-18 | width 64, 3 × 3 stem, batch norm in eval mode | 2 × 32 images of 3 × 32 × 32, random |
| Fashion-MNIST | the MLP after 40 steps of gradient descent | the first 8 × 128 images |
"""

_RUN = """\
## Run it

```text
pip install -e ".[bench,plot]"
python -m benchmarks products --json products.json
python -m benchmarks eigs
python -m benchmarks logdet
python -m benchmarks volume
python -m benchmarks bridge
python -m benchmarks landscape
python -m benchmarks memory
python -m benchmarks training
python -m benchmarks scaling
python -m benchmarks check products.json
```

`--quick` takes small data and few rounds; `--problems` and `--peers` choose. `check` compares a run
with the committed one and fails if something of ours has become dearer than noise explains.
"""


def page(folder: Path = FOLDER) -> str:
    """Return the page for the results in a folder."""
    parts = [_INTRODUCTION, _PROBLEMS]
    results = {name: committed(name, folder) for name in _SECTIONS}
    for name, section in _SECTIONS.items():
        result = results[name]
        if result is None:
            parts.append(f"## {_TITLES[name]}\n\nNot measured yet.\n")
            continue
        parts.append(f"## {_TITLES[name]}\n\n{_where(result)}\n")
        parts += section(result.rows)
        if (folder / f"{name}.png").exists():
            parts.append(f"![{_TITLES[name]}]({ASSETS}/{name}.png)\n")
        parts += _remarks(result.rows)
        parts.append(f"[All numbers]({ASSETS}/{name}.json)\n")
    parts.append(_RUN)
    return "\n".join(parts)


def write(folder: Path = FOLDER, path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(page(folder), encoding="utf-8")


def _products(rows: Sequence[Row]) -> Iterator[str]:
    names = [name for name in PROBLEMS if select(rows, problem=name)]
    yield "### Targets\n"
    yield targets_table(rows, names).markdown() + "\n"
    yield "### Beside the peers\n"
    yield (
        "How many times longer the peer takes for one product than we do (*auto*), and the least "
        "it must be.\n"
    )
    yield leads_table(rows, names).markdown() + "\n"
    yield "### Every way\n"
    yield (
        f"Gradients per vector. *auto* expects {products.LONG_RUN:,} products: where it traces, "
        "it also compiles if that is measured to be faster, at the price that the set-up shows.\n"
    )
    yield report.products(rows).markdown() + "\n"


def targets_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """Return targets and measurements, cell by cell, and the promise about blocks."""
    lines = []
    for target in TARGETS:
        key = {
            "quantity": target.quantity,
            "library": "curvops",
            "variant": target.variant,
            "columns": target.columns,
        }
        cells = []
        for name in names:
            row, limit = find(rows, problem=name, **key), target.limits[name]
            cells.append(_verdict(row, f"≤ {limit:g}", row is not None and _below(row, limit)))
        lines.append([target.title, *cells])
    for columns in (8, 32):
        cells = []
        key = {"quantity": "Hessian", "library": "curvops", "variant": "auto"}
        for name in names:
            row = find(rows, problem=name, columns=columns, **key)
            single = find(rows, problem=name, columns=1, **key)
            if single is None or single.value is None:
                cells.append("–")
                continue
            met = row is not None and _below(row, single.value)
            cells.append(_verdict(row, f"≤ {number(single.value)}", met))
        lines.append([f"no dearer per vector at K = {columns} than at 1", *cells])
    return Table(["", *(TITLES[name] for name in names)], lines)


def leads_table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """Return how many times faster we are than each peer, beside the target."""
    lines = []
    for lead in LEADS:
        for quantity in lead.quantities:
            cells = []
            for name in names:
                key = {"problem": name, "quantity": quantity, "columns": 1}
                theirs = find(rows, library=lead.library, **key)
                mine = find(rows, library="curvops", variant="auto", **key)
                cells.append(_lead(theirs, mine, lead.factors[name]))
            lines.append([f"{lead.library}, {quantity}", *cells])
    return Table(["", *(TITLES[name] for name in names)], lines)


def _lead(theirs: Row | None, mine: Row | None, least: float) -> str:
    if theirs is None:
        return "–"
    if theirs.status != MEASURED or theirs.value is None:
        return theirs.status
    if mine is None or mine.value is None:
        return f"{MISSED} ours {mine.status if mine is not None else 'not measured'}"
    factor = theirs.value / mine.value
    return f"{MET if factor >= least else MISSED} {number(factor)} (≥ {least:g})"


def _eigs(rows: Sequence[Row]) -> Iterator[str]:
    sizes = {int(row.extra["k"]) for row in rows if "k" in row.extra}
    how_many = ", ".join(map(str, sorted(sizes))) or str(EIGENPAIRS_K)
    yield (
        f"The {how_many} largest eigenpairs of the Hessian to a relative residual "
        f"‖Hv − λv‖/λ of {EIGENPAIRS_RESIDUAL:g}, from the bare model and data on. The "
        "worst residual is measured afterwards with our product; *off ours* is the largest "
        "relative difference of an eigenvalue from ours.\n"
    )
    cells = []
    for name, limit in EIGENPAIRS.items():
        row = find(rows, problem=name, library="curvops")
        if row is not None and row.extra.get("k", EIGENPAIRS_K) == EIGENPAIRS_K:
            met = _below(row, limit) and report.converged(row)
            cells.append([TITLES[name], _verdict(row, f"≤ {limit:g}", met)])
    if cells:
        yield Table(["target", "gradients"], cells).markdown() + "\n"
    yield report.eigs(rows).markdown() + "\n"


def _logdet(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "log det(A + shift I) of the GGN and the Hessian of a 64-64-10 network on 1024 digits "
        "(P = 4810, float64): the error against all eigenvalues, the error that is claimed, how "
        "often the interval held the truth, products and seconds; medians over ten seeds. Where "
        "the Hessian is indefinite after the shift, |A| is meant.\n"
    )
    ours = [row for row in rows if row.library == "curvops" and row.value is not None]
    plain = {row.quantity: row for row in ours if row.variant.startswith("slq")}
    cells = []
    for row in ours:
        if row.variant.startswith("krylov") and row.quantity in plain and row.value:
            lead = (plain[row.quantity].value or 0.0) / row.value
            mark = MET if lead >= LOGDET_LEAD else MISSED
            cells.append([row.quantity, f"{mark} {number(lead)} (≥ {LOGDET_LEAD:g})"])
    if cells:
        yield Table(["matrix, shift", "error of slq / of krylov"], cells).markdown() + "\n"
    yield logdet.table(list(rows)).markdown() + "\n"


def _volume(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "Log-volumes of basins ([Basin volume](volume.md)). The toy is a rotated quadratic of 200 "
        "parameters; the digits network is the published recipe of "
        "[Scherlis & Belrose](https://arxiv.org/abs/2501.18812), trained here, with 3000 "
        "directions, beside the best of their dampings; the CNN is on Fashion-MNIST. Where the "
        "effective sample size is near one the number is that of one lucky direction, and a lower "
        "bound of the volume that holds all the same.\n"
    )
    best = {row.variant: row.extra["log_volume"] for row in rows if row.problem == "digits"}
    ways = [way for way in ("none", "adam", "diagonal") if way in best]
    ends = [best[way] for way in ("lowrank", "dense") if way in best]
    if len(ways) == 3 and ends:
        values = [best[way] for way in ways] + [max(ends)]
        published = max(volume.PUBLISHED.values())
        cells = [
            ["isotropic < adam < diagonal < low rank or dense", _mark(values == sorted(values))],
            [f"the best above the best published, {published:.0f}", _mark(max(ends) > published)],
        ]
        yield Table(["target on digits", ""], cells).markdown() + "\n"
    yield volume.table(list(rows)).markdown() + "\n"


def _bridge(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "The digits network again, by [the bridge](bridge.md) from the prior: runs of 8 chains "
        "along a ladder of temperatures, combined as the log of the mean; errors over runs. Below "
        "stands a star domain, above Chernoff's bound of the same runs. Runs agree down the ladder "
        "until each cloud is in a part of the level set of its own; from there on only the spread "
        "of the runs says how sure a number is.\n"
    )
    cells = []
    for quantity in dict.fromkeys(row.quantity for row in rows):
        star, found, bound = (
            next((r for r in rows if (r.quantity, r.variant) == (quantity, variant)), None)
            for variant in ("star domain, dense", "bridge", "Chernoff")
        )
        if star is None or found is None or bound is None:
            continue
        value = found.extra["log_volume"]
        between = star.extra["log_volume"] < value < bound.extra["log_volume"]
        spread = max(found.extra["samples"]) - min(found.extra["samples"])
        cells.append([quantity, _mark(between), f"{spread:.1f}", f"{found.extra['stderr']:.2g}"])
    headers = ["quantity", "between its bounds", "runs differ by", "stated error"]
    yield Table(headers, cells).markdown() + "\n"
    yield bridge.table(rows).markdown() + "\n"


def _mark(met: bool) -> str:
    return MET if met else MISSED


def _landscape(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "The loss of a 784-128-128-10 ReLU network (P = 118282) at 81 points over 60000 images, by "
        "size of the batches. The unit is 81 copies of the module, evaluated one by one without "
        "gradients. Layers that see the data share their products where points lie in a plane, "
        "given as `Affine` or recognised in their columns; *any points* have nothing in common. "
        "The relative error is the largest, against float64; the peak is what an evaluation adds "
        "in a process of its own. loss-landscapes starts one step off the grid and turns round at "
        "the end of every row, so its losses belong to other points than asked for.\n"
    )
    cells = []
    for row in rows:
        if row.library == "curvops" and row.value:
            lead, peak = 1 / row.value, row.extra.get("peak_mb")
            mark = MET if lead >= LANDSCAPE_LEAD else MISSED
            cell = [f"{row.size}, {row.variant}", f"{mark} {number(lead)} (≥ {LANDSCAPE_LEAD:g})"]
            fits = peak is not None and peak <= LANDSCAPE_BUDGET_MB
            cell.append(f"{MET if fits else MISSED} {number(peak)} (≤ {LANDSCAPE_BUDGET_MB:g})")
            cells.append(cell)
    if cells:
        yield Table(["batch, points", "times faster", "peak MB"], cells).markdown() + "\n"
    yield landscape.table(list(rows)).markdown() + "\n"


def _memory(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "The peak of the resident set in a process of its own, minus what the process held with "
        "model, data and libraries loaded; in MB, over three products.\n"
    )
    variant = f"budget {MEMORY_BUDGET}"
    names = report.problems_of(rows)
    lines = []
    for columns in sorted({row.columns for row in select(rows, variant=variant)}):
        cells = []
        for name in names:
            row = find(rows, problem=name, variant=variant, columns=columns)
            met = row is not None and _below(row, MEMORY_BUDGET_MB)
            cells.append(_verdict(row, f"≤ {MEMORY_BUDGET_MB:g}", met))
        lines.append([f"`memory_budget={MEMORY_BUDGET!r}`, K = {columns}", *cells])
    yield Table(["", *(TITLES[name] for name in names)], lines).markdown() + "\n"
    yield report.memory(rows).markdown() + "\n"


def _training(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "A training step with `Alpha` and `GradientNoise`, as a multiple of the plain step: "
        "forward and backward pass, optimizer and `zero_grad`, mini-batches of 128. The error is "
        "that of the norm test against float64; the peak is what ten steps add in a process of "
        "their own. *by vmap* is the way of models with layers that BackPACK does not know; "
        "*BatchGrad, kept* holds the gradients of all data at once, as cockpit does.\n"
    )
    lines = []
    names = [name for name in training.PROBLEMS if select(rows, problem=name)]
    for optimizer in training.OPTIMIZERS:
        for variant in (training.EVERY_STEP, training.EVERY_FIFTH):
            cells = []
            for name in names:
                value = training.overhead(list(rows), name, optimizer, variant)
                met = value is not None and value <= TRAINING_OVERHEAD
                mark = MET if met else MISSED
                cells.append(
                    "–" if value is None else f"{mark} {number(value)} (≤ {TRAINING_OVERHEAD:g})"
                )
            lines.append([f"{optimizer}, {variant}", *cells])
    yield Table(["", *(TITLES[name] for name in names)], lines).markdown() + "\n"
    yield training.table(list(rows)).markdown() + "\n"


def _scaling(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "Slopes of log time against log size, over data N, parameters P (by width) and columns K. "
        "1 is proportional; below 1 there is a fixed cost that the larger sizes share.\n"
    )
    yield report.scaling(rows).markdown() + "\n"


def _verdict(row: Row | None, target: str, met: bool) -> str:
    if row is None:
        return "–"
    if row.status != MEASURED:
        return f"{MISSED} {row.status} ({target})"
    return f"{MET if met else MISSED} {number(row.value)} ({target})"


def _below(row: Row, limit: float) -> bool:
    return row.value is not None and row.value <= limit


def _where(result: Result) -> str:
    environment = result.environment
    versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items())
    quick = " **A quick run on small data: not the numbers to quote.**" if _quick(result) else ""
    device = "" if environment["device"] == "cpu" else f", {environment['device']}"
    load = environment.get("load")
    others = "" if load is None else f", load before the run {load:g}"
    return (
        f"Measured {environment['date']} on {environment['cpu']}{device}, "
        f"{environment['threads']} threads{others}; {versions}.{quick}"
    )


def _quick(result: Result) -> bool:
    return bool(result.options.get("quick"))


def _remarks(rows: Sequence[Row]) -> list[str]:
    lines = report.notes(rows)
    return ["Where there is no number:\n", "\n".join(f"- {line}" for line in lines) + "\n"] * bool(
        lines
    )


_TITLES = {
    "products": "Products",
    "eigs": "Eigenpairs",
    "logdet": "Log-determinants",
    "volume": "Basin volumes",
    "bridge": "Bridge",
    "landscape": "Landscape",
    "memory": "Memory",
    "training": "Training",
    "scaling": "Scaling",
}
_SECTIONS = {
    "products": _products,
    "eigs": _eigs,
    "logdet": _logdet,
    "volume": _volume,
    "bridge": _bridge,
    "landscape": _landscape,
    "memory": _memory,
    "training": _training,
    "scaling": _scaling,
}
