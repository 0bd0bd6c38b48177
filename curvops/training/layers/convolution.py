"""Convolutions: linear layers of their unfolded input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from curvops.training.individual import Blocks, Rows
from curvops.training.layers.base import CHUNK_NUMEL, Layer, Moments, moments_of, row_dot

_WINDOWS_NUMEL = 1 << 19
"""Numbers of unfolded windows at a time: 2 MiB of float32."""


_SHAPES = 32
"""Shapes of windows for which tensors are kept."""


class ConvLayer(Layer):
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` with padding by zeros.

    Args:
        places: Positions of ``"weight"`` and ``"bias"``, those that are trained.
        module: The layer, for its kernel, stride, padding, dilation and groups.
        inputs: x, ``[B, in, *]``.
        outputs: δ, ``[B, out, *]``.
        windows: Where windows are unfolded to, shared among layers and steps.
    """

    def __init__(
        self,
        places: Mapping[str, int],
        module: nn.Module,
        inputs: Tensor,
        outputs: Tensor,
        windows: Windows | None = None,
    ) -> None:
        self.places, self._module = places, module
        self._windows = windows or Windows()
        self.x, self.delta = inputs, outputs

    @property
    def versions(self) -> tuple[int, ...]:
        return self.x._version, self.delta._version

    def project(self, direction: Blocks) -> Tensor:
        total = self._of_bias(lambda b, i: b @ direction[i].to(b.dtype))
        if "weight" not in self.places:
            return total
        moved = _convolve(self._module, self.x, direction[self.places["weight"]])
        return total + row_dot(moved, self.delta)

    def noise(self) -> tuple[Tensor, Tensor]:
        norms = self._of_bias(lambda b, i: row_dot(b, b))
        sums = {i: b.sum(0) for i, b in self._bias_gradients().items()}
        if "weight" in self.places:
            parts = [(row_dot(G, G), G.sum(0)) for G in self._weight_gradients()]
            norms = norms + torch.cat([of_datum for of_datum, _ in parts])
            sums[self.places["weight"]] = torch.stack([total for _, total in parts]).sum(0)
        return norms, self.project_on(sums)

    def sums(self) -> dict[int, Tensor]:
        found = {i: b.sum(0) for i, b in self._bias_gradients().items()}
        if "weight" in self.places:
            parts = [G.sum(0) for G in self._weight_gradients()]
            found[self.places["weight"]] = torch.stack(parts).sum(0)
        return found

    def moments(self, rows: Rows) -> dict[int, Moments]:
        found = {i: moments_of(b, rows[i]) for i, b in self._bias_gradients().items()}
        if "weight" in self.places:
            place = self.places["weight"]
            parts = zip(*(moments_of(G, rows[place]) for G in self._weight_gradients()))
            first, second = (torch.stack(part).sum(0) for part in parts)
            found[place] = first, second
        return found

    def gradients(self) -> dict[int, Tensor]:
        """Return the individual gradients ``[B, *shape]`` themselves, by place."""
        found = self._bias_gradients()
        if "weight" in self.places:
            chunks = list(self._weight_gradients())
            found[self.places["weight"]] = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
        return found

    def _bias_gradients(self) -> dict[int, Tensor]:
        return {self.places["bias"]: self._summed()} if "bias" in self.places else {}

    def _summed(self) -> Tensor:
        """Return the gradients of the bias ``[B, out]``."""
        return self.delta.flatten(2).sum(2)  # three times as fast as a sum over several axes

    def _weight_gradients(self) -> Iterator[Tensor]:
        """Yield G_n in chunks ``[b, *weight.shape]``."""
        weight: Any = self._module.weight
        chunk = max(1, CHUNK_NUMEL // max(1, weight.numel()))
        for x, delta in zip(self.x.split(chunk), self.delta.split(chunk), strict=True):
            yield self._of_chunk(x, delta).reshape(len(x), *weight.shape)

    def _of_chunk(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return G_n of some data, as ``[b, *weight.shape]`` or with axes merged."""
        weight: Any = self._module.weight
        groups: int = self._module.groups  # type: ignore[assignment]
        if _blocked(x, weight, groups):
            return _by_groups(self._module, x, delta)
        # Windows are unfolded for a few data at a time, as many as stay in the cache.
        outputs, inputs = weight.shape[0] // groups, weight[0].numel()
        turned = inputs < outputs  # products are faster, up to twice, with their longer side last
        shape = (inputs, outputs) if turned else (outputs, inputs)
        found = x.new_empty(len(x) * groups, *shape)
        few = max(1, _WINDOWS_NUMEL // max(1, x[0].numel() * weight[0, 0].numel()))
        parts = zip(x.split(few), delta.split(few), found.split(few * groups), strict=True)
        for some, of_some, into in parts:
            a = rearrange(self._windows(self._module, some), "b (g i) t -> (b g) i t", g=groups)
            d = rearrange(of_some, "b (g o) ... -> (b g) o (...)", g=groups)
            left, right = (a, d) if turned else (d, a)
            torch.bmm(left, right.mT, out=into)
        return found.mT if turned else found

    def _of_bias(self, measure: Callable[[Tensor, int], Tensor]) -> Tensor:
        if "bias" not in self.places:
            return self.delta.new_zeros(len(self.delta))
        return measure(self._summed(), self.places["bias"])


_CONVOLUTIONS: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def _blocked(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Tell whether oneDNN's kernels, which hold eight channels at a time, beat a product.

    Measured on two cores: two to three times faster for 8 to 64 channels, nine times for one a
    group, two times slower for 3 channels.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    in_eights = outputs % 8 == 0 and inputs % 8 == 0
    is_depthwise = groups > 1 and outputs == inputs == 1
    return torch.backends.mkldnn.is_available() and (in_eights or is_depthwise)


def _by_groups(module: Any, x: Tensor, delta: Tensor) -> Tensor:
    """Return G_n as the weight's gradient of one convolution that has a group for every datum."""
    size, weight = len(x), module.weight
    _, gradient, _ = torch.ops.aten.convolution_backward(
        delta.reshape(1, -1, *delta.shape[2:]), x.reshape(1, -1, *x.shape[2:]),
        x.new_empty(()).expand(size * weight.shape[0], *weight.shape[1:]), None,
        module.stride, module.padding, module.dilation, False, [0] * (x.ndim - 2),
        size * module.groups, [False, True, False],
    )  # fmt: skip
    return gradient  # type: ignore[no-any-return]  # torch.ops has no types


def _convolve(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = _CONVOLUTIONS[weight.ndim](
        x, weight.to(x.dtype), None, module.stride, module.padding, module.dilation, module.groups
    )
    return result


class Windows:
    """Unfolds the windows of a convolution's input, into tensors that are filled again and again.

    New ones of that size would cost more, in page faults, than what is written to them.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, module: Any, x: Tensor) -> Tensor:
        """Return the windows ``[b, in * kernel, positions]``, good until the next call."""
        key = (x.shape, x.dtype, x.device, *(
            getattr(module, name) for name in ("kernel_size", "padding", "stride", "dilation")
        ))  # fmt: skip
        inner = [slice(None), slice(None)]
        inner += [slice(p, p + n) for p, n in zip(module.padding, x.shape[2:], strict=True)]
        axes = len(module.kernel_size)
        if key not in self._tensors:
            padded = [n + 2 * p for n, p in zip(x.shape[2:], module.padding, strict=True)]
            self._tensors[key] = (x.new_zeros(*x.shape[:2], *padded), x.new_empty(0))
        framed, unfolded = self._tensors[key]
        framed[tuple(inner)].copy_(x)
        view = framed
        for i, (k, s, d) in enumerate(zip(module.kernel_size, module.stride, module.dilation)):
            view = view.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
        # [b, c, *positions, *kernel] to [b, c, *kernel, *positions]
        view = view.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
        if unfolded.shape != view.shape:
            unfolded = x.new_empty(view.shape)
            if len(self._tensors) > _SHAPES:  # images of ever new sizes
                self._tensors.clear()
            if unfolded.numel() <= _WINDOWS_NUMEL:
                self._tensors[key] = (framed, unfolded)
            else:
                self._tensors.pop(key)
        unfolded.copy_(view)
        return unfolded.flatten(2 + axes).flatten(1, 1 + axes)
