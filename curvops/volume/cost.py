r"""What it costs to be elsewhere: the loss that is added, or how far the predictions moved.

.. math::
    \mathrm{cost}(\theta) = L(\theta) - L(\theta^*), \qquad
    \mathrm{cost}(\theta) = \operatorname{mean}_n
        \mathrm{KL}\bigl(p_{\theta^*}(\cdot | x_n) \,\|\, p_\theta(\cdot | x_n)\bigr)

A basin is where the cost stays below a threshold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from curvops.data import Batch
from curvops.errors import InputError, NonFiniteError
from curvops.losses.categorical import CategoricalLoss
from curvops.losses.relative_entropy import RelativeEntropy, log_probabilities
from curvops.risk import EmpiricalRisk
from curvops.volume.scope import Scope, restrict

Kind = Literal["loss", "kl"]

KINDS = ("loss", "kl")


class Cost:
    r"""The cost of being at θ instead of at the current point θ* of a risk.

    ``"loss"`` is the increase of the risk as it stands, **weight decay included**, in units of
    the loss: that is what θ* minimises. For the data's part alone pass a risk without weight
    decay. It is negative where the loss is lower than at θ*.

    ``"kl"`` is the divergence of the predictions from those at θ*, in nats, averaged over the data
    (over positions for sequences; ignored targets do not count). Labels, class weights, smoothing
    and weight decay do not enter. It is computed to rounding of itself, not of the loss.

    Args:
        risk: The risk; its current point is θ*, and is left untouched.
        kind: ``"loss"`` or ``"kl"``.
        scope: Globs over parameter names: what θ consists of. The others are held.

    Attributes:
        kind: As given.
        source: The risk, restricted to the scope.
        risk: A risk whose value is the cost up to a constant, for operators. For ``"kl"`` its
            Gauss–Newton matrix and its Hessian at θ* are the same, the Fisher matrix.
        theta: θ*, flat ``[P]``.
        anchor: What is subtracted: L(θ*), or 0.
        num_evaluations: Points at which the cost was computed so far.
        num_gradients: Points at which its gradient was.

    Raises:
        InputError: If there is no such kind, a glob matches nothing, or the predictions are not
            categorical (for ``"kl"``).
        NonFiniteError: If the loss at θ* is NaN or infinite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> data = [(torch.eye(2), torch.tensor([0, 2]))]
        >>> risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), model, data)
        >>> cost = Cost(risk, "kl", scope="bias")
        >>> shifted = cost.theta + 1.0  # softmax does not notice
        >>> cost(torch.stack([cost.theta, shifted], dim=1)).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, risk: EmpiricalRisk, kind: Kind = "loss", scope: Scope = None) -> None:
        if kind not in KINDS:
            raise InputError(f'cost must be "loss" or "kl", got {kind!r}.')
        self.kind: Kind = kind
        self.source = restrict(risk, scope)
        self.theta = self.source.theta
        self.num_evaluations = 0
        self.num_gradients = 0
        loss = float(self.source.loss())
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss at θ* is {loss}: there is no basin around it. Look for the datum that "
                "makes it so with risk.per_sample_losses()."
            )
        self.risk = self.source if kind == "loss" else _divergence(self.source)
        self.anchor = loss if kind == "loss" else 0.0

    @property
    def dim(self) -> int:
        """The number of parameters ``P``."""
        return self.source.space.dim

    @property
    def unit(self) -> str:
        """What the cost is measured in."""
        return "nats" if self.kind == "kl" else "units of the loss"

    def __call__(self, X: Tensor) -> Tensor:
        """Return the cost at points.

        Args:
            X: Points θ as columns, ``[P, K]``.

        Returns:
            Costs ``[K]``, float64; NaN or infinity where the model's are.
        """
        self.num_evaluations += X.shape[1]
        return self.risk.losses(X).to(torch.float64) - self.anchor

    def with_gradient(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cost and its gradient at points.

        Args:
            X: Points θ as columns, ``[P, K]``.

        Returns:
            Costs ``[K]``, float64, and gradients ``[P, K]`` in the dtype of the risk.
        """
        self.num_evaluations += X.shape[1]
        self.num_gradients += X.shape[1]
        losses, gradients = self.risk.losses_and_gradients(X)
        assert isinstance(gradients, Tensor)  # as X is one
        return losses.to(torch.float64) - self.anchor, gradients


class _Retargeted:
    """The batches of a stream, with other targets."""

    def __init__(self, stream: Any, targets: list[Any]) -> None:
        self._stream = stream
        self._targets = targets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        for batch, target in zip(self._stream, self._targets, strict=True):
            yield replace(batch, y=target)


def _divergence(risk: EmpiricalRisk) -> EmpiricalRisk:
    """Return the risk of the same model and data whose loss is the divergence from here."""
    if not isinstance(risk.loss_func, CategoricalLoss):
        raise InputError(
            f'cost="kl" needs a categorical prediction, as CrossEntropyLoss and NLLLoss have; the '
            f'risk has {risk.loss_func.name}. Use cost="loss".'
        )
    ignored = risk.loss_func.ignore_index
    targets: list[tuple[Tensor, Tensor]] = []
    for prediction, y in risk.predictions():
        weight = torch.ones_like(prediction[:, 0])
        if not y.is_floating_point():
            weight = (y != ignored).to(prediction.dtype)
        targets.append((log_probabilities(prediction), weight))
    other = copy.copy(risk)
    other.weight_decay = 0.0
    other._loss = RelativeEntropy()
    other._data = _Retargeted(risk._data, targets)  # type: ignore[assignment]
    other._normalizer = None
    return other
