"""What the report is about: sizes, loss, gradient, accuracy, and where all of it lives."""

from __future__ import annotations

import torch

from curvops.report.accuracy import accuracy
from curvops.report.blocks import (
    Block,
    Cost,
    Note,
    Number,
    Paragraph,
    SectionResult,
    Table,
    digits,
)
from curvops.report.context import Context
from curvops.report.registry import section

_MAX_ROWS = 60


@section("problem", "The problem", order=10)
def problem(context: Context) -> SectionResult:
    """Tabulate the risk."""
    risk = context.risk
    with context.measure("loss and gradient") as task:
        loss, gradient = float(risk.loss()), float(risk.gradient().norm())
    theta = risk.theta
    rms = float(theta.double().square().mean().sqrt())
    correct = accuracy(risk)
    numbers = {
        "num_params": Number(
            context.num_params, "parameters P", call="risk.space.dim", headline=True
        ),
        "num_data": Number(risk.num_data, "data N", call="risk.num_data", headline=True),
        "loss": Number(
            loss, "loss", cost=Cost(seconds=task.seconds), call="float(risk.loss())", headline=True
        ),
        "gradient_norm": Number(
            gradient,
            "gradient norm",
            cost=Cost(seconds=task.seconds),
            call="float(risk.gradient().norm())",
            headline=True,
        ),
        "normalizer": Number(risk.normalizer, "normaliser Z", call="risk.normalizer"),
        "weight_decay": Number(risk.weight_decay, "weight decay λ", call="risk.weight_decay"),
        "theta_rms": Number(
            rms,
            "root mean square of θ",
            call="float(risk.theta.double().square().mean().sqrt())",
        ),
    }
    if correct is not None:
        numbers["accuracy"] = Number(
            correct, "accuracy", call="accuracy(risk)", headline=True, note="on the risk's own data"
        )
    module = "a function" if risk.model is None else type(risk.model).__name__
    rows = [
        ("problem", context.problem.name),
        ("model", module),
        ("loss function", risk.loss_func.name),
        ("parameters P", digits(context.num_params)),
        ("data N", digits(risk.num_data)),
        ("reduction", risk.reduction),
        ("normaliser Z", digits(risk.normalizer, 10)),
        ("weight decay λ", digits(risk.weight_decay)),
        ("loss L(θ)", digits(loss)),
        ("gradient norm |∇L|", digits(gradient, 3)),
        ("accuracy", "–" if correct is None else f"{100 * correct:.2f} %"),
        ("root mean square of θ", digits(rms)),
        ("dtype", str(risk.dtype).removeprefix("torch.")),
        ("device", str(risk.device)),
        ("torch threads", str(torch.get_num_threads())),
    ]
    blocks: list[Block] = []
    if context.problem.is_demo:
        blocks.append(
            Paragraph(
                "The bundled problem: a small tanh network on scikit-learn's 8 × 8 digits, trained "
                "in double precision until the gradient vanishes. It is small enough for the "
                "dense Hessian, so that every answer below stands beside the exact one."
            )
        )
    blocks.append(Table((), rows))
    blocks.append(_parameters(context))
    # A quadratic model around θ has a linear term unless θ is stationary.
    if gradient > 1e-2 * max(abs(loss), 1e-12):
        blocks.append(
            Note(
                f"The gradient norm, {digits(gradient, 3)}, is not small beside the loss: θ is not "
                "at a minimum. Eigenvalues are those of the Hessian here; volumes and quadratic "
                "predictions describe a basin only at a minimum.",
                "warning",
            )
        )
    return SectionResult(blocks, numbers)


def _parameters(context: Context) -> Table:
    space = context.risk.space
    rows = [
        (name, " × ".join(map(str, shape)) or "scalar", digits(numel))
        for name, shape, numel in zip(space.names, space.shapes, space.numels)
    ]
    caption = "Parameters, in the order of θ."
    if len(rows) > _MAX_ROWS:
        caption = f"The first {_MAX_ROWS} of {len(rows)} parameter tensors, in the order of θ."
    return Table(("name", "shape", "numbers"), rows[:_MAX_ROWS], caption)
