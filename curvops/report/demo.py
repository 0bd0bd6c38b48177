"""The bundled problem: a small network on scikit-learn's digits, trained to a true minimum.

Double precision, a smooth activation and weight decay make it a regular one: full-batch L-BFGS
makes the gradient vanish and every eigenvalue of the Hessian is positive there, so that each
quantity of the report is defined and can be checked against the dense answer.
"""

from __future__ import annotations

import torch
from torch import nn

from curvops.datasets import batches, digits
from curvops.risk import EmpiricalRisk
from curvops.tensors import Space

HIDDEN = 24
WEIGHT_DECAY = 1e-3
_MAX_ITERATIONS = 3000
_GRADIENT_TOLERANCE = 1e-7


def digits_problem(seed: int = 0, device: torch.device | str | None = None) -> EmpiricalRisk:
    """Train a 64-24-10 tanh network on the 1797 digits and return its risk at the minimum.

    The risk is the mean cross entropy plus ``WEIGHT_DECAY / 2 * |theta|^2``; ``P = 1810``.

    Args:
        seed: Seeds the initial parameters; the global generator is not touched.
        device: Where the network and the data live.

    Returns:
        The risk, in float64, in batches of 256.

    Raises:
        MissingDependencyError: If scikit-learn, which holds the digits, is not installed.
    """
    images, labels = digits(torch.float64)
    images, labels = images.to(device), labels.to(device)
    model = new_network(seed).to(device)
    _minimise(model, images, labels)
    data = batches(images, labels, 256)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, weight_decay=WEIGHT_DECAY)


def new_network(seed: int) -> nn.Sequential:
    """Return the network, drawn from its own generator."""
    generator = torch.Generator().manual_seed(seed)

    def linear(inputs: int, outputs: int) -> nn.Module:
        # Built without torch's own initialisation, which would advance the global generator.
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
        nn.init.normal_(layer.weight, std=inputs**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        return layer

    return nn.Sequential(nn.Flatten(), linear(64, HIDDEN), nn.Tanh(), linear(HIDDEN, 10))


def _minimise(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Minimise the regularised loss with full-batch L-BFGS."""
    params = list(model.parameters())
    space = Space.of(dict(model.named_parameters()))
    optimizer = torch.optim.LBFGS(
        params,
        max_iter=_MAX_ITERATIONS,
        max_eval=2 * _MAX_ITERATIONS,
        history_size=60,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss = loss + WEIGHT_DECAY / 2 * space.flatten(params).square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    optimizer.zero_grad(set_to_none=True)
