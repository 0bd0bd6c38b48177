"""Kept residuals: trace a product, split it at the vector, keep what crosses the cut.

The whole product (θ, batch, v) ↦ A_b v is traced to one graph of tensor operations. Nodes that
do not depend on v form the *primal* graph, which is run once per batch; the others the
*tangent* graph, which is run once per product. The edges between them are the residuals. The
result is bit-identical to the unsplit product. Tracing is done once per model and batch shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from curvops.autodiff.fusion import depending, fix_factors, fuse
from curvops.autodiff.linearization import Blocks
from curvops.autodiff.memory import is_out_of_memory
from curvops.autodiff.merging import merge_equal
from curvops.autodiff.zeros import VIEWS, fold_zeros

_aten = torch.ops.aten

_POINTWISE = {
    _aten.relu, _aten.le, _aten.lt, _aten.ge, _aten.gt, _aten.eq, _aten.ne, _aten.where,
    _aten.scalar_tensor, _aten.mul, _aten.add, _aten.sub, _aten.rsub, _aten.neg, _aten.div,
    _aten.sigmoid, _aten.tanh, _aten.exp, _aten.pow, _aten.sqrt, _aten.rsqrt, _aten.reciprocal,
    _aten.logical_not, _aten.logical_and, _aten.bitwise_not, _aten.zeros_like, _aten.ones_like,
    _aten.full_like, _aten.full, _aten.zeros, _aten.ones, _aten.arange, _aten.threshold_backward,
    _aten.masked_fill, _aten._to_copy, _aten.clone, _aten.silu, _aten.gelu, _aten.erf,
    _aten.sigmoid_backward, _aten.tanh_backward, _aten.gelu_backward, _aten.silu_backward,
}  # fmt: skip
"""Operations that cost no more than reading their result back would."""


@dataclass(frozen=True)
class SplitProduct:
    """A traced product, cut at the vector.

    Attributes:
        primal: ``(*inputs) -> residuals``.
        tangent: ``(*residuals, *vector) -> product``.
        block: The same for vectors stacked on a leading axis.
        is_constant: Whether the product does not depend on the vector: it is zero.
    """

    primal: Callable[..., Sequence[Tensor]]
    tangent: Callable[..., Sequence[Tensor]]
    block: Callable[..., Sequence[Tensor]]
    is_constant: bool

    def residuals(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the primal graph."""
        with torch.no_grad():
            return list(self.primal(*inputs))


@dataclass(frozen=True)
class TracedProduct:
    """A whole product as one graph.

    Attributes:
        root: Holds the constants that the graph refers to.
        graph: ``(*inputs, *vector) -> product``.
        num_vector: Number of tensors of a vector.
    """

    root: fx.GraphModule
    graph: fx.Graph
    num_vector: int


def trace(
    product: Callable[..., Blocks], inputs: Sequence[Tensor], vector: Blocks
) -> TracedProduct:
    """Trace ``product(*inputs, *vector)``.

    Args:
        product: A pure function of tensors that may differentiate inside.
        inputs: What the residuals depend on.
        vector: A vector, one tensor per parameter.

    Raises:
        RuntimeError: If the function cannot be traced, for example because its control flow
            depends on values. torch raises other exceptions too.
    """
    zeros: Any = {_aten._efficientzerotensor.default: _zeros}
    arguments = [t.detach() for t in (*inputs, *vector)]
    # Fake tensors have shapes but no values, so control flow that depends on values fails
    # instead of being traced as it happened to go.
    graph_module = make_fx(product, zeros, "fake", _allow_non_fake_inputs=True)(*arguments)
    if any(_mutates(node) for node in graph_module.graph.nodes):
        graph_module = make_fx(
            functionalize(graph_module), tracing_mode="fake", _allow_non_fake_inputs=True
        )(*arguments)
        _forward_copies(graph_module.graph)
    graph = graph_module.graph
    merge_equal(graph)
    fold_zeros(graph)
    fix_factors(graph, len(vector))
    graph.eliminate_dead_code()
    return TracedProduct(graph_module, graph, len(vector))


def _zeros(
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    """Stand in for torch's zeros without storage, which crash when they are traced."""
    return torch.zeros(size, dtype=dtype, device=device)


def storage_bytes(tensors: Sequence[Any], shared: Sequence[Tensor] = ()) -> int:
    """Return the bytes of the storages of ``tensors``, each once, those of ``shared`` not."""
    held = {t.untyped_storage().data_ptr() for t in shared}
    sizes = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors
        if isinstance(t, Tensor) and t.layout is torch.strided
    }
    return sum(size for pointer, size in sizes.items() if pointer not in held)


def _forward_copies(graph: fx.Graph) -> None:
    """Replace what is left of an in-place write, copy(old, new), by the new value."""
    for node in list(graph.nodes):
        if node.target is not _aten.copy.default:
            continue
        value = node.args[1]
        old, new = (n.meta.get("tensor_meta") for n in node.args[:2])
        if old is None or new is None or (old.shape, old.dtype) != (new.shape, new.dtype):
            continue
        if new.memory_format != torch.contiguous_format:  # which allows every view
            with graph.inserting_before(node):
                layout: dict[str, Any] = {"memory_format": torch.contiguous_format}
                value = graph.call_function(_aten.clone.default, (value,), layout)
                value.meta = dict(node.meta)
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def split(traced: TracedProduct, lean: bool = False) -> SplitProduct:
    """Cut a traced product at the vector.

    Args:
        traced: The product.
        lean: Recompute cheap operations of other residuals in every product instead of
            keeping their results: less memory.
    """
    root, graph, num_vector = traced.root, traced.graph, traced.num_vector
    nodes = list(graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    output = next(n for n in nodes if n.op == "output")
    inputs, vector = placeholders[:-num_vector], placeholders[-num_vector:]
    tangent = depending(graph, num_vector)
    crossing = [
        n
        for n in nodes
        if n not in tangent
        and n.op not in ("output", "get_attr")
        and any(user in tangent or user is output for user in n.users)
    ]
    recomputed: set[fx.Node] = set()
    if lean:
        crossing, recomputed = _move_cut(crossing)

    primal, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        env[node] = primal.placeholder(node.name)
    for node in nodes:
        if node not in tangent and node.op in ("call_function", "get_attr"):
            env[node] = primal.node_copy(node, lambda n: env[n])
    primal.output([env[n] for n in crossing])
    primal.eliminate_dead_code()

    after, env = fx.Graph(), {}
    for node in (*crossing, *vector):
        env[node] = after.placeholder(node.name)
        env[node].meta = dict(node.meta)
    for node in nodes:
        moved = node in tangent or node in recomputed or node.op == "get_attr"
        if moved and node.op != "placeholder":
            env[node] = after.node_copy(node, lambda n: env[n])
    after.output(fx.node.map_arg(output.args[0], lambda n: env[n]))
    after.eliminate_dead_code()
    constant = not any(user in tangent for node in vector for user in node.users)
    block = _Block(fx.GraphModule(root, after), len(crossing))
    fused = fx.Graph()
    fused.output(fused.graph_copy(after, {}))
    fuse(fused)
    return SplitProduct(fx.GraphModule(root, primal), fx.GraphModule(root, fused), block, constant)


class _Block:
    """A tangent graph for vectors stacked on a leading axis.

    The second call with a width traces the vectorised graph, which is then fused like the
    graph of one vector; the first may be a remainder that never comes again.
    """

    def __init__(self, one: fx.GraphModule, num_fixed: int) -> None:
        num_vector = len(one.graph.find_nodes(op="placeholder")) - num_fixed
        self._vectorised: Callable[..., Sequence[Tensor]] = vmap(
            one, in_dims=(None,) * num_fixed + (0,) * num_vector
        )
        self._traced: dict[int, Callable[..., Sequence[Tensor]] | None] = {}

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        width = len(tensors[-1])
        if width not in self._traced:
            self._traced[width] = None
            return self._vectorised(*tensors)
        traced = self._traced[width]
        if traced is None:
            traced = self._traced[width] = self._trace(tensors)
        return traced(*tensors)

    def _trace(self, tensors: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        try:
            module = make_fx(self._vectorised, tracing_mode="fake", _allow_non_fake_inputs=True)(
                *tensors
            )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return self._vectorised
        merge_equal(module.graph)
        fuse(module.graph)
        return fx.GraphModule(module, module.graph)


def _move_cut(crossing: list[fx.Node]) -> tuple[list[fx.Node], set[fx.Node]]:
    """Replace residuals by cheaper ones they can be recomputed from, where that saves memory."""
    kept, recomputed = set(crossing), set[fx.Node]()
    for node in sorted(crossing, key=_node_bytes, reverse=True):
        sources, path = _sources(node, kept - {node})
        added = [n for n in sources if n not in kept]
        if path and sum(map(_node_bytes, added)) < _node_bytes(node):
            kept = (kept - {node}) | set(added)
            recomputed |= path
    order = {n: i for i, n in enumerate(crossing[0].graph.nodes)} if crossing else {}
    return sorted(kept, key=order.__getitem__), recomputed - kept


def _sources(node: fx.Node, kept: set[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return what a node can be cheaply recomputed from, and the nodes on the way."""
    packet = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or (packet not in _POINTWISE and packet not in VIEWS):
        return {node}, set()
    sources, path = set[fx.Node](), {node}
    for source in node.all_input_nodes:
        if source in kept:
            sources.add(source)
            continue
        further, way = _sources(source, kept)
        sources |= further
        path |= way
    return sources, path


def _node_bytes(node: fx.Node) -> int:
    """Return the bytes that keeping a node's value costs; inputs and their views cost none."""
    base = node
    while base.op == "call_function":
        packet = getattr(base.target, "overloadpacket", None)
        if packet not in VIEWS or not base.all_input_nodes:
            break
        base = base.all_input_nodes[0]
    if base.op != "call_function":
        return 0
    meta = base.meta.get("tensor_meta")
    shape, dtype = getattr(meta, "shape", None), getattr(meta, "dtype", None)
    if shape is None or dtype is None:
        return 0
    return int(torch.Size(shape).numel()) * int(dtype.itemsize)
