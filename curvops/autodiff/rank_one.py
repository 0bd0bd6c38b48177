"""Sums of rank-one terms, v ↦ Σ_r Σ_n g_rn (g_rnᵀ v), from layer inputs and output gradients.

The individual gradient g_rn = J_nᵀ s_rn of a layer z = W a + b is Σ_t (∂/∂z_nt) ⊗ a_nt over the
positions t that share the weight. Per layer it is held in the form that takes less memory:

* *factors*, a and ∂/∂z: ⟨g, V⟩ is one application of V to the inputs, Σ_n α_n g_n one
  weight-gradient multiplication; two multiplications where a GGN product needs four;
* *rows*, the individual gradients themselves, where positions outnumber the weights (most
  convolutions on images): what remains of a product is one small matrix, twice.

Source: the factors are those of Goodfellow 2015, "Efficient per-example gradient computations",
eq. 3, extended to shared weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops.autodiff.collector import (
    CONVOLUTIONS,
    Call,
    collecting,
    output_gradients,
    supported_layers,
)
from curvops.autodiff.linearization import Blocks, Linearization
from curvops.autodiff.model import FunctionalModel
from curvops.autodiff.separation import (
    ROUNDING,
    is_plain,
    is_separate_nearby,
    passes_only,
    random_cotangent,
)
from curvops.autodiff.tracing import storage_bytes

Scores = Callable[[Linearization], list[Tensor] | None]
"""Scores s_r of the prediction's shape; ``None`` where A_b is not a sum of such terms."""

_NEGLIGIBLE = 1e-2
"""Of the whole gradient: what a parameter's may be below and still be compared with it."""


class _Map(Protocol):
    """The linear map of one layer, and the input ``[N, *]`` of one call."""

    def apply(self, V: Tensor, a: Tensor) -> Tensor:
        """Apply weights ``[K, *weight]``: ``[K, N, *output]``."""

    def weight_gradient(self, H: Tensor, a: Tensor) -> Tensor:
        """Return ``[K, *weight]`` for output gradients ``[K, N, *output]``."""

    def individual(self, G: Tensor, a: Tensor) -> Tensor:
        """Return the weight gradient of every datum, ``[N, weight.numel()]``."""


@dataclass(frozen=True)
class _Linear:
    def apply(self, V: Tensor, a: Tensor) -> Tensor:
        rows = a.flatten(0, -2)
        return (rows @ V.mT).reshape(len(V), *a.shape[:-1], V.shape[1])

    def weight_gradient(self, H: Tensor, a: Tensor) -> Tensor:
        return H.flatten(1, -2).mT @ a.flatten(0, -2)

    def individual(self, G: Tensor, a: Tensor) -> Tensor:
        N = len(a)
        g, x = G.reshape(N, -1, G.shape[-1]), a.reshape(N, -1, a.shape[-1])
        return (g.mT @ x).flatten(1)


@dataclass(frozen=True)
class _Convolution:
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def apply(self, V: Tensor, a: Tensor) -> Tensor:
        return torch.stack(
            [torch.ops.aten.convolution(a, v, None, *self._geometry(), self.groups) for v in V]
        )

    def weight_gradient(self, H: Tensor, a: Tensor) -> Tensor:
        return torch.stack([self._backward(h, a, self.groups) for h in H])

    def individual(self, G: Tensor, a: Tensor) -> Tensor:
        # Data as groups of one convolution: every group has the kernel of one datum.
        g, x = G.flatten(0, 1).unsqueeze(0), a.flatten(0, 1).unsqueeze(0)
        return self._backward(g, x, self.groups * len(a)).reshape(len(a), -1)

    def _backward(self, g: Tensor, a: Tensor, groups: int) -> Tensor:
        like = a.new_empty(g.shape[1], a.shape[1] // groups, *self.kernel)
        mask = [False, True, False]
        gradients = torch.ops.aten.convolution_backward(
            g, a, like, None, *self._geometry(), groups, mask
        )
        weight: Tensor = gradients[1]
        return weight

    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, False, [0] * len(self.stride)


def _map_of(module: nn.Module, a: Tensor) -> tuple[_Map, Tensor]:
    """Return the map of a layer, and its input, padded where the map does not."""
    if isinstance(module, nn.Linear):
        return _Linear(), a
    assert isinstance(module, CONVOLUTIONS)
    padding: Any = module.padding
    if padding == "valid":
        padding = (0,) * len(module.kernel_size)
    elif padding == "same" or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        a = F.pad(a, _pad_widths(module), mode)
        padding = (0,) * len(module.kernel_size)
    geometry = module.kernel_size, module.stride, padding, module.dilation, module.groups
    return _Convolution(*geometry), a


def _pad_widths(module: Any) -> list[int]:
    """Return what is padded before and after each axis, the last one first, as F.pad has it."""
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        widths = [(t // 2, t - t // 2) for t in total]
    else:
        widths = [(p, p) for p in module.padding]
    return [width for pair in reversed(widths) for width in pair]


@dataclass(frozen=True)
class _Factors:
    """Individual gradients of one call of a layer, as input and output gradients.

    Attributes:
        map: The layer's map.
        a: Its input ``[N, *]``.
        G: Gradients with respect to its output, ``[R, N, *]``.
        channel: The axis of the output that a bias belongs to, counted from the last.
        weight: Index of the weight.
        bias: Index of the bias, or ``None``.
    """

    map: _Map
    a: Tensor
    G: Tensor
    channel: int
    weight: int
    bias: int | None

    def inner(self, v: Blocks) -> Tensor:
        """Return ⟨g_rn, v_k⟩, ``[K, R, N]``."""
        z = self.map.apply(v[self.weight], self.a)
        if self.bias is not None:
            shape = [len(z)] + [1] * (z.ndim - 1)
            shape[self.channel] = -1
            z = z + v[self.bias].reshape(shape)
        z = z.flatten(2)
        return torch.stack([(z * g.flatten(1)).sum(-1) for g in self.G], dim=1)

    def pull(self, alpha: Tensor, add: Callable[[int, Tensor], None]) -> None:
        """Add Σ_rn α_krn g_rn for α ``[K, R, N]``."""
        alpha = alpha.reshape(*alpha.shape, *[1] * (self.G.ndim - 2))
        H = alpha[:, 0] * self.G[0]
        for r in range(1, len(self.G)):
            H.addcmul_(alpha[:, r], self.G[r])
        add(self.weight, self.map.weight_gradient(H, self.a))
        if self.bias is not None:
            add(self.bias, _sum_positions(H, self.channel))


@dataclass(frozen=True)
class _Rows:
    """Individual gradients of one parameter, summed over its calls: ``[R, N, p]``."""

    index: int
    rows: Tensor

    def inner(self, v: Blocks) -> Tensor:
        """Return ⟨g_rn, v_k⟩, ``[K, R, N]``."""
        inner = v[self.index].flatten(1) @ self.rows.flatten(0, 1).T
        return inner.reshape(-1, *self.rows.shape[:2])

    def pull(self, alpha: Tensor, add: Callable[[int, Tensor], None]) -> None:
        """Add Σ_rn α_krn g_rn for α ``[K, R, N]``."""
        add(self.index, alpha.flatten(1) @ self.rows.flatten(0, 1))


class RankOneMap:
    """v ↦ Σ_r Σ_n g_rn (g_rnᵀ v); see :func:`rank_one_map`."""

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        terms: Sequence[_Factors | _Rows],
        num_terms: tuple[int, int],
        like: Tensor,
        is_constant: bool,
    ) -> None:
        self._shapes, self._terms, self._num_terms = shapes, terms, num_terms
        self._like = like.new_empty(0)
        self.is_constant = is_constant

    @torch.no_grad()
    def one(self, v: Blocks) -> Blocks:
        """Multiply one vector, given as one tensor per parameter."""
        return [t.squeeze(0) for t in self.many([t.unsqueeze(0) for t in v])]

    @torch.no_grad()
    def many(self, v: Blocks) -> Blocks:
        """Multiply a block of vectors, stacked on a *leading* axis of every tensor."""
        alpha = self._like.new_zeros(len(v[0]), *self._num_terms)
        for term in self._terms:
            alpha += term.inner(v)
        return self.pull(alpha)

    def pull(self, alpha: Tensor) -> Blocks:
        """Return Σ_rn α_krn g_rn for α ``[K, R, N]``, with a leading axis K."""
        sums: dict[int, Tensor] = {}

        def add(index: int, value: Tensor) -> None:
            value = value.reshape(len(alpha), *self._shapes[index])
            sums[index] = sums[index] + value if index in sums else value

        for term in self._terms:
            term.pull(alpha, add)
        return [
            sums[i] if i in sums else alpha.new_zeros(len(alpha), *shape)
            for i, shape in enumerate(self._shapes)
        ]

    def num_bytes(self, shared: Sequence[Tensor]) -> int:
        """Bytes of what is kept that ``shared`` does not hold already."""
        held: list[Tensor] = []
        for term in self._terms:
            held += [term.rows] if isinstance(term, _Rows) else [term.a, term.G]
        return storage_bytes(held, shared)


def rank_one_map(
    model: FunctionalModel,
    lin: Linearization,
    scores: Scores,
    *,
    verify: bool,
    trusted: bool = False,
) -> RankOneMap | None:
    """Return v ↦ Σ_r Σ_n g_rn (g_rnᵀ v), g_rn = J_nᵀ s_rn, without J where layers allow it.

    Costs one forward pass and, per set of scores, one backward pass without the parameters'
    gradients; ``verify`` two such and one with them more, and another forward pass. The
    model must be open (:meth:`~curvops.autodiff.model.FunctionalModel.at`) at the point of ``lin``.

    Args:
        model: The model.
        lin: The mini-batch; its own graph is not built.
        scores: Makes the scores from a linearization of the same batch, each of the prediction's
            shape, data on the first axis.
        verify: Check on this batch that layers do what they are named after, and that data do
            not influence one another: for random scores and random weights c_n, Σ_n c_n g_n
            must be what automatic differentiation says of Jᵀ(c s); and at random parameters
            nearby, where no derivative vanishes that need not, scores c_n s_n must give c_n times
            the gradients with respect to every layer's output.
        trusted: Leave out the first of these, which another batch has passed.

    Returns:
        The map; ``None`` where it is not of this form: parameters of other layers than linear
        ones and convolutions, weights used as functions, layers that see other axes than the
        data first, scores of several positions per datum, mixed precision, and half precision,
        in which rounding would hide what the check looks for.

    Example:
        >>> from curvops.data import Batch
        >>> from curvops.losses import as_loss
        >>> model = FunctionalModel(nn.Linear(2, 1, bias=False), ("weight",))
        >>> params = {"weight": torch.zeros(1, 2, requires_grad=True)}
        >>> batch = Batch(0, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 1), 2)
        >>> with model.at(params) as predict:
        ...     lin = Linearization(predict, as_loss(nn.MSELoss()), [params["weight"]], batch)
        ...     A = rank_one_map(model, lin, lambda lin: [torch.ones(2, 1)], verify=True)
        >>> A.one([torch.tensor([[1.0, 0.0]])])  # 1·(1, 2) + 3·(3, 4)
        [tensor([[10., 14.]])]
    """
    layers = supported_layers(model)
    dtype = lin.params[0].dtype
    if layers is None or any(p.dtype != dtype for p in lin.params):
        return None
    if torch.finfo(dtype).bits < 32:
        return None
    fresh = Linearization(lin.predict, lin.loss, lin.params, lin.batch)
    with collecting(layers) as calls:
        prediction = fresh.prediction
    s = scores(fresh)
    if s is None or prediction.ndim == 0:
        return None
    if fresh.is_constant:  # what was collected, if anything, was discarded by the model
        return _assembled(fresh, [], s)
    if not passes_only(prediction, calls, fresh.params):
        return None
    if verify and not trusted and not _is_complete(fresh, calls):
        return None
    found = _assembled(fresh, calls, s)
    del fresh, prediction, calls  # the graph: the other point needs one of its own
    return found if not verify or is_separate_nearby(model, layers, lin) else None


def _is_complete(lin: Linearization, calls: Sequence[Call]) -> bool:
    f = lin.prediction
    s, c = random_cotangent(f)
    collected = _assembled(lin, calls, [s])
    if collected is None:
        return False
    with torch.no_grad():
        ours = collected.pull(c.reshape(1, 1, -1))
    truth = lin.vjp(c.reshape(-1, *[1] * (f.ndim - 1)) * s)
    eps = ROUNDING * torch.finfo(f.dtype).eps
    whole = torch.stack([t.norm() for t in truth]).norm()
    return all(
        bool((a[0] - t).norm() <= eps * torch.maximum(t.norm(), _NEGLIGIBLE * whole))
        for a, t in zip(ours, truth, strict=True)
    )


def _assembled(
    lin: Linearization, calls: Sequence[Call], scores: Sequence[Tensor]
) -> RankOneMap | None:
    """Collect the gradients of every call and hold them; ``None`` where a call is odd."""
    f, like = lin.prediction, lin.params[0]
    collected = list(zip(*(output_gradients(f, calls, s) for s in scores), strict=True))
    used: list[tuple[Call, Tensor]] = []
    for call, gradients in zip(calls, collected, strict=False):
        if gradients[0] is None:
            continue
        if not all(is_plain(t, like, len(f)) for t in (call.input, *gradients)):
            return None
        used.append((call, gradients[0][None] if len(scores) == 1 else torch.stack(gradients)))
    with torch.no_grad():
        terms = _terms(used, lin.params)
    shapes = [p.shape for p in lin.params]
    return RankOneMap(shapes, terms, (len(scores), len(f)), like, lin.is_constant)


def _terms(used: Sequence[tuple[Call, Tensor]], params: Blocks) -> list[_Factors | _Rows]:
    """Hold every weight in the form that takes less memory, and biases with them."""
    factored: dict[int, int] = defaultdict(int)
    for call, G in used:
        if call.layer.weight is not None:
            factored[call.layer.weight] += call.input.numel() + G.numel()
    terms: list[_Factors | _Rows] = []
    rows: dict[int, Tensor] = {}

    def add(index: int, value: Tensor) -> None:
        rows[index] = rows[index].add_(value) if index in rows else value

    for call, G in used:
        weight, bias = call.layer.weight, call.layer.bias
        channel = -1 if isinstance(call.layer.module, nn.Linear) else 2 - G.ndim
        if weight is not None:
            layer, a = _map_of(call.layer.module, call.input)
            size = G.shape[0] * G.shape[1] * params[weight].numel()
            if factored[weight] < size:
                terms.append(_Factors(layer, a, G, channel, weight, bias))
                continue
            add(weight, torch.stack([layer.individual(g, a) for g in G]))
        if bias is not None:
            add(bias, torch.stack([_sum_positions(g, channel) for g in G]))
    return terms + [_Rows(index, value) for index, value in rows.items()]


def _sum_positions(x: Tensor, channel: int) -> Tensor:
    """Sum over all axes but the first and the channel."""
    axes = [d for d in range(1, x.ndim) if d != x.ndim + channel]
    return x.sum(axes) if axes else x
