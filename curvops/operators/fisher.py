"""The Monte-Carlo Fisher matrix, with labels drawn from the model's own distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvops.autodiff import Linearization, Params
from curvops.errors import InputError
from curvops.losses import Draw
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.operators.ef import Per, checked_per, outer
from curvops.passes import LinearMap
from curvops.risk import EmpiricalRisk


class FisherMCLinearOperator(CurvatureLinearOperator):
    """The Fisher (1/Z) Σ_n (1/M) Σ_m ĝ_nm ĝ_nmᵀ + λI, ĝ_nm at labels drawn from the model.

    ĝ = √w ∇_θ ℓ(f, ŷ) with ŷ ~ softmax f (cross entropy), N(f, ½) (MSE), Bernoulli(σ(f)) (BCE
    with logits), Bernoulli(f) (BCE), exp f (NLL), N(f, v) (Gaussian NLL). The observed label
    decides the weight, the drawn one the gradient; for CE, MSE and BCE with logits the mean
    over seeds is the GGN, with weights, masks, ``pos_weight`` and smoothing (Kunstner, Balles
    & Hennig 2019, eq. 2; Martens 2020, section 9).

    The draws depend on ``seed`` and the order of the data alone: not on the global generators,
    not on how the data are cut into batches, and they are the same in every product.

    Args:
        model_func: See :class:`~curvops.operators.curvature.CurvatureLinearOperator`.
        loss_func: A loss with a predictive distribution.
        params: As there.
        data: As there.
        mc_samples: Labels drawn per term, M.
        seed: An integer, or a ``torch.Generator`` from which one is drawn.
        per: As in :class:`~curvops.operators.ef.EFLinearOperator`.
        risk_options: Arguments of :class:`~curvops.risk.EmpiricalRisk`.

    Raises:
        InputError: If the loss has no predictive distribution, or an option is impossible.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 3)
        >>> data = [(torch.randn(4, 2), torch.tensor([0, 1, 2, 1]))]
        >>> F = FisherMCLinearOperator(model, nn.CrossEntropyLoss(), model, data, seed=1)
        >>> bool((F.to_dense() == F.to_dense()).all())
        True
    """

    SELF_ADJOINT = True
    POSITIVE_SEMIDEFINITE = True

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[..., Any],
        params: Params,
        data: Iterable[Any],
        *,
        mc_samples: int = 1,
        seed: int | torch.Generator = 0,
        per: Per = "position",
        **risk_options: Any,
    ) -> None:
        risk = EmpiricalRisk(model_func, loss_func, params, data, **risk_options)
        self._bind(risk, mc_samples=mc_samples, seed=seed, per=per)

    def _bind(
        self,
        risk: EmpiricalRisk,
        *,
        mc_samples: int = 1,
        seed: int | torch.Generator = 0,
        per: Per = "position",
    ) -> None:
        super()._bind(risk)
        self._mc_samples = checked_samples(mc_samples)
        self._seed = as_seed(seed)
        self._per = checked_per(per)
        self._draws: list[Draw] = []
        prediction, y = next(iter(risk.predictions()))
        risk.loss_func.sampled_scores(prediction, y, uniform_draws(0, 1)[0])

    def _matmat(self, X: Tensor) -> Tensor:
        self._draws = uniform_draws(self._seed, self._mc_samples)
        return super()._matmat(X)

    def _chain(self, lin: Linearization) -> LinearMap:
        f, y = lin.prediction.detach(), lin.batch.y
        scale = self._mc_samples**-0.5
        samples = [scale * lin.loss.sampled_scores(f, y, draw) for draw in self._draws]

        def apply(v: Tensor) -> list[Tensor]:
            tangent = lin.jvp(self.risk.blocks(v))
            u = outer(lin, samples[0], tangent, self._per)
            for scores in samples[1:]:
                u = u + outer(lin, scores, tangent, self._per)
            return lin.vjp(u)

        return apply


def uniform_draws(seed: int, samples: int) -> list[Draw]:
    """Return one stream of uniform numbers per sample, read in the order of the data.

    Each is a CPU generator that yields one number after the other, so the draws of a datum do
    not depend on the batch it is in.
    """

    def stream(sample: int) -> Draw:
        state = np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        return lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)

    return [stream(sample) for sample in range(samples)]


def as_seed(seed: int | torch.Generator) -> int:
    """Return a nonnegative integer seed; one is drawn from a generator."""
    if isinstance(seed, torch.Generator):
        draw = torch.randint(2**62, (1,), generator=seed, device=seed.device)
        return int(draw)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed must be a nonnegative int or a torch.Generator, got {seed!r}.")
    return int(seed)


def checked_samples(mc_samples: int) -> int:
    """Return ``mc_samples`` if it is a positive integer."""
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, int) or mc_samples < 1:
        raise InputError(f"mc_samples must be a positive integer, got {mc_samples!r}.")
    return mc_samples
