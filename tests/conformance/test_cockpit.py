"""Agreement with cockpit, where it works: SGD, layers that BackPACK knows, batches of one size.

It is not a dependency of the tests: install ``cockpit-for-pytorch`` to run these. It imports
``pkg_resources``, which setuptools has dropped; a stand-in lets it run.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from backpack import extend
from torch import Tensor, nn

from curvops.training import Alpha, EarlyStopping, GradientNoise, Monitor
from tests.cases import randint, randn, seeded

B = 16

if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
    stand_in = ModuleType("pkg_resources")
    stand_in.DistributionNotFound = ImportError  # type: ignore[attr-defined]
    stand_in.get_distribution = lambda _: SimpleNamespace(version="")  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = stand_in

cockpit = pytest.importorskip("cockpit", reason="cockpit-for-pytorch is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")


def net() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5)).double()


def data() -> list[tuple[Tensor, Tensor]]:
    return [(randn(B, 20, seed=i), randint(5, B, seed=50 + i)) for i in range(6)]


def theirs() -> dict[int, dict[str, Any]]:
    from cockpit import quantities
    from cockpit.utils.schedules import linear

    model, loss_func = extend(net()), extend(nn.CrossEntropyLoss())
    optimizer, always = torch.optim.SGD(model.parameters(), 0.1), linear(interval=1)
    plain = ("Alpha", "NormTest", "InnerTest", "OrthoTest")
    watch = [getattr(quantities, name)(always) for name in plain]
    watch += [
        quantities.MeanGSNR(always, epsilon=0.0),
        quantities.EarlyStopping(always, epsilon=0.0),
    ]
    pit = cockpit.Cockpit(model.parameters(), quantities=watch)
    for i, (X, y) in enumerate(data()):
        prediction = model(X)
        loss = loss_func(prediction, y)
        told = {
            "batch_size": B, "loss": loss, "optimizer": optimizer,
            "individual_losses": nn.functional.cross_entropy(prediction, y, reduction="none"),
        }  # fmt: skip
        with pit(i, info=told):
            loss.backward(create_graph=pit.create_graph(i))
        optimizer.step()
        optimizer.zero_grad()
    found: dict[int, dict[str, Any]] = pit.get_output()
    return found


def test_the_same_numbers() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    quantities = [Alpha(), GradientNoise(coordinates=None), EarlyStopping(every=1)]
    monitor = Monitor(model, nn.CrossEntropyLoss(), optimizer, quantities)
    for X, y in data():
        monitor.backward(X, y)
        optimizer.step()
        optimizer.zero_grad()
    monitor.close()
    expected = theirs()
    for name, quantity, field in (
        ("Alpha", "alpha", "alpha"),
        ("NormTest", "gradient_noise", "norm_test"),
        ("InnerTest", "gradient_noise", "inner_product_test"),
        ("OrthoTest", "gradient_noise", "orthogonality_test"),
        ("MeanGSNR", "gradient_noise", "signal_to_noise"),
        ("EarlyStopping", "early_stopping", "evidence"),
    ):
        # Their signal-to-noise ratio divides by the biased variance.
        factor = (B - 1) / B if name == "MeanGSNR" else 1.0
        values = [v[name] * factor for _, v in sorted(expected.items()) if name in v]
        assert monitor.run.series(quantity, field)[1] == pytest.approx(values, rel=1e-9), name
