"""Callbacks: the events of Lightning's and transformers' loops, in their order."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops.errors import InputError, MissingDependencyError
from curvops.training import (
    Alpha,
    GradientNoise,
    Monitor,
    Sharpness,
    hugging_face_callback,
    lightning_callback,
)
from tests.cases import randint, randn, seeded

SKIP = "not installed here: its wheels bring a torchvision that does not fit the CPU's torch"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.logged: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def log_dict(self, values: dict[str, float]) -> None:
        self.logged.update(values)


def net() -> Net:
    with seeded(0):
        return Net().double()


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    return [(randn(8, 6, seed=i), randint(3, 8, seed=50 + i)) for i in range(count)]


def quantities() -> list[Any]:
    return [Alpha(), GradientNoise(), Sharpness(every=2)]


def reference(accumulate: int) -> tuple[nn.Module, Monitor]:
    """The same loop by hand."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    monitor = Monitor(model, nn.CrossEntropyLoss(), optimizer, quantities(), probe_size=8)
    for i, (X, y) in enumerate(batches()):
        monitor.backward(X, y, scale=1 / accumulate)
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    monitor.close()
    return model, monitor


def same(a: Monitor, b: Monitor, rel: float = 1e-8) -> None:
    for quantity, name in (
        ("alpha", "alpha"),
        ("gradient_noise", "trace"),
        ("sharpness", "sharpness"),
    ):
        (steps, values), (others, expected) = (m.run.series(quantity, name) for m in (a, b))
        assert steps == others
        assert values == pytest.approx(expected, rel=rel)
        assert values


# --------------------------------------------------------------------- Lightning


@pytest.fixture
def fake_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lightning.pytorch")
    module.Callback = type("Callback", (), {"is_lightning": True})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "lightning" or None)


def lightning_loop(model: Net, callback: Any, accumulate: int = 1) -> None:
    """Lightning's order of events: the passes run in a closure, within the optimizer's step."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    trainer = SimpleNamespace(optimizers=[optimizer])
    callback.on_train_start(trainer, model)
    for i, batch in enumerate(batches()):
        callback.on_train_batch_start(trainer, model, batch, i)

        def closure(batch: Any = batch, first: bool = i % accumulate == 0) -> None:
            X, y = batch
            loss = nn.functional.cross_entropy(model(X), y) / accumulate
            if first:
                optimizer.zero_grad()
            loss.backward()
            callback.on_after_backward(trainer, model)

        if (i + 1) % accumulate == 0:
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
        callback.on_train_batch_end(trainer, model, None, batch, i)
    callback.on_train_end(trainer, model)


@pytest.mark.usefixtures("fake_lightning")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("inner", [False, True])
def test_lightnings_events(accumulate: int, inner: bool) -> None:
    options: dict[str, Any] = {"model": lambda m: m.net} if inner else {}
    callback = lightning_callback(quantities(), nn.CrossEntropyLoss(), probe_size=8, **options)
    assert callback.is_lightning
    model = net()
    lightning_loop(model, callback, accumulate)
    plain, expected = reference(accumulate)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))
    assert callback.monitor.individual == "backpack"
    same(callback.monitor, expected)
    assert {"curvops/alpha", "curvops/sharpness", "curvops/gradient_noise.norm_test"} <= set(
        model.logged
    )
    assert not model._forward_hooks


@pytest.mark.usefixtures("fake_lightning")
def test_lightning_batches_of_another_kind_and_steps_without_loss() -> None:
    model = net()
    trainer = SimpleNamespace(optimizers=[torch.optim.SGD(model.parameters(), 0.1)])
    callback = lightning_callback(quantities(), nn.CrossEntropyLoss(), report=False)
    callback.on_train_start(trainer, model)
    with pytest.raises(InputError, match="batch=lambda"):
        callback.on_train_batch_start(trainer, model, {"x": 1}, 0)
    other = lightning_callback(
        quantities(), nn.CrossEntropyLoss(), batch=lambda b: (b["x"], b["y"]), probe_size=8
    )
    other.on_train_start(trainer, model)
    X, y = batches(1)[0]
    other.on_train_batch_start(trainer, model, {"x": X, "y": y}, 0)
    other.on_train_batch_end(trainer, model, None, None, 0)  # training_step returned None
    assert not other.monitor.records
    other.on_train_batch_start(trainer, model, {"x": X, "y": y}, 1)
    nn.functional.cross_entropy(model(X), y).backward()
    other.on_after_backward(trainer, model)
    other.on_exception(trainer, model, KeyboardInterrupt())
    assert other.monitor.latest("gradient_noise") is not None
    assert not model._forward_hooks
    trainer.optimizers.append(trainer.optimizers[0])
    with pytest.raises(InputError, match="one optimizer"):
        callback.on_train_start(trainer, model)


def test_without_lightning_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install lightning"):
        lightning_callback([], nn.CrossEntropyLoss())


# --------------------------------------------------------------------- Hugging Face


@pytest.fixture
def fake_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("transformers")
    module.TrainerCallback = type("TrainerCallback", (), {"is_trainer": True})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)


class Classifier(nn.Module):
    """Takes keyword arguments and computes its own loss, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, inputs: Tensor, labels: Tensor | None = None, flag: bool = False) -> Any:
        logits = self.inner(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


class Wrapped:
    """As accelerate wraps an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def trainer_loop(model: nn.Module, callback: Any, accumulate: int, announces: bool) -> list[Any]:
    """The Trainer's order of events; old ones do not announce the optimizer's step."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    logs: list[Any] = []
    callback.on_train_begin(None, None, None, model=model, optimizer=Wrapped(optimizer))
    model.train()
    for i, (X, y) in enumerate(batches()):
        (model(inputs=X, labels=y, flag=True).loss / accumulate).backward()
        if (i + 1) % accumulate:
            callback.on_substep_end(None, None, None)
            continue
        if announces:
            callback.on_pre_optimizer_step(None, None, None)
        optimizer.step()
        optimizer.zero_grad()
        callback.on_step_end(None, None, None)
        logs.append({"loss": 1.0})
        callback.on_log(None, None, None, logs=logs[-1])
        model.eval()
        model(inputs=X, labels=y)  # an evaluation is none of its business
        model.train()
    callback.on_train_end(None, None, None)
    return logs


@pytest.mark.usefixtures("fake_transformers")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("announces", [True, False])
def test_the_trainers_events(accumulate: int, announces: bool) -> None:
    model = Classifier()
    callback = hugging_face_callback(quantities(), probe_size=8)
    assert callback.is_trainer
    logs = trainer_loop(model, callback, accumulate, announces)
    plain, expected = reference(accumulate)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))
    assert callback.monitor.individual == "functional"
    same(callback.monitor, expected)
    assert "curvops/alpha" in logs[-1]
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@pytest.mark.usefixtures("fake_transformers")
def test_labels_of_causal_models_are_shifted() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with seeded(1):
                self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
            logits = self.head(self.table(input_ids))
            loss = None
            if labels is not None:
                loss = nn.functional.cross_entropy(
                    logits[:, :-1].reshape(-1, 9), labels[:, 1:].reshape(-1)
                )
            return SimpleNamespace(loss=loss, logits=logits)

    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    callback = hugging_face_callback([Alpha()], causal=True)
    callback.on_train_begin(None, None, None, model=model, optimizer=optimizer)
    tokens, losses = randint(9, 4, 6, seed=0), []
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        callback.on_pre_optimizer_step(None, None, None)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    callback.on_train_end(None, None, None)
    assert callback.monitor.run.series("step", "loss")[1] == pytest.approx(losses)


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install transformers"):
        hugging_face_callback([])


# --------------------------------------------------------------------- the libraries themselves


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # lightning calls what torch drops
@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason=f"lightning: {SKIP}")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_lightning_itself(accumulate: int) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net().net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 0.01)

    callback = lightning_callback(quantities(), nn.CrossEntropyLoss(), probe_size=8)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[callback], precision="64-true",
        accumulate_grad_batches=accumulate, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Module()
    trainer.fit(model, torch.utils.data.DataLoader(batches(), batch_size=None))  # type: ignore[arg-type]
    plain, expected = reference(accumulate)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))
    same(callback.monitor, expected)


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason=f"transformers: {SKIP}"
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_transformers_itself(accumulate: int, tmp_path: Any) -> None:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    data = [{"input_ids": randint(30, 6, seed=i), "labels": i % 3} for i in range(40)]
    found = []
    for callback in (None, hugging_face_callback(quantities(), probe_size=8)):
        with seeded(0):
            model = BertForSequenceClassification(
                BertConfig(
                    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=16, num_labels=3, max_position_embeddings=8,
                )
            )  # fmt: skip
            arguments = TrainingArguments(
                output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4,
                gradient_accumulation_steps=accumulate, report_to=[], use_cpu=True,
                save_strategy="no", disable_tqdm=True, logging_steps=1,
            )  # fmt: skip
            trainer = Trainer(
                model=model, args=arguments, train_dataset=data,
                callbacks=[] if callback is None else [callback],
            )  # fmt: skip
            trainer.train()
        found.append(model.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert callback is not None
    assert callback.monitor.run.series("alpha", "alpha")[0] == [0, 1, 2]
    assert any("curvops/alpha" in entry for entry in trainer.state.log_history)
