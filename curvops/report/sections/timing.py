"""Where the time went: what one loss, gradient and product cost here, and what took how long."""

from __future__ import annotations

from curvops.plotting.timing import timing as draw_timing
from curvops.report.blocks import Number, Paragraph, SectionResult, Table, digits, duration
from curvops.report.context import Context
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.speed import speed


@section("timing", "Where the time went", order=20, after_all=True)
def timing(context: Context) -> SectionResult:
    """Tabulate the unit costs and everything that was done."""
    unit = speed(context)
    tasks = [task for task in context.tasks if task.seconds > 0]
    total = sum(task.seconds for task in tasks)
    units = [
        ("one loss", duration(unit.loss), f"{unit.loss / unit.gradient:.2f}"),
        ("one gradient", duration(unit.gradient), "1.00"),
        ("one Hessian product", duration(unit.product), f"{unit.product / unit.gradient:.2f}"),
        (
            "one more column of a product",
            duration(unit.column),
            f"{unit.column / unit.gradient:.2f}",
        ),
    ]
    rows = [
        (
            task.name,
            digits(task.products) if task.products else "–",
            duration(task.seconds),
            duration(task.seconds / task.products) if task.products else "–",
            f"{100 * task.seconds / total:.0f} %",
        )
        for task in tasks
    ]
    numbers = {
        f"seconds_per_{name}": Number(value, f"seconds per {name}", unit="s")
        for name, value in unit.to_dict().items()
    }
    numbers["products_per_gradient"] = Number(
        unit.product / unit.gradient, "cost of a product in gradients"
    )
    names = [task.name for task in tasks]
    seconds = [task.seconds for task in tasks]
    return SectionResult(
        [
            Paragraph(
                "Costs of the whole data set, not of one batch: medians of a few runs. Counted "
                "are products with single vectors."
            ),
            Table(("", "time", "in gradients"), units, "Unit costs on this machine."),
            picture(
                "timing",
                "Bars: seconds that each task took.",
                lambda ax: draw_timing(names, seconds, ax=ax),
                height=1.0 + 0.36 * len(tasks),
            ),
            Table(("task", "products", "time", "per product", "share"), rows, "All work done."),
        ],
        numbers,
    )
