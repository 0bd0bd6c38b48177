"""What the layers of a model see in one mini-batch: their inputs, and gradients of their outputs.

For a layer z = W a + b, everything about the parameters' gradients is in its inputs a and in the
gradients with respect to z. Every call of a layer is collected: modules that are called several
times and tied weights have several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from curvops.autodiff.model import FunctionalModel
from curvops.errors import explained

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROUNDING = 1e3
"""Times the machine precision that sums over a batch in two orders may differ."""


@dataclass(frozen=True)
class Layer:
    """A linear map with parameters that vary.

    Attributes:
        module: An ``nn.Linear`` or ``nn.Conv1d/2d/3d``.
        weight: Index of its weight among the parameters that vary, or ``None``.
        bias: Index of its bias among them, or ``None``.
    """

    module: nn.Module
    weight: int | None
    bias: int | None


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        layer: The layer.
        input: What it was called with, detached.
        output: Where the gradient with respect to its output passes.
        before: Where that with respect to its input does, or ``None`` if there is none.
    """

    layer: Layer
    input: Tensor
    output: GradientEdge
    before: GradientEdge | None


def supported_layers(model: FunctionalModel) -> list[Layer] | None:
    """Return the layers that hold the parameters that vary.

    Returns:
        The layers; ``None`` if the model is a callable, or if a parameter that varies belongs to
        anything else than the weights and biases of linear and convolution layers.
    """
    if model.module is None or any(hasattr(m, "_orig_mod") for m in model.module.modules()):
        return None  # hooks in compiled modules would be compiled too
    index = {name: i for i, name in enumerate(model.names)}
    layers: list[Layer] = []
    for module, names in model.places():
        if not _is_supported(module) or not names.keys() <= {"weight", "bias"}:
            return None
        at = {key: index[name] for key, name in names.items()}
        layers.append(Layer(module, at.get("weight"), at.get("bias")))
    found = {i for layer in layers for i in (layer.weight, layer.bias)}
    return layers if found >= set(index.values()) else None


def _is_supported(module: nn.Module) -> bool:
    """Whether calling the module is the linear map it is named after."""
    if "forward" in vars(module):
        return False
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return any(
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and type(module)._conv_forward is kind._conv_forward
        for kind in CONVOLUTIONS
    )


def pad_widths(module: Any) -> list[int]:
    """Return what is padded before and after each axis, the last one first, as F.pad has it."""
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        widths = [(t // 2, t - t // 2) for t in total]
    else:
        widths = [(p, p) for p in module.padding]
    return [width for pair in reversed(widths) for width in pair]


@contextmanager
def collecting(layers: Sequence[Layer]) -> Iterator[list[Call]]:
    """Collect the calls of layers, in their order, while the context is open.

    Calls without a gradient (under ``no_grad``) are left out. The hooks see what the layer
    itself got and returned, before and after hooks of the user, and are removed in the end.
    """
    calls: list[Call] = []

    def hook_of(layer: Layer) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor:
            if not output.requires_grad:
                return output
            if output._is_view():  # writing to a view in place would unhinge its edge
                output = output.clone()
            a = args[0] if args else kwargs["input"]
            before = get_gradient_edge(a) if a.requires_grad else None
            calls.append(Call(layer, a.detach(), get_gradient_edge(output), before))
            return output

        return hook

    with ExitStack() as stack:
        for layer in layers:
            # First of all hooks: those of the user may replace the output.
            handle = layer.module.register_forward_hook(
                hook_of(layer), prepend=True, with_kwargs=True
            )
            stack.callback(handle.remove)
        yield calls


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


def output_gradients(prediction: Tensor, calls: Sequence[Call], u: Tensor) -> list[Tensor | None]:
    """Return ∂⟨u, f⟩/∂z for the output z of every call: one backward pass.

    No gradient of a parameter is computed on the way.

    Args:
        prediction: f, attached to its graph, which is retained.
        calls: The calls that were collected while f was computed.
        u: A cotangent of the prediction's shape.

    Returns:
        Tensors of the outputs' shapes; ``None`` for outputs that f does not depend on.
    """
    if not calls:
        return []
    edges = [call.output for call in calls]
    with explained("differentiating the model"):
        return list(
            torch.autograd.grad(
                [prediction],
                edges,
                [u.to(prediction.dtype)],
                retain_graph=True,
                allow_unused=True,
            )
        )


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
