"""What the engine must reach, as data: ratios to one full-data gradient on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

PROBLEMS = ("mlp", "cnn", "gpt", "resnet18")


@dataclass(frozen=True)
class Target:
    """One row of the table of targets.

    Attributes:
        title: How the table names it.
        quantity: The matrix.
        variant: The way of ours that is meant.
        columns: K.
        limits: The largest ratio allowed, per vector, by problem.
    """

    title: str
    quantity: str
    variant: str
    columns: int
    limits: dict[str, float]


def _limits(*values: float) -> dict[str, float]:
    return dict(zip(PROBLEMS, values, strict=True))


TARGETS = (
    Target("Hessian, K = 1", "Hessian", "auto", 1, _limits(1.4, 1.3, 1.5, 1.8)),
    Target("GGN, K = 1", "GGN", "auto", 1, _limits(1.1, 1.1, 1.1, 1.4)),
    Target("EF, K = 1", "EF", "auto", 1, _limits(1.0, 1.0, 1.0, 1.4)),
    Target("Hessian per vector, K = 8", "Hessian", "auto", 8, _limits(1.2, 1.3, 1.2, 1.8)),
    Target("Hessian per vector, K = 32", "Hessian", "auto", 32, _limits(1.2, 1.3, 1.2, 1.8)),
    Target("streamed Hessian, K = 1", "Hessian", "streamed", 1, _limits(2.6, 2.6, 3.5, 3.5)),
)


@dataclass(frozen=True)
class Lead:
    """How many times faster than a peer the operators must be.

    Attributes:
        library: The peer.
        quantities: The matrices compared.
        factors: The least ratio of the peer's time to ours, by problem.
    """

    library: str
    quantities: tuple[str, ...]
    factors: dict[str, float]


LEADS = (
    Lead("curvlinops", ("Hessian", "GGN"), _limits(4.0, 2.0, 4.0, 2.0)),
    Lead("curvlinops compiled", ("Hessian", "GGN"), _limits(1.0, 1.0, 1.0, 1.0)),
    Lead("hessian-eigenthings", ("Hessian", "GGN"), _limits(1.0, 1.0, 1.0, 1.0)),
    Lead("pyhessian", ("Hessian",), _limits(1.0, 1.0, 1.0, 1.0)),
)

AGREEMENT = 1e-5
"""Relative error beyond which a product is called wrong, and not timed."""

EIGENPAIRS = {"mlp": 330.0, "cnn": 180.0}
"""Gradients that the 20 largest Hessian eigenpairs may cost."""

EIGENPAIRS_K = 20
EIGENPAIRS_RESIDUAL = 1e-4

LOGDET_LEAD = 5.0
"""How many times smaller than plain quadrature's the error must be, at equal products."""

LANDSCAPE_LEAD = 1.5
"""How many times faster than copies of the module, one by one, the points of a plane must be."""

LANDSCAPE_BUDGET_MB = 268.0
"""What their evaluation may take beside data, points and answer: 256 MiB, its default."""

MEMORY_BUDGET = "200MB"
MEMORY_BUDGET_MB = 200.0
"""What a run under that budget may add to the resident set."""

TRAINING_OVERHEAD = 1.6
"""Plain steps that a step with Alpha and GradientNoise may take."""
