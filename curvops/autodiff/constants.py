"""Notice what a model holds constant in ways that torch's forward mode does not respect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvops.nesting import tensors_of

_data: Any = Tensor.data
_DATA = _data.__get__
_WITHOUT_TANGENT = {
    torch.detach, torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like,
    torch.rand_like, torch.randn_like, Tensor.detach, Tensor.new_zeros, Tensor.new_ones,
    Tensor.new_empty, Tensor.new_full,
}  # fmt: skip
"""Functions that forward mode does not go through either."""


class ConstantParts(TorchFunctionMode):
    """Notes, while it is active, whether a derivative was cut off by anything but ``detach``.

    Tangents pass ``torch.no_grad`` and ``Tensor.data``. Masks, positions and shapes that are
    computed there have none, and are not noted.

    Attributes:
        found: Whether it was.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> with ConstantParts() as parts, torch.no_grad():
        ...     mask = x > 0
        >>> parts.found
        False
        >>> with parts, torch.no_grad():
        ...     gate = x.exp()
        >>> parts.found
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one call, and look at what goes in and out."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.found and (not torch.is_grad_enabled() or func == _DATA):
            self.found = (
                func not in _WITHOUT_TANGENT
                and any(_is_smooth(t) for t in tensors_of(result))
                and any(t.requires_grad for t in tensors_of((args, kwargs)))
            )
        return result


def _is_smooth(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()
