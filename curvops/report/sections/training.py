"""What a monitored training run has measured: from a journal, or a short run of the demo."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from curvops.plotting.monitor import monitor_panel, panels_of
from curvops.report.blocks import (
    Block,
    Cost,
    Note,
    Number,
    Paragraph,
    SectionResult,
    Table,
    digits,
    duration,
)
from curvops.report.context import Context
from curvops.report.pictures import picture
from curvops.report.registry import Skipped, section
from curvops.report.training_run import BATCH_SIZE, EPOCHS, LEARNING_RATE, MOMENTUM, demo_run
from curvops.training.journal import read_journal
from curvops.training.run import Run

_DEMO_SECONDS = 3.0

_TOLD: tuple[tuple[str, str, str, Callable[[list[Any]], float], str], ...] = (
    ("alpha", "alpha", "median α of the steps", median, "median"),
    ("exact_alpha", "alpha", "median α on the risk", median, "median"),
    ("gradient_noise", "noise_scale", "median noise scale, in data", median, "median"),
    ("gradient_noise", "norm_test", "median norm test", median, "median"),
    ("sharpness", "sharpness", "last λ_max", lambda v: float(v[-1]), "last"),
    ("sharpness", "ratio", "last λ_max over its bound", lambda v: float(v[-1]), "last"),
    ("hessian_trace", "total", "last trace of the Hessian", lambda v: float(v[-1]), "last"),
    ("subspace_overlap", "overlap", "median overlap of top subspaces", median, "median"),
    (
        "subspace_overlap", "gradient_fraction", "median part of the gradient in it", median,
        "median",
    ),
    ("early_stopping", "evidence", "last evidence to stop", lambda v: float(v[-1]), "last"),
    ("tic", "diagonal", "last TIC, by diagonals", lambda v: float(v[-1]), "last"),
)  # fmt: skip
"""Quantity, its number, what a person calls it, how it is summed up, and the name of that."""


def _estimate(context: Context) -> float:
    return _DEMO_SECONDS if context.problem.is_demo and context.options.run is None else 0.1


@section("training", "Curvature while training", order=90, estimate=_estimate)
def training(context: Context) -> SectionResult:
    """Draw and sum up what a run has measured."""
    run, source, about = _run(context)
    panels = panels_of(run)
    if not panels:
        raise Skipped(f"{source} has no value that could be shown.")
    numbers: dict[str, Number] = {}
    for quantity, name, label, reduce, how in _TOLD:
        values = run.series(quantity, name)[1] if quantity in run.quantities else []
        if values:
            sums = "statistics.median(" if how == "median" else "(lambda v: v[-1])("
            numbers[f"training_{quantity}_{name}"] = Number(
                float(reduce(values)),
                label,
                cost=Cost(seconds=_seconds(run, quantity)),
                call=f"{sums}{source}.series({quantity!r}, {name!r})[1])",
                headline=(quantity, name) in (("alpha", "alpha"), ("sharpness", "ratio")),
            )
    blocks: list[Block] = [
        Paragraph(about),
        Paragraph(
            "α = 0 is a step to the minimum along it, 1 a step to the other side at the same "
            "height, −1 one that did not move. Where the noise scale is above the batch size, "
            "noise outweighs the mini-batch gradient. The edge of stability is the sharpness above "
            "which the optimizer diverges on a quadratic."
        ),
        picture(
            "training",
            "What the run measured, over its steps.",
            *(lambda ax, name=name: monitor_panel(run, name, ax=ax) for name in panels),
            width=3.6 * min(len(panels), 2),
            height=2.4 * -(-len(panels) // 2),
        ),
        _table(run),
    ]
    notes = dict.fromkeys(
        note for r in run.records for note in r.values.get("notes") or () if isinstance(note, str)
    )
    blocks += [Note(note) for note in list(notes)[:5]]
    return SectionResult(blocks, numbers)


def _run(context: Context) -> tuple[Run, str, str]:
    """Return the run, the call that gives it again, and what to say about it."""
    path = context.options.run
    if path is not None:
        run = read_journal(path)
        return run, f"read_journal({path!r})", f"From the journal {path}: {_described(run)}."
    if not context.problem.is_demo:
        raise Skipped(
            "no training run was recorded: pass the log= of a curvops.training.Monitor as --run."
        )
    seed = context.options.seed
    context.tick(0, None, "steps")
    with context.measure("a monitored training run"):
        run = demo_run(seed)
    about = (
        f"A short run of the demo's network from its start, {EPOCHS} epochs of SGD with momentum "
        f"{MOMENTUM:g}, step size {LEARNING_RATE:g} and mini-batches of {BATCH_SIZE}: "
        f"{_described(run)}. Sharpness and traces are those of all digits."
    )
    return run, f"demo_run({seed})", about


def _described(run: Run) -> str:
    header = run.header
    steps = max((r.step for r in run.records), default=-1) + 1
    model, optimizer = header.get("model", "a model"), header.get("optimizer", "an optimizer")
    params = header.get("num_params")
    size = f" of {digits(params)} parameters" if isinstance(params, int) else ""
    return f"{model}{size}, {optimizer}, {digits(steps)} steps"


def _seconds(run: Run, quantity: str) -> float:
    return sum(r.seconds for r in run.records if r.quantity == quantity)


def _table(run: Run) -> Table:
    rows = []
    for quantity in run.quantities:
        mine = [r for r in run.records if r.quantity == quantity]
        statuses = [str(r.values["status"]) for r in mine if r.values.get("status") is not None]
        told = ", ".join(f"{s} {statuses.count(s)}" for s in dict.fromkeys(statuses)) or "–"
        seconds = _seconds(run, quantity)
        each = duration(seconds / len(mine)) if seconds else "–"
        rows.append((quantity, digits(len(mine)), told, each))
    return Table(("quantity", "times", "statuses", "time each"), rows, "What was measured.")
