"""Take the zeros out of a traced product.

Forward differentiation gives tangents to everything, also to what does not move, such as the
data: matrices of zeros that would be multiplied, kept and added in every product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten

VIEWS = {
    _aten.view, _aten._unsafe_view, _aten.t, _aten.transpose, _aten.permute, _aten.expand,
    _aten.unsqueeze, _aten.squeeze, _aten.slice, _aten.select, _aten.detach, _aten.alias,
    _aten.as_strided, _aten.split, _aten.unbind, _aten.reshape,
}  # fmt: skip
"""Operations whose result shares the storage of their first argument."""

_ZEROS = {_aten.zeros, _aten.zeros_like, _aten.new_zeros, _aten._efficientzerotensor}
_LINEAR = VIEWS | {_aten.neg, _aten.sum, _aten._to_copy, _aten.clone, _aten.div, _aten.mean}
_BILINEAR = {_aten.mul, _aten.mm, _aten.bmm, _aten.mv, _aten.dot}
_SUMS = {_aten.add, _aten.sub}


def fold_zeros(graph: fx.Graph) -> None:
    """Replace sums with zero by their other term, wherever zero is known from the graph."""
    zeros: set[fx.Node] = set()
    for node in list(graph.nodes):
        packet = getattr(node.target, "overloadpacket", None)
        if packet in _ZEROS:
            zeros.add(node)
        elif packet in _LINEAR:
            if node.args[0] in zeros:
                zeros.add(node)
        elif packet in _BILINEAR:
            if any(argument in zeros for argument in node.args[:2]):
                zeros.add(node)
        elif packet is _aten.convolution:
            if node.args[2] is None and any(argument in zeros for argument in node.args[:2]):
                zeros.add(node)
        elif packet in _SUMS and len(node.args) == 2:
            _fold_sum(node, packet, zeros)


def _fold_sum(node: fx.Node, packet: object, zeros: set[fx.Node]) -> None:
    a, b = node.args
    if a in zeros and b in zeros:
        zeros.add(node)
        return
    other = a if b in zeros else b if a in zeros else None
    if not isinstance(other, fx.Node) or node.kwargs.get("alpha", 1) != 1:
        return
    ours, theirs = node.meta.get("tensor_meta"), other.meta.get("tensor_meta")
    if ours is None or theirs is None:
        return
    if ours.dtype != theirs.dtype:
        return
    if ours.stride != theirs.stride and ours.memory_format != torch.contiguous_format:
        return
    with node.graph.inserting_before(node):
        if other is b and packet is _aten.sub:
            other = node.graph.call_function(_aten.neg.default, (b,))
        if ours.shape != theirs.shape:
            other = node.graph.call_function(_aten.expand.default, (other, list(ours.shape)))
        if ours.stride != theirs.stride:  # views further on may rely on the sum's
            layout: dict[str, Any] = {"memory_format": torch.contiguous_format}
            other = node.graph.call_function(_aten.clone.default, (other,), layout)
    if other not in (a, b):
        other.meta = dict(node.meta)
    node.replace_all_uses_with(other)
