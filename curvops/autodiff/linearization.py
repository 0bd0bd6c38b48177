"""The three verbs of one mini-batch at one point: jvp, vjp and hvp.

All by reverse mode, which reaches every model that torch can differentiate twice:

* Jᵀu is one backward pass;
* Jv is the derivative of w(u) = Jᵀu, a linear function of a dummy u, applied to v;
* Hv is the backward pass of the gradient.

The graphs that do not depend on the vector are built at the first use and serve all columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from curvops.autodiff.once import refuse_once_differentiable
from curvops.data import Batch
from curvops.errors import DifferentiationError, explained
from curvops.losses import Loss

Blocks = list[Tensor]
"""One tensor per parameter, of the parameters' shapes."""


class Linearization:
    """The linear maps of a mini-batch at θ.

    Args:
        predict: ``X -> prediction``, evaluating the model at ``params``.
        loss: The loss, or ``None`` for maps that need none.
        params: Leaf tensors that require gradients; the model is evaluated at them.
        batch: The mini-batch.
        start: Row of this batch's first output among the outputs of all batches.
    """

    def __init__(
        self,
        predict: Callable[..., Tensor],
        loss: Loss | None,
        params: Blocks,
        batch: Batch,
        start: int = 0,
    ) -> None:
        self.predict = predict
        self._loss = loss
        self.params = params
        self.batch = batch
        self.start = start

    @property
    def loss(self) -> Loss:
        """The loss."""
        assert self._loss is not None
        return self._loss

    @cached_property
    def prediction(self) -> Tensor:
        """f(θ, X), attached to the graph."""
        with torch.enable_grad():
            prediction = self.predict(self.batch.X)
        refuse_once_differentiable(prediction)
        return prediction

    @property
    def is_constant(self) -> bool:
        """Whether no parameter has an influence on this batch: all its products are zero."""
        return not self.prediction.requires_grad

    @cached_property
    def total(self) -> Tensor:
        """The batch's un-normalised loss, attached to the graph."""
        prediction = self.prediction
        with torch.enable_grad():
            total = self.loss.total(prediction, self.batch.y)
        if not total.requires_grad and not self.is_constant:
            raise DifferentiationError(
                f"{self.loss.name} does not depend differentiably on the prediction."
            )
        return total

    @property
    def num_outputs(self) -> int:
        """Number of outputs, rows of this batch's Jacobian."""
        return self.prediction.numel()

    def gradient(self) -> Blocks:
        """Return ∇ total."""
        return self._grad([self.total], [torch.ones_like(self.total)], retain_graph=False)

    def hvp(self, v: Blocks) -> Blocks:
        """Return ∇² total · v."""
        attached, cotangents = _attached(self._gradient_graph, v)
        if not attached:
            return [torch.zeros_like(p) for p in self.params]
        return self._grad(attached, cotangents)

    def jvp(self, v: Blocks) -> Tensor:
        """Return J v, of the prediction's shape."""
        u, pulled = self._transposed_graph
        outputs, cotangents = _attached(pulled, v)
        if not outputs:
            return torch.zeros_like(u)
        with explained("Jacobian-vector product"):
            (jv,) = torch.autograd.grad(
                outputs, u, cotangents, retain_graph=True, materialize_grads=True
            )
        return jv

    def vjp(self, u: Tensor) -> Blocks:
        """Return Jᵀu for ``u`` of the prediction's shape."""
        return self._grad([self.prediction], [u.to(self.prediction.dtype)])

    @cached_property
    def _gradient_graph(self) -> Blocks:
        return self._grad([self.total], [torch.ones_like(self.total)], create_graph=True)

    @cached_property
    def _transposed_graph(self) -> tuple[Tensor, Blocks]:
        u = torch.zeros_like(self.prediction).requires_grad_()
        return u, self._grad([self.prediction], [u], create_graph=True)

    def _grad(
        self,
        outputs: Blocks,
        cotangents: Blocks,
        create_graph: bool = False,
        retain_graph: bool = True,
    ) -> Blocks:
        if self.is_constant:
            return [torch.zeros_like(p) for p in self.params]
        with explained("differentiating the model"):
            return list(
                torch.autograd.grad(
                    outputs,
                    self.params,
                    cotangents,
                    create_graph=create_graph,
                    retain_graph=retain_graph,
                    materialize_grads=True,
                )
            )


def _attached(outputs: Blocks, v: Blocks) -> tuple[Blocks, Blocks]:
    """Keep the outputs that depend on anything; the others have zero derivatives."""
    pairs = [
        (out, cotangent.to(out.dtype))
        for out, cotangent in zip(outputs, v, strict=True)
        if out.requires_grad
    ]
    return [out for out, _ in pairs], [cotangent for _, cotangent in pairs]
