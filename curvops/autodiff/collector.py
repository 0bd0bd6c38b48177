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
