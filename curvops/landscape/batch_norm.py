"""Statistics of batch normalisation that belong to the point at which a risk is evaluated.

The running averages in a module are those of the parameters it was trained to. Anywhere else they
are wrong: the middle of a segment between two nets looks like a barrier that is not there. So they
are estimated again at every point, from a pass over the data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvops.errors import DataError
from curvops.losses.metrics import Metric
from curvops.tensors import Space

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk


def batch_norms(module: nn.Module | None) -> list[_BatchNorm]:
    """Return the layers of a module that keep running averages of a batch's statistics."""
    modules = () if module is None else module.modules()
    return [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]


def isolated(risk: EmpiricalRisk) -> EmpiricalRisk:
    """Return a risk on a deep copy of its module, whose modes and buffers may be changed."""
    other = copy.copy(risk)
    other._model = copy.deepcopy(risk._model)
    other._model.clone_buffers = False
    other._ensemble = None
    return other


class Renormalized:
    """A risk on a copy of its module, whose running averages follow the point.

    Each average is over the values that its layer sees when the whole data pass through it, batch
    by batch, with every batch normalised by its own statistics as in training; batches count by
    their size.

    Args:
        risk: The risk; its module is left untouched.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = isolated(risk)
        self._layers = batch_norms(self._risk.model)

    @property
    def space(self) -> Space:
        """The parameter space of the risk."""
        return self._risk.space

    def at(self, theta: Tensor) -> EmpiricalRisk:
        """Return the risk at a point ``[P]``, with the statistics that belong to it.

        It is good until the next point is asked for.

        Raises:
            DataError: If a batch is too small to have a variance.
        """
        risk = self._risk.at(theta)
        seen = dict.fromkeys(self._layers, 0)
        modes = [layer.training for layer in self._layers]

        def weigh(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(layer, _BatchNorm)
            size = inputs[0].numel() // layer.num_features
            seen[layer] += size
            layer.momentum = size / seen[layer]

        hooks = [layer.register_forward_pre_hook(weigh) for layer in self._layers]
        try:
            for layer in self._layers:
                layer.reset_running_stats()
                layer.train()
            for _ in risk.predictions():
                pass
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "a batch holds a single value for each channel, so it has no variance to "
                "normalise by. Use larger batches, or drop the last one."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            for layer, training in zip(self._layers, modes, strict=True):
                layer.train(training)
        return risk

    def losses(self, thetas: Tensor) -> Tensor:
        """Return the losses at points ``[P, K]``, each with its own statistics, ``[K]``."""
        return _stacked([self.at(theta).loss() for theta in thetas.T], thetas)

    def metrics(self, thetas: Tensor, metric: Metric) -> Tensor:
        """Return averages over the data at points ``[P, K]``, likewise, ``[K]``."""
        return _stacked([self.at(theta).metrics(theta, metric)[0] for theta in thetas.T], thetas)

    def losses_and_metrics(
        self, thetas: Tensor, metrics: Mapping[str, Metric]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return both at points ``[P, K]``, from the same statistics."""
        found = [self.at(theta).losses_and_metrics(theta, metrics) for theta in thetas.T]
        averages = {name: _stacked([f[1][name][0] for f in found], thetas) for name in metrics}
        return _stacked([f[0][0] for f in found], thetas), averages


def _stacked(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values) if values else like.new_zeros(0)
