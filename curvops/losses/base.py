"""What every loss contributes: a total, a normaliser, and the calculus of the prediction.

A loss is seen as a sum of *terms*, one per datum or per position of a sequence, each with a
nonnegative weight,

    total(f, y) = Σ_n Σ_t w_nt ℓ(f_nt, y_nt),        L = (1/Z) Σ_b total_b ,  Z = Σ_b Z_b ,

so that the risk does not depend on how the data are cut into batches. What the curvature
operators need of it lives in the space of predictions, and never sees the parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from curvops.errors import DifferentiationError, InputError, explained

Target = Any
"""A target: a tensor or any nesting of tensors that the loss understands."""

OutputMap = Callable[[Tensor], Tensor]
"""A linear map of the prediction space, on tensors of the prediction's shape."""

Draw = Callable[..., Tensor]
"""``draw(*shape)`` returns uniform float64 numbers in [0, 1) from the operator's own stream."""


class Loss(ABC):
    """A loss as a weighted sum of terms.

    Attributes:
        name: What error messages call the loss.
        reduction: ``"mean"`` (divide by the global normaliser) or ``"sum"``.
        class_axis: The axis of the prediction that one term spans.
        ignore_index: The class index that counts nothing, where there is one.
        convex: Whether ∂²ℓ/∂f² is known to be positive semidefinite.
    """

    name: str
    reduction: str
    class_axis: int = -1
    convex: bool = False
    ignore_index: int | None = None

    @abstractmethod
    def total(self, prediction: Tensor, target: Target) -> Tensor:
        """Return Σ w ℓ over the batch, a 0-dim tensor that depends on ``prediction``."""

    @abstractmethod
    def normalizer(self, target: Target, size: int, predict: Callable[[], Tensor]) -> float:
        """Return Z_b, what ``reduction="mean"`` divides this batch by.

        Args:
            target: The batch's target.
            size: Number of data in the batch.
            predict: Returns the batch's prediction; called only where it is needed.
        """

    @abstractmethod
    def per_datum(self, prediction: Tensor, target: Target) -> Tensor:
        """Return the weighted loss of each datum, ``[N]``; their sum is :meth:`total`."""

    def check(self, prediction: Tensor, target: Target, size: int) -> None:  # noqa: B027
        """Raise a typed error if a first batch shows that the loss does not fit."""

    def check_target(self, target: Target, size: int, batch: str) -> None:  # noqa: B027
        """Raise a DataError if a target cannot be right; called for every batch, by name."""

    def check_separable(self, prediction: Tensor, target: Target) -> None:  # noqa: B027
        """Raise a typed error if the loss is not a sum of one term per datum."""

    def gradient(self, prediction: Tensor, target: Target) -> Tensor:
        """Return ∂ total/∂f, of the prediction's shape."""
        f = prediction.detach().requires_grad_()
        with torch.enable_grad():
            return _grad(self.total(f, target), f, self.name)

    def hessian(self, prediction: Tensor, target: Target) -> OutputMap:
        """Return the map V ↦ (∂² total/∂f²) V; here by differentiating twice."""
        f = prediction.detach().requires_grad_()
        with torch.enable_grad():
            g = _grad(self.total(f, target), f, self.name, create_graph=True)
        if not g.requires_grad:  # the loss is linear in the prediction
            return torch.zeros_like

        def apply(v: Tensor) -> Tensor:
            return _grad(g, f, self.name, cotangent=v.to(g.dtype), retain_graph=True)

        return apply

    def hessian_roots(self, prediction: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the columns s_r (and signs σ_r per datum) of ∂²total/∂f² = Σ_r σ_r s_r s_rᵀ.

        The Hessian is block diagonal over data; each column holds one vector per datum, so it
        has the prediction's shape, and its signs have shape ``[N]``. Here by an eigenvalue
        decomposition of every block ``[D, D]``, D numbers per prediction.
        """
        apply = self.hessian(prediction, target)
        flat = prediction.detach().reshape(prediction.shape[0], -1)
        columns = []
        for d in range(flat.shape[1]):
            unit = torch.zeros_like(flat)
            unit[:, d] = 1.0
            columns.append(apply(unit.reshape(prediction.shape)).reshape(flat.shape))
        blocks = torch.stack(columns, dim=2)
        eigenvalues, vectors = torch.linalg.eigh(_at_least_float32(blocks))
        roots = (vectors * eigenvalues.abs().sqrt().unsqueeze(1)).to(prediction.dtype)
        for d in range(flat.shape[1]):
            yield roots[:, :, d].reshape(prediction.shape), eigenvalues[:, d].sign().to(roots)

    @abstractmethod
    def scores(self, prediction: Tensor, target: Target) -> Tensor:
        """Return √w ∂ℓ/∂f of every term at the observed target, of the prediction's shape."""

    def sampled_scores(self, prediction: Tensor, target: Target, draw: Draw) -> Tensor:
        """Return √w ∂ℓ/∂f of every term at a target drawn from the model's own distribution.

        Raises:
            InputError: If the loss is not the negative log-likelihood of a known distribution.
        """
        raise InputError(
            f"{self.name} has no predictive distribution to draw labels from. The Monte-Carlo "
            "Fisher is defined for CrossEntropyLoss, NLLLoss, MSELoss, BCEWithLogitsLoss, "
            "BCELoss and GaussianNLLLoss; use GGNLinearOperator instead."
        )

    def to_terms(self, x: Tensor) -> Tensor:
        """Bring a tensor of the prediction's shape to ``[N, positions, classes]``."""
        if x.ndim == 1:
            return x.reshape(-1, 1, 1)
        return rearrange(x.movedim(self.class_axis, -1), "n ... c -> n (...) c")

    def from_terms(self, x: Tensor, like: Tensor) -> Tensor:
        """Undo :meth:`to_terms` for a prediction of the shape of ``like``."""
        if like.ndim == 1:
            return x.reshape(like.shape)
        moved = like.movedim(self.class_axis, -1).shape
        return x.reshape(moved).movedim(-1, self.class_axis)


def _grad(
    output: Tensor,
    f: Tensor,
    name: str,
    cotangent: Tensor | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Tensor:
    if not output.requires_grad:
        raise DifferentiationError(
            f"{name} does not depend differentiably on the prediction (detached, or computed "
            "under no_grad); there is nothing to differentiate."
        )
    with explained(f"differentiating {name}"):
        (g,) = torch.autograd.grad(
            output,
            f,
            grad_outputs=cotangent,
            create_graph=create_graph,
            retain_graph=retain_graph,
            materialize_grads=True,
        )
    return g


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
