"""Make a traced graph cheaper without changing what it computes, up to rounding.

* What is linear in a vector and pointwise (the backward of an activation) becomes a
  multiplication with its slope, which does not depend on the vector and is kept; factors one
  after the other become one.
* A product that is only added to something accumulates into it: ``a + b @ c`` is one call.
* A fresh result that nobody else reads is overwritten instead of allocating another.
* Views that undo one another, and copies that copy nothing, disappear.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten

_SLOPES = {_aten.gelu_backward, _aten.silu_backward, _aten.tanh_backward, _aten.sigmoid_backward,
           _aten.elu_backward, _aten.softplus_backward, _aten.mish_backward,
           _aten.log_sigmoid_backward, _aten.leaky_relu_backward, _aten.hardtanh_backward,
           _aten.hardswish_backward, _aten.hardsigmoid_backward}  # fmt: skip
"""``f(g, *fixed)``, pointwise and linear in g."""

_FUSED: dict[Any, tuple[Any, Any]] = {
    _aten.mm.default: (_aten.addmm.default, _aten.addmm_.default),
    _aten.bmm.default: (_aten.baddbmm.default, _aten.baddbmm_.default),
    _aten.mul.Tensor: (_aten.addcmul.default, _aten.addcmul_.default),
}
"""A product, the call that adds it to a tensor, and the one that does so in place."""

_IN_PLACE = {
    _aten.add.Tensor: _aten.add_.Tensor,
    _aten.sub.Tensor: _aten.sub_.Tensor,
    _aten.mul.Tensor: _aten.mul_.Tensor,
    _aten.mul.Scalar: _aten.mul_.Scalar,
    _aten.div.Tensor: _aten.div_.Tensor,
    _aten.div.Scalar: _aten.div_.Scalar,
    _aten.neg.default: _aten.neg_.default,
}
_FRESH = {
    *_IN_PLACE,
    *_IN_PLACE.values(),
    *_FUSED,
    *(call for pair in _FUSED.values() for call in pair),
    _aten.convolution.default,
    _aten.sum.dim_IntList,
    _aten.clone.default,
}
"""Calls whose result has a storage of its own."""


def fix_factors(graph: fx.Graph, num_vector: int) -> None:
    """Move work off the path of the vector, which is walked in every product.

    ``backward(g, x)`` of an activation becomes ``g · backward(1, x)`` where x is fixed, and
    ``(g · a) · b`` becomes ``g · (a · b)``.

    Args:
        graph: A traced product, changed in place.
        num_vector: How many of its last inputs are the vector's.
    """
    _expose_slopes(graph, depending(graph, num_vector))
    _associate(graph, depending(graph, num_vector))
    graph.eliminate_dead_code()


def depending(graph: fx.Graph, num_vector: int) -> set[fx.Node]:
    """Return the nodes that depend on the vector, the last inputs, those included."""
    inputs = graph.find_nodes(op="placeholder")
    nodes = set(inputs[len(inputs) - num_vector :])
    for node in graph.nodes:
        if node.op == "call_function" and any(n in nodes for n in node.all_input_nodes):
            nodes.add(node)
    return nodes


def _expose_slopes(graph: fx.Graph, tangent: Set[fx.Node]) -> None:
    for node in list(graph.nodes):
        if getattr(node.target, "overloadpacket", None) not in _SLOPES:
            continue
        g, fixed = node.args[0], node.args[1:]
        if g not in tangent or any(a in tangent for a in fixed if isinstance(a, fx.Node)):
            continue
        with graph.inserting_before(node):
            x = next(a for a in fixed if isinstance(a, fx.Node))
            if _meta(x) is None or _meta(x).shape != _meta(node).shape:
                continue
            one = _call(graph, _aten.ones_like.default, (x,), x)
            slope = _call(graph, node.target, (one, *fixed), x, node.kwargs)
            product = _call(graph, _aten.mul.Tensor, (g, slope), node)
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def _associate(graph: fx.Graph, tangent: Set[fx.Node]) -> None:
    """Turn ``(g · a) · b`` into ``g · (a · b)``."""
    for node in list(graph.nodes):
        outer = _factors(node, tangent)
        inner = None if outer is None else _factors(outer[0], tangent)
        if outer is None or inner is None or len(outer[0].users) != 1:
            continue
        (between, b), (g, a) = outer, inner
        if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
            continue
        if _meta(between).shape != _meta(node).shape or _meta(g).dtype != _meta(node).dtype:
            continue
        first, second = (a, b) if isinstance(a, fx.Node) else (b, a)
        with graph.inserting_before(node):
            kind = _aten.mul.Tensor if isinstance(second, fx.Node) else _aten.mul.Scalar
            like = max((n for n in (a, b) if isinstance(n, fx.Node)), key=_size)
            if isinstance(second, fx.Node) and _meta(first).shape != _meta(second).shape:
                continue
            both = _call(graph, kind, (first, second), like)
            product = _call(graph, _aten.mul.Tensor, (g, both), node)
        node.replace_all_uses_with(product)
        tangent = tangent | {product}


def _factors(node: fx.Node, tangent: Set[fx.Node]) -> tuple[fx.Node, fx.Node | float] | None:
    """Return (g, a) of a node g · a where g depends on the vector and a does not."""
    factors: tuple[Any, ...] = node.args
    if node.target is _aten.neg.default:
        factors = (*factors, -1.0)
    elif node.target not in (_aten.mul.Tensor, _aten.mul.Scalar):
        return None
    g, a = factors
    if isinstance(a, fx.Node) and a in tangent:
        g, a = a, g
    if (
        _meta(node) is None
        or _meta(g) is None
        or g not in tangent
        or (isinstance(a, fx.Node) and a in tangent)
    ):
        return None
    if isinstance(a, fx.Node) and (_meta(a) is None or _meta(a).dtype != _meta(node).dtype):
        return None
    return g, a


def _size(node: fx.Node) -> int:
    return int(torch.Size(_meta(node).shape).numel())


def fuse(graph: fx.Graph) -> None:
    """Fuse additions, reuse memory and drop views that undo one another.

    Args:
        graph: A tangent graph, changed in place. It is then a sequence of calls with side effects
            on its own intermediate results, not to be traced again.
    """
    _drop_idle(graph)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target in (_aten.add.Tensor, _aten.sub.Tensor):
            _accumulate(graph, node)
    for node in list(graph.nodes):
        in_place = _IN_PLACE.get(node.target)
        if in_place is not None and _is_fresh(node.args[0], node):
            node.target = in_place
    graph.eliminate_dead_code()


def _drop_idle(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        packet = getattr(node.target, "overloadpacket", None)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        same: Any = None
        if packet in (_aten.detach, _aten.alias) or (
            packet in (_aten.expand, _aten.view) and _same_layout(node, source)
        ):
            same = source
        elif node.target is _aten.t.default and source.target is _aten.t.default:
            same = source.args[0]
        elif packet is _aten.clone and not node.kwargs and _is_fresh(source, node):
            same = source
        if isinstance(same, fx.Node):
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _accumulate(graph: fx.Graph, node: fx.Node) -> None:
    """Replace ``other ± product`` by one call, in place where ``other`` is not needed again."""
    if len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
        return
    a, b = node.args
    subtract = node.target is _aten.sub.Tensor
    # The later operand accumulates onto the earlier: what it reads is alive anyway.
    for product, other in ((b, a),) if subtract else ((b, a), (a, b)):
        if not (isinstance(product, fx.Node) and isinstance(other, fx.Node)):
            continue
        if product.target not in _FUSED or len(product.users) != 1 or product is other:
            continue
        if not _can_accumulate(node, product, other):
            continue
        call, in_place = _FUSED[product.target]
        scale = "value" if product.target is _aten.mul.Tensor else "alpha"
        with graph.inserting_before(node):
            target = in_place if _is_fresh(other, node) else call
            kwargs = {scale: -1} if subtract else {}
            fused = _call(graph, target, (other, *product.args), node, kwargs)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        graph.erase_node(product)
        return


def _can_accumulate(node: fx.Node, product: fx.Node, other: fx.Node) -> bool:
    metas = [_meta(n) for n in (node, product, other, *product.args)]
    if any(m is None for m in metas) or len({m.dtype for m in metas}) != 1:
        return False
    whole, part = metas[0], metas[1]
    if product.target is _aten.mul.Tensor:
        return _same_layout(other, node)
    return bool(whole.shape == part.shape and whole.stride == part.stride)


def _is_fresh(source: Any, user: fx.Node) -> bool:
    """Tell whether ``user`` may overwrite a tensor: it is the only one to read it, as it is."""
    return (
        isinstance(source, fx.Node)
        and source.target in _FRESH
        and list(source.users) == [user]
        and user.all_input_nodes.count(source) == 1
        and sum(a is source for a in user.args) == 1
        and _same_layout(source, user)
    )


def _same_layout(a: fx.Node, b: fx.Node) -> bool:
    ours, theirs = _meta(a), _meta(b)
    return (
        ours is not None
        and theirs is not None
        and (ours.shape, ours.stride, ours.dtype) == (theirs.shape, theirs.stride, theirs.dtype)
    )


def _meta(node: Any) -> Any:
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return meta if hasattr(meta, "shape") else None


def _call(
    graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node, kwargs: Any = None
) -> fx.Node:
    node = graph.call_function(target, args, dict(kwargs or {}))
    node.meta = dict(like.meta)
    return node
