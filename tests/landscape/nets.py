"""Small nets on the digits, trained in a second, for everything that joins two of them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, datasets
from tests import cases

NUM = 1200


@cache
def images() -> tuple[Tensor, Tensor]:
    X, y = datasets.digits()
    return X[:NUM], y[:NUM]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


MAKE = {"mlp": mlp, "cnn": cnn, "normed": normed}


@cache
def trained(name: str, seed: int, epochs: int = 15) -> nn.Module:
    X, y = images()
    with cases.seeded(seed):
        net = MAKE[name]()
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(X)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
                optimizer.step()
    net.zero_grad()
    return net.eval()


def risk_of(net: nn.Module, batch_size: int = 400) -> EmpiricalRisk:
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), net, datasets.batches(*images(), batch_size))


def pair(name: str) -> tuple[EmpiricalRisk, nn.Module, nn.Module]:
    """A risk and two nets that were trained from different starts."""
    return risk_of(trained(name, 0)), trained(name, 0), trained(name, 1)
