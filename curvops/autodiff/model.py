"""The model as a pure function of chosen parameters, its module left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvops.autodiff.memory import reuse_freed_memory
from curvops.errors import InputError

Forward = Callable[[Any, Any], Tensor]


class FunctionalModel:
    """f(θ, X): evaluate a module (or a callable) at parameters that are not its own.

    The substitution stays in force for as long as :meth:`at` is open, not only during the
    forward pass, because activation checkpointing runs the forward again while differentiating.

    Args:
        model: A module, or a callable ``(params_dict, X) -> prediction``.
        names: The parameters that vary.
        forward: How to call the model on X; ``model(X)`` by default.
        autocast: A dtype to run the forward pass in under ``torch.autocast``.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[dict[str, Tensor], Any], Tensor],
        names: tuple[str, ...],
        forward: Forward | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        reuse_freed_memory()  # here, since every way to a product or a monitor makes one
        self.module = model if isinstance(model, nn.Module) else None
        self._callable = model
        self._forward = forward
        self._autocast = autocast
        self._has_rnn = self.module is not None and any(
            isinstance(m, nn.RNNBase) for m in self.module.modules()
        )
        self._slots = {} if self.module is None else _slots(self.module)
        self._buffers = {} if self.module is None else _buffer_slots(self.module)
        self._modules = [] if self.module is None else list(self.module.modules())
        self.names = names
        self.clone_buffers = False
        self._held: dict[str, Tensor] = {}

    def holding(self, held: Mapping[str, Tensor]) -> FunctionalModel:
        """Return the same model with some of the parameters that vary held at given values."""
        other = copy.copy(self)
        other.names = tuple(name for name in self.names if name not in held)
        other._held = self._held | {name: t.detach() for name, t in held.items()}
        return other

    def to(self, dtype: torch.dtype) -> FunctionalModel:
        """Return the model on a copy of its module in another dtype, without autocast.

        Raises:
            InputError: If the module cannot be copied.
        """
        model = self._callable
        if self.module is not None:
            try:
                model = copy.deepcopy(self.module).to(dtype)
            except (RuntimeError, TypeError) as error:
                raise InputError(
                    f"{type(self.module).__name__} cannot be copied to {dtype}: {error} Build the "
                    "risk on a module of that dtype."
                ) from error
        other = FunctionalModel(model, self.names, self._forward)
        other.clone_buffers = self.clone_buffers
        other._held = {name: t.to(dtype) for name, t in self._held.items()}
        return other

    def fixed(self) -> dict[str, Tensor]:
        """Return what the predictions depend on beside the parameters that vary."""
        own = {name: slots[0] for name, slots in self._slots.items() if name not in self.names}
        values = {n: owner[key].detach() for n, (owner, key) in (own | self._buffers).items()}
        return values | self._held

    def modes(self) -> tuple[bool, ...]:
        """Return which modules are in train mode: in another one it is another function."""
        return tuple([m.training for m in self._modules])

    @contextmanager
    def attributes_kept(self) -> Iterator[None]:
        """Put back, on leaving, what modules were holding: a cache may be of no use outside."""
        before = [(module, dict(vars(module))) for module in self._modules]
        try:
            yield
        finally:
            for module, held in before:
                now = vars(module)
                for name in [name for name in now if now[name] is not held.get(name)]:
                    del now[name]
                now.update({name: value for name, value in held.items() if name not in now})

    def places(self) -> Iterator[tuple[nn.Module, dict[str, str]]]:
        """Yield the modules that hold parameters that vary, with their names by attribute."""
        held: dict[int, dict[str, str]] = {}
        for name in self.names:
            for owner, key in self._slots.get(name, ()):
                held.setdefault(id(owner), {})[key] = name
        for module in () if self.module is None else self.module.modules():
            if id(module._parameters) in held:
                yield module, held[id(module._parameters)]

    @property
    def has_autocast(self) -> bool:
        """Whether the forward pass runs in another dtype than its parameters'."""
        return self._autocast is not None

    @contextmanager
    def at(
        self, params: Mapping[str, Tensor], fixed: Mapping[str, Tensor] | None = None
    ) -> Iterator[Callable[[Any], Tensor]]:
        """Substitute parameters and yield ``X -> prediction``.

        The caller's ``torch.autocast`` is off until it is closed: losses and derivatives are
        computed in the dtypes of what they get.

        Args:
            params: A tensor for each of the names that vary.
            fixed: Tensors for other parameters and buffers too (see :meth:`fixed`).
        """
        fixed = {**self._held, **(fixed or {})}
        varied = {**{name: fixed[name] for name in self._held}, **params}
        with self._opened(next(iter(params.values())).device, params, fixed):
            yield lambda X: self._predict(varied, X)

    @contextmanager
    def visiting(
        self, device: torch.device
    ) -> Iterator[Callable[[Mapping[str, Tensor]], Callable[[Any], Tensor]]]:
        """Open one substitution for many points, and yield ``params -> (X -> prediction)``.

        Cheaper than :meth:`at` for every point. A prediction function is good until the next one
        is asked for.

        Args:
            device: Where the points live.
        """
        held = dict(self._held)
        buffers = {name: owner[key] for name, (owner, key) in self._buffers.items()}

        def visit(params: Mapping[str, Tensor]) -> Callable[[Any], Tensor]:
            for name, value in params.items():
                for owner, key in self._slots.get(name, ()):
                    owner[key] = value
            if self.clone_buffers:  # what one point wrote must not reach the next
                for name, (owner, key) in self._buffers.items():
                    owner[key] = buffers[name].clone()
            varied = {**held, **params}
            return lambda X: self._predict(varied, X)

        with self._opened(device, {}, held):
            yield visit

    @contextmanager
    def _opened(
        self, device: torch.device, params: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
    ) -> Iterator[None]:
        with ExitStack() as stack:
            for context in self._second_order_kernels(device):
                stack.enter_context(context)
            if torch.is_autocast_enabled(device.type):
                stack.enter_context(torch.autocast(device.type, enabled=False))
            if self.module is not None:
                stack.enter_context(self._substituted(self.module, params, fixed))
            yield

    def _predict(self, params: Mapping[str, Tensor], X: Any) -> Tensor:
        device = next(iter(params.values())).device
        with torch.autocast(device.type, self._autocast, enabled=self._autocast is not None):
            if self._forward is not None:
                first = self._callable if self.module is not None else dict(params)
                prediction = self._forward(first, X)
            elif self.module is not None:
                prediction = self.module(X)
            else:
                prediction = self._callable(dict(params), X)
        if not isinstance(prediction, Tensor):
            raise InputError(
                f"the model returned {type(prediction).__name__}, not a torch.Tensor. Pass "
                "forward=lambda model, X: ... to pick the prediction out of it."
            )
        return prediction

    @contextmanager
    def _substituted(
        self, module: nn.Module, params: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
    ) -> Iterator[None]:
        undo: list[tuple[dict[str, Any], str, Any]] = []
        flat_weights = [
            (m, m._flat_weights, m._flat_weight_refs)
            for m in (module.modules() if self._has_rnn else ())
            if isinstance(m, nn.RNNBase)
        ]
        try:
            for name, slots in self._slots.items():
                for owner, key in slots:
                    original = owner[key]
                    undo.append((owner, key, original))
                    # Parameters held fixed are detached: no graph is wasted on them.
                    value = params.get(name, fixed.get(name))
                    owner[key] = original.detach() if value is None else value
            for name, (owner, key) in self._buffers.items():
                if self.clone_buffers or name in fixed:
                    undo.append((owner, key, owner[key]))
                    buffer = fixed.get(name, owner[key])
                    owner[key] = buffer.clone() if self.clone_buffers else buffer
            yield
        finally:
            for owner, key, original in reversed(undo):
                owner[key] = original
            for rnn, weights, refs in flat_weights:
                rnn._flat_weights, rnn._flat_weight_refs = weights, refs

    def _second_order_kernels(self, device: torch.device) -> Iterator[Any]:
        """Yield contexts in which every kernel has the derivatives we need."""
        yield sdpa_kernel(SDPBackend.MATH)
        yield _without_fastpath()
        if self._has_rnn and device.type == "cuda":
            yield torch.backends.cudnn.flags(enabled=False)


@contextmanager
def _without_fastpath() -> Iterator[None]:
    """Turn off the fused inference path of transformer modules, which skips autograd."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _slots(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Return every place that holds each parameter, by its canonical name (tied ones share)."""
    canonical = {id(p): name for name, p in module.named_parameters()}
    slots: dict[str, list[tuple[dict[str, Any], str]]] = {n: [] for n in canonical.values()}
    for m in module.modules():
        for key, p in m._parameters.items():
            if p is not None:
                slots[canonical[id(p)]].append((m._parameters, key))
    return slots


def _buffer_slots(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        f"{prefix}.{key}" if prefix else key: (m._buffers, key)
        for prefix, m in module.named_modules()
        for key, buffer in m._buffers.items()
        if buffer is not None
    }


def unwrap(model: Any) -> Any:
    """Strip wrappers that second derivatives cannot pass: torch.compile and data parallelism."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(
            inner := getattr(model, "_orig_mod", None), nn.Module
        ):
            model = inner
        else:
            return model
