"""Refuse custom functions that only have a first derivative.

torch differentiates an ``autograd.Function`` whose backward is ``@once_differentiable`` twice
without complaint where it is not on the way, and the answer is zero: a Hessian and a GGN that
are silently wrong. Such functions can be told from the graph of a prediction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvops.errors import DifferentiationError


def refuse_once_differentiable(prediction: Tensor) -> None:
    """Raise an error if the graph of a prediction holds a once-differentiable function.

    Raises:
        DifferentiationError: Naming the function.
    """
    waiting: list[Any] = [prediction.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        if function is not None and _is_once_differentiable(function.backward):
            raise DifferentiationError(
                f"{function.__name__} has only a first derivative: its backward is marked "
                "@once_differentiable. Write the backward with differentiable operations and "
                "take the mark off, or leave the function out."
            )
        waiting += [following for following, _ in node.next_functions]


def _is_once_differentiable(backward: Any) -> bool:
    wrapper = getattr(backward, "__code__", None)
    reference = torch.autograd.function.once_differentiable(lambda ctx: None)
    return wrapper is not None and wrapper is reference.__code__
