"""The Monte-Carlo Fisher matrix, with labels drawn from the model's own distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curvops.autodiff import BlockMap, Blocks, ExtraStream, Linearization, Params, Product
from curvops.errors import InputError
from curvops.losses import Draw
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.operators.ef import Per, checked_per, has_one_term_per_datum, outer
from curvops.risk import EmpiricalRisk
from curvops.rng import as_seed


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
        options: Further arguments, as there.

    Raises:
        InputError: If the loss has no predictive distribution, or an option is impossible.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 3)
        >>> data = [(torch.randn(4, 2), torch.tensor([0, 1, 2, 1]))]
        >>> F = FisherMCLinearOperator(model, nn.CrossEntropyLoss(), model, data, seed=1)
        >>> torch.allclose(F.to_dense(), F.to_dense())
        True
    """

    SELF_ADJOINT = True
    POSITIVE_SEMIDEFINITE = True
    _OPTIONS = ("mc_samples", "seed", "per")

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
        **options: Any,
    ) -> None:
        super().__init__(
            model_func,
            loss_func,
            params,
            data,
            mc_samples=mc_samples,
            seed=seed,
            per=per,
            **options,
        )

    def _bind(
        self,
        risk: EmpiricalRisk,
        *,
        mc_samples: int = 1,
        seed: int | torch.Generator = 0,
        per: Per = "position",
        **keeping: Any,
    ) -> None:
        super()._bind(risk, **keeping)
        self._mc_samples = checked_samples(mc_samples)
        self._seed = as_seed(seed)
        self._per = checked_per(per)
        prediction, y = next(iter(risk.predictions()))
        risk.loss_func.sampled_scores(prediction, y, uniform_draws(0, 1)[0])

    def _extras(self) -> ExtraStream:
        return _SampledScores(self._seed, self._mc_samples)

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        def apply(v: Blocks) -> Blocks:
            tangent = lin.jvp(v)
            u = outer(lin, extras[0], tangent, self._per)
            for scores in extras[1:]:
                u = u + outer(lin, scores, tangent, self._per)
            return lin.vjp(u)

        return apply

    def _product(self) -> Product:
        return replace(super()._product(), scores=self._scores)

    def _scores(self, lin: Linearization, extras: Sequence[Tensor]) -> list[Tensor] | None:
        return list(extras) if has_one_term_per_datum(lin, self._per) else None


class _SampledScores:
    """The scaled scores of drawn labels, batch after batch."""

    def __init__(self, seed: int, samples: int) -> None:
        self._generators = generators(seed, samples)

    def __call__(self, lin: Linearization) -> list[Tensor]:
        f, y = lin.prediction.detach(), lin.batch.y
        scale = len(self._generators) ** -0.5
        return [scale * lin.loss.sampled_scores(f, y, uniform(g)) for g in self._generators]

    def state(self) -> list[Tensor]:
        return [g.get_state() for g in self._generators]

    def resume(self, state: list[Tensor]) -> None:
        for generator, saved in zip(self._generators, state, strict=True):
            generator.set_state(saved)


def generators(seed: int, samples: int) -> list[torch.Generator]:
    """Return one generator per sample, to be read in the order of the data.

    On the CPU they yield one number after the other, so the draws of a datum do not depend on
    the batch it is in.
    """

    def start(sample: int) -> torch.Generator:
        state = np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))

    return [start(sample) for sample in range(samples)]


def uniform(generator: torch.Generator) -> Draw:
    """Return a source of uniform float64 numbers."""
    return lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)


def uniform_draws(seed: int, samples: int) -> list[Draw]:
    """Return one stream of uniform numbers per sample (see :func:`generators`)."""
    return [uniform(generator) for generator in generators(seed, samples)]


def checked_samples(mc_samples: int) -> int:
    """Return ``mc_samples`` if it is a positive integer."""
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, int) or mc_samples < 1:
        raise InputError(f"mc_samples must be a positive integer, got {mc_samples!r}.")
    return mc_samples
