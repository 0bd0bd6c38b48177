"""A short monitored training run of the demo's network, for the report to tell about."""

from __future__ import annotations

import torch
from torch import nn

from curvops.datasets import digits
from curvops.report.demo import new_network
from curvops.training import (
    Alpha,
    EarlyStopping,
    ExactAlpha,
    GradientNoise,
    HessianTrace,
    Monitor,
    Run,
    Sharpness,
    SubspaceOverlap,
)

EPOCHS = 6
BATCH_SIZE = 128
LEARNING_RATE = 0.3
MOMENTUM = 0.5


def demo_run(seed: int = 0) -> Run:
    """Train a fresh 64-24-10 tanh network on the digits by SGD, and return what was measured.

    Args:
        seed: Seeds the network and the order of the data; the global generator is not touched.

    Raises:
        MissingDependencyError: If scikit-learn, which holds the digits, is not installed.
    """
    images, labels = digits(torch.float32)
    model, loss = new_network(seed).float(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    quantities = [
        Alpha(),
        ExactAlpha(every=9),
        GradientNoise(),
        EarlyStopping(every=3),
        Sharpness(every=9, k=3),
        SubspaceOverlap(every=9, k=3),
        HessianTrace(every=18),
    ]
    generator = torch.Generator().manual_seed(seed)
    data = [(images, labels)]
    with Monitor(model, loss, optimizer, quantities, data=data, seed=seed) as monitor:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
                monitor.backward(images[rows], labels[rows])
                optimizer.step()
                optimizer.zero_grad()
    return monitor.run
