"""Merge the nodes of a traced graph that compute the same.

torch's own pass for this imports its whole compiler, a second and a half in every process.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten

_UNDEFINED = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty}
"""What two such calls return need not be the same."""


def merge_equal(graph: fx.Graph) -> None:
    """Let the first of equal calls stand for all of them, in place.

    Args:
        graph: A graph of calls without side effects; those that are random, or that write to
            their arguments, stay as they are.
    """
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _is_function(node.target):
            continue
        earlier = first.setdefault((node.target, _key(node.args), _key(node.kwargs)), node)
        if earlier is not node:
            node.replace_all_uses_with(earlier)
            graph.erase_node(node)


def _is_function(target: Any) -> bool:
    """Whether equal arguments give equal results, and nothing else happens."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, torch._ops.OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
        and target.overloadpacket not in _UNDEFINED
    )


def _key(argument: Any) -> Any:
    """Return something hashable that is equal for equal arguments only: 1, 1.0 and True differ."""
    if isinstance(argument, (list, tuple)):
        return tuple(map(_key, argument))
    if isinstance(argument, dict):
        return tuple((name, _key(value)) for name, value in argument.items())
    if isinstance(argument, slice):
        return (slice, _key((argument.start, argument.stop, argument.step)))
    if isinstance(argument, (int, float)):
        return (type(argument), repr(argument))
    return argument
