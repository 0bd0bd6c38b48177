"""Whether the calls of layers are all that parameters do, each datum for itself.

What the layers' form of a Fisher matrix takes for granted is verified here: by the structure of a
prediction's graph, and by gradients at parameters away from zero, where nothing hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from curvops.autodiff.batch_maps import TRACE_ERRORS
from curvops.autodiff.collector import Call, Layer, collecting, output_gradients
from curvops.autodiff.linearization import Linearization
from curvops.autodiff.memory import is_out_of_memory
from curvops.autodiff.model import FunctionalModel
from curvops.autodiff.parameters import moved

ROUNDING = 1e3
"""Times the machine precision that sums over a batch in two orders may differ."""


def passes_only(prediction: Tensor, calls: Sequence[Call], params: Sequence[Tensor]) -> bool:
    """Whether every way from the parameters to the prediction leads through the calls.

    Read off the graph: ways along which a derivative happens to be zero count too.
    """
    ends = {get_gradient_edge(p).node for p in params}
    before = {call.output.node: call.before for call in calls}
    waiting: list[Any] = [prediction.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        if node in ends:
            return False
        seen.add(node)
        if node in before:
            edge = before[node]
            waiting.append(None if edge is None else edge.node)
        else:
            waiting += [following for following, _ in node.next_functions]
    return True


def is_separate_nearby(model: FunctionalModel, layers: Sequence[Layer], lin: Linearization) -> bool:
    """Check at other parameters, since a head that starts at zero hides what is below it."""
    away = [p.requires_grad_() for p in moved(lin.params)]
    for params in (away, lin.params):  # those at hand where the model is not made for others
        with model.at(dict(zip(model.names, params, strict=True))) as predict:
            try:
                with collecting(layers) as calls:
                    f = Linearization(predict, None, params, lin.batch).prediction
            except TRACE_ERRORS as error:
                if is_out_of_memory(error) or params is lin.params:
                    raise
                continue
            if f.requires_grad and f.isfinite().all():
                return passes_only(f, calls, params) and are_separate(f, calls)
    return False


def random_cotangent(prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Return s of the prediction's shape and a weight c_n for every datum."""
    g = torch.Generator().manual_seed(0)  # any numbers will do: equality holds for all or none
    s = torch.randn(prediction.shape, generator=g, dtype=torch.float64).to(prediction)
    c = 0.5 + torch.rand(len(prediction), generator=g, dtype=torch.float64).to(prediction)
    return s, c


def are_separate(prediction: Tensor, calls: Sequence[Call]) -> bool:
    """Whether the outputs of layers act on the predictions of their own data alone.

    No sum over data is taken, so that rounding is small and no layer drowns in another.
    """
    s, c = random_cotangent(prediction)
    plain = output_gradients(prediction, calls, s)
    weighted = output_gradients(prediction, calls, _times(c, s))
    eps = ROUNDING * torch.finfo(prediction.dtype).eps
    for G, H in zip(plain, weighted, strict=True):
        if G is None or H is None:
            continue
        if not is_plain(G, prediction, len(c)):
            return False
        if not (H - _times(c, G)).norm() <= eps * H.norm():
            return False
    return True


def _times(c: Tensor, x: Tensor) -> Tensor:
    return c.reshape(-1, *[1] * (x.ndim - 1)) * x


def is_plain(t: Tensor, like: Tensor, N: int) -> bool:
    """Whether a tensor is a dense one of the parameters' dtype with the data on its first axis."""
    if t.is_nested or t.layout is not torch.strided or t.dtype != like.dtype:
        return False
    return t.ndim > 1 and len(t) == N
