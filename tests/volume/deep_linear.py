"""Two-layer linear networks at zero, and their learning coefficient at finite temperature.

L = ½‖W₂W₁‖² with W₁ [h, m] and W₂ [n, h] is the mean over data of ½‖W₂W₁x‖² when the data's second
moment is one, as that of Gaussian inputs is.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy.integrate import cumulative_trapezoid
from torch import Tensor, nn

from curvops import EmpiricalRisk


class TwoLayers(nn.Module):
    """x ↦ W₂ W₁ x, at zero."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(hidden, inputs, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(outputs, hidden, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first.T @ self.second.T


def half_square(prediction: Tensor, target: Tensor) -> Tensor:
    """The negative log-likelihood of unit noise, averaged over data."""
    return 0.5 * (prediction - target).square().sum(1).mean()


def deep_linear(inputs: int, hidden: int, outputs: int) -> EmpiricalRisk:
    """The population's risk: √m times the unit vectors have the second moment one."""
    X = math.sqrt(inputs) * torch.eye(inputs, dtype=torch.float64)
    data = [(X, torch.zeros(inputs, outputs, dtype=torch.float64))]
    model = TwoLayers(inputs, hidden, outputs)
    return EmpiricalRisk(model, half_square, model, data, reduction="mean")


def exact(inputs: int, hidden: int, outputs: int, heat: float, gamma: float = 1.0) -> float:
    """nβ E[L] under exp(-nβ L - γ/2 ‖θ‖²).

    W₂ is integrated by hand, which leaves the eigenvalues s of W₁W₁ᵀ with the density
    Π s^((m-h-1)/2) exp(-γs/2) (nβ s + γ)^(-n/2) Π_{i<j} (s_j - s_i) on s₁ < … < s_h. The product
    of differences is a determinant of powers, so the integral is a sum of iterated ones.
    """
    step = 1e-3
    up, down = (
        _log_normaliser(inputs, hidden, outputs, heat * math.exp(d), gamma) for d in (step, -step)
    )
    return -(up - down) / (2 * step)


def _log_normaliser(m: int, h: int, n: int, heat: float, gamma: float) -> float:
    u = np.linspace(-40, 8, 20001)
    s = np.exp(u)
    log_weight = (m - h - 1) / 2 * u - gamma * s / 2 - n / 2 * np.log(heat * s + gamma) + u
    weight = np.exp(log_weight - log_weight.max())
    total = 0.0
    for powers in itertools.permutations(range(h)):
        inner = np.ones_like(u)
        for power in powers:
            inner = cumulative_trapezoid(s**power * weight * inner, u, initial=0)
        total += np.linalg.det(np.eye(h)[list(powers)]) * inner[-1]
    return math.log(abs(total)) + h * float(log_weight.max())
