"""Trace, Frobenius norm and the trace of every layer, each with its error, beside the truth."""

from __future__ import annotations

from curvops.linalg.estimate import Estimate
from curvops.linalg.frobenius import frobenius_norm
from curvops.linalg.trace import trace
from curvops.operators.block_diagonal import BlockDiagonalLinearOperator
from curvops.plotting.estimate import estimates as draw_estimates
from curvops.report.blocks import Block, Number, Paragraph, SectionResult, Table, digits
from curvops.report.context import Context
from curvops.report.dense import DenseHessian, dense_hessian, dense_seconds, is_affordable
from curvops.report.estimates import Watched, bracket, numbers_of, quietly
from curvops.report.pictures import picture
from curvops.report.registry import section
from curvops.report.speed import speed

NUM_MATVECS = 100
MOST_LAYERS = 60
_ALL_LAYERS = 1000  # products for them together, where there are many
_FEWEST = 10
_DRAWN = 12


def _estimate(context: Context) -> float:
    layers = len(_blocks(context)[1].groups[:MOST_LAYERS])
    products = 2 * NUM_MATVECS + layers * _for_layer(layers)
    return dense_seconds(context) + products * speed(context).column


@section("traces", "Trace, norm and layers", order=45, estimate=_estimate)
def traces(context: Context) -> SectionResult:
    """Estimate traces and the norm, and compare them with the dense Hessian."""
    dense = dense_hessian(context) if is_affordable(context) else None
    rows = [_trace(context, dense), _norm(context, dense)]
    layers, left_out = _layers(context, dense)
    numbers: dict[str, Number] = {}
    for name, estimate, label, call, exact in (*rows, *layers):
        headline = name in ("trace", "frobenius_norm")
        numbers |= numbers_of(name, estimate, label, call, headline=headline)
        if exact is not None:
            numbers[f"{name}_dense"] = exact
    blocks: list[Block] = [
        Paragraph(
            "From products with random vectors: XTrace for the trace, the same idea for the "
            f"squared norm, {NUM_MATVECS} products each, fewer for layers if there are many. The "
            "brackets hold the truth in 95 of 100 runs. Where there are no more parameters than "
            "products, the answer is exact."
        ),
        _table(rows, "", ""),
        _table(layers, "layer", left_out),
    ]
    drawn = layers[:_DRAWN]
    blocks.append(
        picture(
            "traces",
            "Trace of each layer with its error bar.",
            lambda ax: draw_estimates(
                {label.removeprefix("trace of "): estimate for _, estimate, label, _, _ in drawn},
                truth={
                    label.removeprefix("trace of "): exact.value
                    for _, _, label, _, exact in drawn
                    if exact is not None and isinstance(exact.value, float)
                },
                xlabel="trace",
                ax=ax,
            ),
            height=1.2 + 0.4 * len(drawn),
        )
    )
    return SectionResult(blocks, numbers)


Found = tuple[str, Estimate, str, str, "Number | None"]
"""Name, estimate, what a person calls it, the call of it, the exact value."""


def _trace(context: Context, dense: DenseHessian | None) -> Found:
    seed = context.options.seed
    with context.measure("trace") as task, quietly():
        operator = Watched(context.hessian, context, task)
        estimate = trace(operator, num_matvecs=NUM_MATVECS, seed=seed)
    exact = None if dense is None else float(dense.diagonal.sum())
    call = f"trace(hessian, num_matvecs={NUM_MATVECS}, seed={seed})"
    number = _exact(dense, exact, "float(hessian.to_dense().double().trace())", context.num_params)
    return "trace", estimate, "trace", call, number


def _norm(context: Context, dense: DenseHessian | None) -> Found:
    seed = context.options.seed
    with context.measure("Frobenius norm") as task, quietly():
        operator = Watched(context.hessian, context, task)
        estimate = frobenius_norm(operator, num_matvecs=NUM_MATVECS, seed=seed)
    exact = None if dense is None else float(dense.eigenvalues.norm())
    call = f"frobenius_norm(hessian, num_matvecs={NUM_MATVECS}, seed={seed})"
    root = context.num_params**0.5
    number = _exact(dense, exact, "float(hessian.to_dense().double().norm())", root)
    return "frobenius_norm", estimate, "Frobenius norm", call, number


def _layers(context: Context, dense: DenseHessian | None) -> tuple[list[Found], str]:
    """Return the trace of each layer, and which are left out."""
    how, diagonal = _blocks(context)
    seed, groups = context.options.seed, diagonal.groups[:MOST_LAYERS]
    count = _for_layer(len(groups))
    found: list[Found] = []
    with context.measure("traces of the layers") as task, quietly():
        for i, (names, block) in enumerate(zip(groups, diagonal.blocks)):
            estimate = trace(Watched(block, context, task), num_matvecs=count, seed=seed)
            blocks = f"BlockDiagonalLinearOperator(hessian, {how!r}).blocks[{i}]"
            index = block.rows.index
            exact = None if dense is None else float(dense.diagonal[index.cpu()].sum())
            number = _exact(
                dense, exact, f"float({blocks}.to_dense().double().trace())", len(index)
            )
            call = f"trace({blocks}, num_matvecs={count}, seed={seed})"
            found.append((f"trace_layer_{i}", estimate, f"trace of {_name(names)}", call, number))
    cut = len(diagonal.groups) - len(groups)
    return found, f"The first {len(groups)} of {len(diagonal.groups)}." if cut else ""


def _blocks(context: Context) -> tuple[str, BlockDiagonalLinearOperator]:
    """Return the diagonal blocks: layers, or parameters where names tell no layers."""
    names = context.risk.space.names
    how = "parameter" if all(name.isdecimal() for name in names) else "layer"
    return how, context.shared("layers", lambda: BlockDiagonalLinearOperator(context.hessian, how))


def _for_layer(num_layers: int) -> int:
    """Return how many products a layer is given."""
    return max(_FEWEST, min(NUM_MATVECS, _ALL_LAYERS // max(num_layers, 1)))


def _exact(
    dense: DenseHessian | None, value: float | None, call: str, roundings: float
) -> Number | None:
    if dense is None or value is None:
        return None
    return Number(value, error=dense.noise * roundings, cost=dense.cost, call=call)


def _name(names: tuple[str, ...]) -> str:
    """Return what the parameters of a layer share."""
    return names[0].rpartition(".")[0] if len(names) > 1 and "." in names[0] else names[0]


def _table(rows: list[Found], heading: str, caption: str) -> Table:
    """Tabulate estimates, with exact values where all have one."""
    has_exact = all(exact is not None for *_, exact in rows)
    cells = []
    for _, estimate, label, _, exact in rows:
        row = [label.removeprefix("trace of ") if heading else label]
        row += [digits(estimate.value), f"± {estimate.stderr:.2g}", bracket(estimate)]
        if has_exact and exact is not None and isinstance(exact.value, float):
            row.append(digits(exact.value))
        cells.append([*row, digits(estimate.num_matvecs), estimate.method])
    columns = [heading, "estimate" if not heading else "trace", "standard error", "95 % bracket"]
    columns += ["exact"] if has_exact else []
    return Table([*columns, "products", "method"], cells, caption)
