r"""The loss of a risk, tempered and tied to a point, as a density that chains can sample.

.. math::
    \pi(\theta) \propto \exp\big(-n\beta \, L(\theta)
        - \tfrac{\gamma}{2} \|\theta - \theta^*\|^2\big),
    \qquad L = \frac{Z}{n} \cdot \text{risk}

With :math:`Z` the risk's normaliser, :math:`L` is the total loss over the number of data, whichever
reduction the risk has: for a negative log-likelihood :math:`n\beta L` is :math:`\beta` times it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from curvops.autodiff.keeping import Columns
from curvops.volume.moves import Points
from curvops.volume.spectral_form import Root, SpectralForm

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

_LEAST = 1e-8
"""Flat directions are not stretched beyond this part of the largest precision, at first."""


@dataclass(frozen=True)
class LocalizedPosterior:
    r"""A target for chains in coordinates :math:`z` with :math:`\theta = \theta^* + S z`.

    Attributes:
        risk: The risk, over all data or over a mini-batch.
        center: ``θ*``, flat ``[P]``.
        loss: The risk at the centre, float64, so that the log-density is 0 there.
        weight: ``nβ Z / n``, what the risk is multiplied with.
        localization: ``γ``.
        frame: ``S``, the identity by default.
        columns: How many points go through the model together.
    """

    risk: EmpiricalRisk
    center: Tensor
    loss: Tensor
    weight: float
    localization: float
    frame: Root | None = None
    columns: Columns = "auto"

    @classmethod
    def of(
        cls,
        risk: EmpiricalRisk,
        inverse_temperature: float,
        localization: float,
        columns: Columns = "auto",
    ) -> LocalizedPosterior:
        """Return the posterior at a risk's own point, which it evaluates."""
        return cls(
            risk=risk,
            center=risk.theta,
            loss=risk.loss().double(),
            weight=inverse_temperature * risk.normalizer / risk.num_data,
            localization=localization,
            columns=columns,
        )

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities ``[M]`` and gradients ``[M, P]`` at points z ``[M, P]``."""
        offset = self.offset(z)
        losses, gradients = self.risk.losses_and_gradients(
            (self.center + offset).T, columns=self.columns
        )
        assert isinstance(gradients, Tensor)  # in the format of the points
        value = -self.weight * (losses.double() - self.loss) - self._pull(offset)
        gradient = -self.weight * gradients.T - self.localization * offset
        return value, gradient if self.frame is None else self.frame.adjoint(gradient.T).T

    def offset(self, z: Tensor) -> Tensor:
        """Return ``θ - θ*``, ``[M, P]``."""
        return z if self.frame is None else self.frame.forward(z.T).T

    def distances(self, z: Tensor) -> Tensor:
        """Return ``‖θ - θ*‖``, ``[M]``, float64."""
        return self.offset(z).double().square().sum(1).sqrt()

    def rises(self, points: Points) -> Tensor:
        """Return ``nβ (L(θ) - L(θ*))``, ``[M]``, float64, without another evaluation."""
        return -points.value - self._pull(self.offset(points.x))

    def loss_gradients(self, points: Points) -> Tensor:
        """Return the risk's gradients ``[M, P]``, in the parameters' own coordinates only."""
        assert self.frame is None
        return -(points.gradient + self.localization * points.x) / self.weight

    def framed(self, frame: Root | None) -> LocalizedPosterior:
        """Return the same density in other coordinates."""
        return replace(self, frame=frame)

    def round_frame(self, form: SpectralForm) -> Root:
        """Return the frame in which a normal distribution of this curvature is a standard one."""
        largest = self.weight * form.largest() + self.localization

        def scale(curvature: Tensor) -> Tensor:
            precision = self.weight * curvature + self.localization
            return precision.clamp(min=_LEAST * largest).rsqrt() if largest else curvature + 1.0

        return form.root(scale)

    def _pull(self, offset: Tensor) -> Tensor:
        return 0.5 * self.localization * offset.double().square().sum(1)


@contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """Put a module in eval mode; on leaving, every part of it is in the mode it was in."""
    before = [] if module is None else [(part, part.training) for part in module.modules()]
    try:
        for part, _ in before:
            part.training = False
        yield
    finally:
        for part, mode in before:
            part.training = mode
