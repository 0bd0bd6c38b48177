"""The diagonal of the generalized Gauss–Newton matrix, exact or by Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from curvops.autodiff import Params
from curvops.errors import InputError
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.operators.fisher import checked_samples, uniform_draws
from curvops.risk import EmpiricalRisk
from curvops.rng import as_seed
from curvops.tensors import CompensatedSum

Mode = Literal["exact", "mc"]


class GGNDiagonalLinearOperator(CurvatureLinearOperator, DiagonalLinearOperator):
    """The diagonal of the GGN, diag(G)_i = (1/Z) Σ_n Σ_r σ_nr (J_nᵀ s_nr)²_i + λ.

    ∇²_f ℓ_n = Σ_r σ_nr s_nr s_nrᵀ with C columns per position (``"exact"``), or s_nr the scores
    of labels drawn from the model (``"mc"``), unbiased where the Fisher is the GGN (Dangel,
    Kunstner & Hennig 2020, appendix C). It costs one individual gradient of every datum per
    column; they are never all kept.

    Computed at the first use and again when the parameters have changed.

    Args:
        model_func: See :class:`~curvops.operators.curvature.CurvatureLinearOperator`.
        loss_func: A loss that is a sum of one term per datum.
        params: As there.
        data: As there.
        mode: ``"exact"`` or ``"mc"``.
        mc_samples: Labels drawn per term under ``"mc"``.
        seed: Seed of the draws: an integer, or a ``torch.Generator``.
        options: Further arguments, as there.

    Raises:
        InputError: If the loss is not separable, or an option is impossible.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False)
        >>> X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> data = [(X, torch.zeros(2, 1))]
        >>> GGNDiagonalLinearOperator(model, nn.MSELoss(), model, data).diagonal.round()
        tensor([10., 20.])
    """

    _OPTIONS = ("mode", "mc_samples", "seed")

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[..., Any],
        params: Params,
        data: Iterable[Any],
        *,
        mode: Mode = "exact",
        mc_samples: int = 1,
        seed: int | torch.Generator = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            model_func,
            loss_func,
            params,
            data,
            mode=mode,
            mc_samples=mc_samples,
            seed=seed,
            **options,
        )

    def _bind(
        self,
        risk: EmpiricalRisk,
        *,
        mode: Mode = "exact",
        mc_samples: int = 1,
        seed: int | torch.Generator = 0,
        **keeping: Any,
    ) -> None:
        super()._bind(risk, **keeping)
        if mode not in ("exact", "mc"):
            raise InputError(f'mode must be "exact" or "mc", got {mode!r}.')
        self._mode = mode
        self._mc_samples = checked_samples(mc_samples)
        self._seed = as_seed(seed)
        self._computed: tuple[list[tuple[int, int]], Tensor] | None = None
        self.POSITIVE_SEMIDEFINITE = mode == "mc" or risk.loss_func.convex
        risk.require_separable()
        if mode == "mc":
            prediction, y = next(iter(risk.predictions()))
            risk.loss_func.sampled_scores(prediction, y, uniform_draws(0, 1)[0])

    def _matmat(self, X: Tensor) -> Tensor:
        return DiagonalLinearOperator._matmat(self, X)

    @property
    def _entries(self) -> Tensor:  # type: ignore[override]
        versions = [(p.data_ptr(), p._version) for p in self.risk.params.values()]
        if self._computed is None or self._computed[0] != versions:
            self._computed = versions, self._compute()
        return self._computed[1]

    @torch.inference_mode(False)
    def _compute(self) -> Tensor:
        like = torch.empty(self.shape[0], dtype=self.dtype, device=self.device)
        total = CompensatedSum(like)
        for squares in self.risk.squared_pullbacks(self._roots()):
            total.add(squares)
        return total.value / self.risk.normalizer + self.risk.weight_decay

    def _roots(self) -> Callable[[Tensor, Any], Iterator[tuple[Tensor, Tensor | None]]]:
        loss = self.risk.loss_func
        if self._mode == "exact":
            return loss.hessian_roots
        draws = uniform_draws(self._seed, self._mc_samples)
        scale = self._mc_samples**-0.5

        def sampled(prediction: Tensor, y: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
            for draw in draws:
                yield scale * loss.sampled_scores(prediction, y, draw), None

        return sampled
