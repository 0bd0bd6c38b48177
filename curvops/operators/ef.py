"""The empirical Fisher matrix, the second moment of individual gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curvops.autodiff import BlockMap, Linearization, Params, Product
from curvops.errors import InputError
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.operators.factor import FactorLinearOperator
from curvops.risk import EmpiricalRisk

Per = Literal["position", "datum"]


class EFLinearOperator(CurvatureLinearOperator):
    """The empirical Fisher (1/Z) Σ_n g_n g_nᵀ + λI with g_n = √w_n ∇_θ ℓ_n, ``[P, P]``.

    ℓ_n is the loss of one datum *without* any averaging: for elementwise losses (MSE, BCE)
    summed over its C outputs, Z = N·C; for cross entropy Z = N, or Σ weight[y] over the valid
    targets. Class weights, ``pos_weight`` and element weights count a term, they do not stretch
    its gradient: (1/Z) Σ w_n ∇ℓ_n ∇ℓ_nᵀ with ℓ_n unweighted. Masked positions count nothing.
    ``reduction="sum"``: Z = 1. See Kunstner, Balles & Hennig 2019, eq. 3, for what it is not.

    Symmetric, positive semidefinite.

    Args:
        model_func: See :class:`~curvops.operators.curvature.CurvatureLinearOperator`.
        loss_func: A loss that is a sum of one term per datum.
        params: As there.
        data: As there.
        per: For predictions with several positions per datum (``[N, C, *]`` under cross
            entropy, ``[N, *, C]`` otherwise): each ``"position"`` is a term of its own, or a
            whole ``"datum"`` is one, g_n = Σ_t √w_nt ∇ℓ_nt.
        options: Further arguments, as there.

    Raises:
        InputError: If the loss is not separable, or ``per`` is neither.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(1, 1, bias=False)
        >>> model.weight.data.fill_(1.0)
        tensor([[1.]])
        >>> data = [(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))]
        >>> EFLinearOperator(model, nn.MSELoss(), model, data).to_dense()  # (2² + 8²)/2
        tensor([[34.]])
    """

    SELF_ADJOINT = True
    POSITIVE_SEMIDEFINITE = True
    _OPTIONS = ("per",)

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[..., Any],
        params: Params,
        data: Iterable[Any],
        *,
        per: Per = "position",
        **options: Any,
    ) -> None:
        super().__init__(model_func, loss_func, params, data, per=per, **options)

    def _bind(self, risk: EmpiricalRisk, *, per: Per = "position", **keeping: Any) -> None:
        super()._bind(risk, **keeping)
        self._per = checked_per(per)
        risk.require_separable()

    def gram_factor(self) -> tuple[FactorLinearOperator, float]:
        """Return V and c with F = V Vᵀ + cI: individual gradients / √Z, c the weight decay.

        V is ``[P, r]`` with one column per term, r = N where each datum is one; with it,
        :func:`~curvops.linalg.logdet.logdet` is exact where r is small.
        """
        return FactorLinearOperator(self.risk, self._roots), self.risk.weight_decay

    def _roots(self, prediction: Tensor, y: Any) -> Iterator[tuple[Tensor, None]]:
        """Yield the scores of a batch, one position of every datum at a time."""
        loss = self.risk.loss_func
        scores = loss.scores(prediction.detach(), y)
        if self._per == "datum":
            yield scores, None
            return
        terms = loss.to_terms(scores)
        for t in range(terms.shape[1]):
            alone = torch.zeros_like(terms)
            alone[:, t] = terms[:, t]
            yield loss.from_terms(alone, scores), None

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        scores = lin.loss.scores(lin.prediction.detach(), lin.batch.y)
        return lambda v: lin.vjp(outer(lin, scores, lin.jvp(v), self._per))

    def _product(self) -> Product:
        return replace(super()._product(), scores=self._scores)

    def _scores(self, lin: Linearization, extras: Sequence[Tensor]) -> list[Tensor] | None:
        scores = lin.loss.scores(lin.prediction.detach(), lin.batch.y)
        return [scores] if has_one_term_per_datum(lin, self._per) else None


def has_one_term_per_datum(lin: Linearization, per: Per) -> bool:
    """Tell whether a datum of the batch is one term: one position, or all of them together."""
    return per == "datum" or lin.loss.to_terms(lin.prediction).shape[1] == 1


def outer(lin: Linearization, scores: Tensor, tangent: Tensor, per: Per) -> Tensor:
    """Return s (sᵀ t) for every term, of the prediction's shape."""
    s, t = lin.loss.to_terms(scores), lin.loss.to_terms(tangent)
    inner = (s * t).sum(-1, keepdim=True)
    if per == "datum":
        inner = inner.sum(1, keepdim=True)
    return lin.loss.from_terms(s * inner, scores)


def checked_per(per: str) -> Per:
    """Return ``per`` if it is one of the two."""
    if per not in ("position", "datum"):
        raise InputError(f'per must be "position" or "datum", got {per!r}.')
    return per  # type: ignore[return-value]
