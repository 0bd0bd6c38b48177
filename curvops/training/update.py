"""What an optimizer did: where the parameters were, and where they are now.

The step is what the parameters did, so that any optimizer, schedule, clipping or projection is
seen as it is. torch's optimizers also say when they step, which tells a step of length zero from
an accumulated gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvops.training.individual import Blocks


@dataclass(frozen=True)
class Update:
    """A step in parameter space.

    Attributes:
        step: Its number.
        blocks: d or a multiple of it, one tensor per parameter.
        length: ‖d‖.
        unit: ‖blocks‖: products with ``blocks`` are divided by it.
        start: Where it started, by name.
        now: Where it ended, by name; the parameters themselves, as long as they stay there.
    """

    step: int
    blocks: Blocks
    length: float
    unit: float
    start: Mapping[str, Tensor]
    now: Mapping[str, Tensor]


class Updates:
    """Watches the parameters between the backward passes.

    Args:
        params: The trained parameters, by name.
        optimizer: Anything; an optimizer of torch is asked to say when it steps.
        before_step: Called before every step of it, while the parameters are where they were.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        optimizer: Any,
        before_step: Callable[[], None],
    ) -> None:
        self._names, self._params = tuple(params), list(params.values())
        self._start: list[Tensor] | None = None
        self._blocks: list[Tensor] | None = None
        self._steps = 0
        self._copied = False
        self._versions: list[int] = []
        self._handles = []
        inner = innermost(optimizer)
        self.announced = isinstance(inner, torch.optim.Optimizer)
        if self.announced:
            self._handles = [
                inner.register_step_pre_hook(lambda *_: before_step()),
                inner.register_step_post_hook(self._stepped),
            ]

    def _stepped(self, *_: Any) -> None:
        self._steps += 1

    def copies(self) -> Blocks:
        """Return copies of the parameters at the last :meth:`begin`; not to be written to."""
        assert self._start is not None
        return self._start

    @property
    def stepped(self) -> bool:
        """Whether the optimizer has said that it stepped since :meth:`begin`."""
        return self._steps > 0

    @torch.no_grad()
    def begin(self, copy: bool = True) -> None:
        """Remember where the parameters are.

        Args:
            copy: Whether to copy them, which tells an update of any kind and is needed for
                :meth:`update`.
        """
        self._steps = 0
        self._versions = [p._version for p in self._params]
        self._copied = copy
        if not copy:
            return
        source = [p.detach() for p in self._params]
        if self._start is not None and _alike(self._start, source):
            torch._foreach_copy_(self._start, source)
        else:
            self._start = [p.clone() for p in source]

    def forget(self) -> None:
        """Drop the copies."""
        self._start = self._blocks = None

    def moved(self) -> bool:
        """Tell whether any parameter has another value than at :meth:`begin`."""
        if not self._copied or self._start is None:
            return [p._version for p in self._params] != self._versions
        pairs = zip(self._params, self._start, strict=True)
        return not all(torch.equal(p.detach(), start) for p, start in pairs)

    @torch.no_grad()
    def update(self, step: int) -> Update:
        """Return the way from the last :meth:`begin` to now; it is good until the next call."""
        assert self._start is not None
        now, then = [p.detach() for p in self._params], self._start
        ends = (dict(zip(self._names, then, strict=True)), dict(zip(self._names, now, strict=True)))
        blocks = self._difference(now, then)
        length = _norm(blocks)
        if 1e-15 < length < 1e15:  # squares of its numbers neither vanish nor overflow
            return Update(step, blocks, length, length, *ends)
        largest = max((float(b.abs().max()) for b in blocks if b.numel()), default=0.0)
        if largest in (0.0, float("inf")) or largest != largest:
            return Update(step, blocks, largest, 1.0, *ends)
        scaled = [(b.double() / largest).to(b.dtype) for b in blocks]
        unit = _norm(scaled)
        return Update(step, scaled, largest * unit, unit, *ends)

    def _difference(self, now: Sequence[Tensor], then: Sequence[Tensor]) -> list[Tensor]:
        """Return d, in tensors that the next call fills again: new ones cost page faults."""
        if any(p.dtype.itemsize < 4 for p in now):
            now, then = [p.float() for p in now], [p.float() for p in then]
        if self._blocks is None or not _alike(self._blocks, now):
            self._blocks = [torch.empty_like(p, requires_grad=False) for p in now]
        for p, q, out in zip(now, then, self._blocks, strict=True):
            torch.sub(p, q, out=out)
        return self._blocks

    def close(self) -> None:
        """Stop listening to the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def innermost(optimizer: Any) -> Any:
    """Return the optimizer that steps, out of the wrappers of other libraries."""
    seen = 0
    while seen < 8:  # a wrapper holds what it wraps as .optimizer
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, torch.optim.Optimizer):
            return optimizer
        optimizer, seen = inner, seen + 1
    return optimizer


def _alike(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(
        x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
        for x, y in zip(a, b, strict=True)
    )


def _norm(blocks: Sequence[Tensor]) -> float:
    return math.hypot(*(float(norm) for norm in torch._foreach_norm(list(blocks))))
