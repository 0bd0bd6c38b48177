"""The trained networks whose basins are measured: recipes that anyone can run again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvops.datasets import DEBIAN_FASHION_MNIST, StrPath, batches, digits, fashion_mnist
from curvops.risk import EmpiricalRisk

DIGITS_STD = 1.3975
"""The prior's standard deviation in the published runs on digits."""


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        risk: Its loss on the training data, without the L2 term.
        optimizer: What trained it.
    """

    risk: EmpiricalRisk
    optimizer: torch.optim.Optimizer


def digits_net(seed: int = 0) -> Trained:
    """Train the MLP 64-64-10 (GELU, P = 4810) on 1024 digits; the published recipe.

    AdamW at 0.05 with a cosine to zero, 25 epochs of batches of 64, L2 5e-4 in the loss, weights
    drawn from N(0, 1/64) and biases from N(0, 1), pixels from 0 to 1; float32.

    Args:
        seed: Of the initial parameters and of the order of the data.

    Source:
        A. Scherlis and N. Belrose, arXiv 2501.18812, section 4.
    """
    images, labels = digits(torch.float32)
    X, y = images.flatten(1)[:1024], labels[:1024]
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(_linear(64, 64, generator), nn.GELU(), _linear(64, 10, generator))
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=0.05, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25 * 16)
    for _ in range(25):
        for part in torch.randperm(1024, generator=generator).split(64):
            optimizer.zero_grad()
            squares = torch.stack([p.square().sum() for p in params]).sum()
            (F.cross_entropy(model(X[part]), y[part]) + 5e-4 / 2 * squares).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return Trained(EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches(X, y)), optimizer)


def small_cnn(
    seed: int = 0, root: StrPath = DEBIAN_FASHION_MNIST, num_data: int = 1000
) -> EmpiricalRisk:
    """Train the CNN of 1710 parameters on Fashion-MNIST: conv 1→1 3×3, pool 2, linear 169→10.

    Full-batch Adam on the first images, then L-BFGS, in float64, with a weight decay of 1e-5.

    Args:
        seed: Of the initial parameters, N(0, 0.5²).
        root: Where the idx files lie.
        num_data: How many images.

    Returns:
        The risk: the mean cross entropy, without the weight decay.

    Raises:
        DataError: If the files are not there.
    """
    images, labels = fashion_mnist(root, dtype=torch.float64)
    X, y = images[:num_data], labels[:num_data]
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(169, 10)
    ).double()
    params = list(model.parameters())
    with torch.no_grad():
        for p in params:
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))

    def objective() -> Tensor:
        squares = sum((p.square().sum() for p in params), start=torch.zeros(()).double())
        return F.cross_entropy(model(X), y) + 1e-5 / 2 * squares

    optimizer: torch.optim.Optimizer = torch.optim.Adam(params, lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        objective().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches(X, y, 250))


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer with weights from N(0, 1/inputs) and biases from N(0, 1)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.normal_(layer.weight, std=inputs**-0.5, generator=generator)
    nn.init.normal_(layer.bias, generator=generator)
    return layer
