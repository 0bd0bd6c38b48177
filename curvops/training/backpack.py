"""Individual gradients out of the user's own backward pass, by BackPACK.

While a block of the monitor is open, the layers that hold parameters are extended, and BackPACK's
``BatchGrad`` runs in the user's ``loss.backward()``. Linear and convolutional layers and embeddings
answer with their inputs and output gradients instead of a matrix ``[B, P]``; individual gradients
of other layers are kept only where that is smaller, and otherwise used up on the spot. When the
block closes, every hook is gone.

``backward`` divides by the batch size, by the number of accumulated batches, multiplies by the
scale of mixed precision, ...: whatever it is, it is seen at the prediction, where the user's
gradient is that of the loss times a number, and undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from backpack import backpack, hook_run_extensions, hook_store_io, memory_cleanup
from backpack.extensions import BatchGrad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn

from curvops.training.collected import FromLayers
from curvops.training.individual import Blocks, Individual
from curvops.training.layers import (
    ConvLayer,
    EmbeddingLayer,
    KeptLayer,
    Layer,
    LinearLayer,
    ReducedLayer,
    Windows,
)

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BY_FACTORS = (nn.Linear, *_CONV, nn.Embedding)
_BY_BATCH_GRAD = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.RNN,
    nn.LSTM,
)

_NAMES = {"weight", "bias", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
"""Parameters that these layers have; others come with what recomputes them, such as pruning."""

_PARALLEL = {torch.float32: 1e-4, torch.float64: 1e-8}
"""How far from parallel the user's gradient at the prediction may be (1 − cos²), by dtype."""


def unsupported(model: nn.Module, params: Sequence[nn.Parameter]) -> str | None:
    """Return why BackPACK cannot give a model's individual gradients; ``None`` if it can."""
    owners: dict[int, str] = {}
    trained = {id(p) for p in params}
    for name, module in model.named_modules():
        held = [p for p in module._parameters.values() if p is not None and id(p) in trained]
        for p in held:
            if id(p) in owners:
                return f"{owners[id(p)]!r} and {name!r} share a parameter"
            owners[id(p)] = name
        reason = _unsupported_layer(module) if held else None
        if reason is not None:
            return f"{name or type(model).__name__!r} {reason}"
    return None if trained <= set(owners) else "a parameter belongs to none of the model's layers"


def _unsupported_layer(module: nn.Module) -> str | None:
    """Return why a layer that holds parameters is not supported; ``None`` if it is."""
    kind = type(module)  # a subclass may do anything
    if kind not in _BY_FACTORS + _BY_BATCH_GRAD:
        return f"is {kind.__name__}, which BackPACK does not know"
    others = module._parameters.keys() - _NAMES
    if others:
        return f"has {min(others)!r}, a parameter that {kind.__name__} does not have by itself"
    if isinstance(module, _CONV) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return f"pads by {module.padding_mode!r}, {module.padding!r}"
    if isinstance(module, nn.Embedding) and (
        module.padding_idx is not None
        or module.max_norm is not None
        or module.scale_grad_by_freq
        or module.sparse
    ):
        return "is an Embedding with padding_idx, max_norm, scale_grad_by_freq or sparse"
    if isinstance(module, (nn.RNN, nn.LSTM)) and (
        module.num_layers > 1
        or module.bidirectional
        or not module.batch_first
        or not module.bias
        or bool(getattr(module, "proj_size", 0))
        or getattr(module, "nonlinearity", "tanh") != "tanh"
    ):
        return f"is {kind.__name__} in a form that BackPACK does not know"
    return None


class Collector:
    """Runs BackPACK in a backward pass and collects what the layers say.

    Args:
        model: The module.
        params: Its trained parameters, in order.

    Attributes:
        layers: What was collected.
        prediction: The model's output, detached.
        version: The output's version counter then.
        slope: The gradient, with respect to it, of what was differentiated.
        trouble: Why what was collected cannot be used; ``None`` if it can.
    """

    def __init__(self, model: nn.Module, params: Sequence[nn.Parameter]) -> None:
        self._model = model
        self._num_params = len(params)
        position = {id(p): i for i, p in enumerate(params)}
        self._places: dict[nn.Module, dict[str, int]] = {}
        for module in model.modules():
            held = {
                name: position[id(p)]
                for name, p in module._parameters.items()
                if p is not None and id(p) in position
            }
            if held:
                self._places[module] = held
        self._extension = _Guarded(self)
        self._hooks: list[Any] = []
        self._windows = Windows()
        self._directions: Sequence[Blocks] = ()
        self._reset()

    def _reset(self) -> None:
        self.layers: list[Layer] = []
        self.prediction: Tensor | None = None
        self.version = 0
        self.slope: Tensor | None = None
        self.trouble: str | None = None
        self._size = 0
        self._calls = dict.fromkeys(self._places, 0)
        self._seen = dict.fromkeys(self._places, 0)
        self._mine = {m for m in self._places if not getattr(m, "_backpack_extend", False)}

    def clear(self) -> None:
        """Let go of what was collected."""
        self._reset()

    def begin(self, size: int, directions: Sequence[Blocks] = ()) -> None:
        """Collect in the passes from here to :meth:`end`.

        Args:
            size: Number of data B.
            directions: d, whose products with individual gradients will be asked for.
        """
        self._reset()
        self._size, self._directions = size, directions
        self._hooks = [m.register_forward_hook(self._see_output) for m in self._places]
        self._hooks.append(self._model.register_forward_hook(self._see_prediction))
        self._context = backpack(self._extension, extension_hook=self._take)
        self._context.__enter__()

    def end(self) -> None:
        """Stop collecting, and leave the model as it was."""
        self._context.__exit__(None, None, None)
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._directions = [], ()
        for module in self._mine:
            memory_cleanup(module)
        missing = [m for m, times in self._seen.items() if times == 0]
        if self.prediction is not None and self.prediction._version != self.version:
            self.prediction, self.trouble = None, "the model's output was written to"
        if self.trouble is None and self.slope is None:
            self.trouble = "no backward pass went through the model's output"
        elif self.trouble is None and missing:
            name = type(missing[0]).__name__
            self.trouble = f"a layer ({name}) took no part in the backward pass"

    def collected(
        self,
        slopes: Tensor,
        totals: Tensor,
        z: float,
        again: Callable[[Mapping[str, Tensor] | None], Individual],
    ) -> Individual | str:
        """Return what the block collected, in units of the un-normalised loss; or why not.

        Args:
            slopes: The gradient of the un-normalised loss by the prediction.
            totals: The loss of each datum, ``[B]``.
            z: The normaliser of the mini-batch.
            again: Makes the same from the data, at other parameters or (``None``) at these.
        """
        if self.trouble is not None:
            return self.trouble
        assert self.slope is not None
        factor = _ratio(self.slope, slopes)
        if isinstance(factor, str):
            return factor
        layers, self.layers = self.layers, []
        return FromLayers(layers, self._num_params, 1.0 / factor, totals, z, again)

    # ------------------------------------------------------------------ hooks

    def _see_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Do what ``backpack.extend`` lets a layer do in the forward pass (a forward hook).

        The backward hook sits on the output tensor: torch's hooks on modules do not allow that an
        activation works in place, and warn about inputs without gradient in the user's backward.
        """
        if not torch.is_grad_enabled():
            return
        self._calls[module] += 1
        if self._calls[module] > 1:
            self.trouble = f"a layer ({type(module).__name__}) is called more than once"
        if module in self._mine:  # the others were extended by the user
            hook_store_io(module, inputs, output)
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.requires_grad:
                first.register_hook(partial(_run_extensions, module))

    def _see_prediction(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if self.prediction is not None:
            self.trouble = "the model is called more than once"
        elif not isinstance(output, Tensor):
            self.trouble = f"the model returns {type(output).__name__}, not a tensor"
        elif output.requires_grad:
            self.prediction, self.version = output.detach(), output._version
            output.register_hook(self._see_slope)

    def _see_slope(self, gradient: Tensor) -> None:
        if self.slope is not None:
            self.trouble = "more than one backward pass went through the prediction"
        self.slope = gradient.detach()

    def factors(self, module: nn.Module, delta: Tensor | None) -> None:
        """Take the input and output gradient of a layer whose gradients are products of them."""
        if self._refused(module):
            return
        x: Any = module.input0
        if delta is None or len(x) != self._size or len(delta) != self._size:
            self.trouble = f"a layer ({type(module).__name__}) has the data on another axis"
            return
        places, delta = self._places[module], _at_least_float32(delta.detach())
        layer: Layer
        if isinstance(module, nn.Embedding):
            layer = EmbeddingLayer(places, x, delta, module.num_embeddings)
        elif isinstance(module, nn.Linear):
            layer = LinearLayer(places, _at_least_float32(x.detach()), delta)
        else:
            a = _at_least_float32(x.detach())
            layer = ConvLayer(places, module, a, delta, self._windows)
            weights = sum(p.numel() for p in module.parameters())
            if self._size * weights <= x.numel() + delta.numel():
                layer = KeptLayer(layer.gradients())
        self.layers.append(layer)

    def _take(self, module: nn.Module) -> None:
        """Take what BatchGrad has left on the parameters of other layers (the extension hook)."""
        if module not in self._places or isinstance(module, _BY_FACTORS):
            return
        found = {}
        for name, place in self._places[module].items():
            param = getattr(module, name)
            if hasattr(param, _Guarded.FIELD):
                found[place] = getattr(param, _Guarded.FIELD).detach()
                delattr(param, _Guarded.FIELD)
        if self.trouble is not None or self._refused(module):
            return
        if len(found) != len(self._places[module]):
            self.trouble = f"BackPACK gave nothing for a layer ({type(module).__name__})"
            return
        found = {place: _at_least_float32(G) for place, G in found.items()}
        passed: list[Any] = [module.input0, module.output]
        small = sum(G.numel() for G in found.values()) <= sum(t.numel() for t in passed)
        self.layers.append(KeptLayer(found) if small else ReducedLayer(found, self._directions))

    def _refused(self, module: nn.Module) -> bool:
        self._seen[module] += 1
        if self._seen[module] > 1:
            self.trouble = f"a layer ({type(module).__name__}) is differentiated more than once"
        return self.trouble is not None


class _Guarded(BatchGrad):  # type: ignore[misc]  # BackPACK has no types
    """BatchGrad that never lets an error of its own out into the user's backward pass."""

    FIELD = "grad_batch"

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector
        for kind in _BY_FACTORS:
            self.set_module_extension(kind, _Factors(collector), overwrite=True)

    def __call__(self, module: nn.Module, g_inp: Any, g_out: Any) -> None:
        """Run on one module, unless it is known already that nothing will come of it."""
        if self._collector.trouble is not None or module not in self._collector._places:
            return
        try:
            super().__call__(module, g_inp, g_out)
        except Exception as error:
            told = str(error).strip().splitlines() or [""]
            self._collector.trouble = f"{type(module).__name__}: {type(error).__name__}: {told[0]}"


class _Factors(FirstOrderModuleExtension):  # type: ignore[misc]  # likewise
    """In place of BatchGrad's way for a layer: hand over the factors."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector

    def __call__(self, extension: Any, module: nn.Module, g_inp: Any, g_out: Any) -> None:
        """Hand over the input and the output gradient."""
        self._collector.factors(module, g_out[0])


def _run_extensions(module: nn.Module, gradient: Tensor) -> None:
    """Let BackPACK run on a layer whose output gradient is there (a hook on the output)."""
    hook_run_extensions(module, (None,), (gradient,))


def _ratio(slope: Tensor, own: Tensor) -> float | str:
    """Return c where ``slope = c own``; or why there is none."""
    if slope.shape != own.shape:
        return "what was differentiated has another shape than the prediction"
    # numpy's calls cost a tenth of torch's, and predictions are small.
    a, b = (x.to(torch.float64).numpy(force=True).ravel() for x in (slope, own))
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges
        ab, aa, bb = float(a @ b), float(a @ a), float(b @ b)
    if not all(map(math.isfinite, (ab, aa, bb))):
        return "the gradient at the prediction is not finite"
    if aa == 0.0 and bb == 0.0:
        return 1.0
    tolerance = max(_PARALLEL.get(x.dtype, 1e-2) for x in (slope, own))
    if aa == 0.0 or bb == 0.0 or ab * ab < (1.0 - tolerance) * aa * bb:
        return "what was differentiated is not loss_func(model(X), y), nor a multiple of it"
    return ab / bb


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
