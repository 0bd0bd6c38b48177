"""The empirical risk: values, gradients, parameters in every form, batches of every nesting."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops import EmpiricalRisk, GGNLinearOperator, HessianLinearOperator
from curvops.adapters import huggingface, huggingface_batches
from curvops.errors import (
    CurvopsError,
    DataError,
    DeviceError,
    DTypeError,
    InputError,
    NonFiniteError,
    ShapeError,
)
from tests import cases, truth


@pytest.fixture(params=cases.REDUCTIONS)
def reduction(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def _blocks(flat: Tensor, case: cases.Case) -> dict[str, Tensor]:
    pieces = flat.split([p.numel() for p in case.params.values()])
    return {
        name: piece.reshape(*p.shape, *flat.shape[1:])
        for piece, (name, p) in zip(pieces, case.params.items(), strict=True)
    }


# Values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.NAMES)
def test_loss_and_gradient(name: str, reduction: str, dtype: torch.dtype) -> None:
    case = cases.make(name, reduction, dtype)
    for merge in (False, "auto"):
        risk = EmpiricalRisk(*case.args, merge_batches=merge)
        assert risk.loss().ndim == 0
        assert not risk.loss().requires_grad
        cases.assert_matches(risk.loss(), case.truth.loss(), dtype)
        assert not risk.gradient().requires_grad
        cases.assert_matches(risk.gradient(), case.truth.gradient(), dtype)


@pytest.mark.parametrize("name", ["ce-sequence", "bce-pos-weight"])
def test_many_points_at_once(name: str, reduction: str) -> None:
    case = cases.make(name, reduction)
    dense, decay = case.truth, 0.7
    risk = EmpiricalRisk(*case.args, weight_decay=decay, **cases.UNMERGED)
    thetas = cases.randn(case.dim, 3, seed=4)
    at = [dense.loss_at(t) + decay / 2 * t @ t for t in thetas.T]
    slopes = [torch.func.grad(dense.loss_at)(t) + decay * t for t in thetas.T]
    losses, gradients = torch.stack(at), torch.stack(slopes, dim=1)

    cases.assert_matches(risk.losses(thetas), losses)
    cases.assert_matches(risk.gradients(thetas), gradients)

    as_dict = _blocks(thetas, case)
    cases.assert_matches(risk.losses(as_dict), losses)
    cases.assert_matches(risk.losses(list(as_dict.values())), losses)
    answer = risk.gradients(as_dict)
    assert isinstance(answer, dict)
    assert list(answer) == list(as_dict)
    for block, expected in zip(answer.values(), _blocks(gradients, case).values(), strict=True):
        cases.assert_matches(block, expected)
    answer = risk.gradients(list(as_dict.values()))
    assert isinstance(answer, list)
    for block, expected in zip(answer, _blocks(gradients, case).values(), strict=True):
        cases.assert_matches(block, expected)


def test_no_points() -> None:
    case = cases.make("ce")
    risk = EmpiricalRisk(*case.args)
    nothing = torch.zeros(case.dim, 0, dtype=torch.float64)
    assert risk.losses(nothing).shape == (0,)
    assert risk.gradients(nothing).shape == (case.dim, 0)


def test_points_of_the_wrong_shape_or_kind() -> None:
    case = cases.make("ce")
    risk = EmpiricalRisk(*case.args)
    with pytest.raises(ShapeError, match=str(case.dim)):
        risk.losses(torch.zeros(case.dim + 1, 2, dtype=torch.float64))
    with pytest.raises(DTypeError, match="int64"):
        risk.gradients(torch.zeros(case.dim, 2, dtype=torch.int64))
    with pytest.raises(NonFiniteError, match="1"):
        risk.losses(torch.full((case.dim, 1), 0.0).index_fill(0, torch.tensor([3]), torch.nan))


@pytest.mark.parametrize("name", ["ce-weight-mask", "ce-sequence", "mse-sequence", "huber"])
def test_per_sample_losses_and_gradients(name: str, reduction: str) -> None:
    """One number and one row a datum, un-normalised: their sum over Z is the risk's."""
    case = cases.make(name, reduction)
    risk = EmpiricalRisk(*case.args, weight_decay=0.5, **cases.UNMERGED)
    total = cases.make(name, "sum")
    losses, rows = [], []
    for X, y in total.batches:
        for n in range(len(y)):  # each datum alone, summed by torch
            alone = truth.Dense(
                truth.module_predict(total.model),
                total.loss,
                total.params,
                [(X[n : n + 1], y[n : n + 1])],
            )
            losses.append(alone.loss())
            rows.append(alone.gradient())
    expected, slopes = torch.stack(losses), torch.stack(rows)

    cases.assert_matches(risk.per_sample_losses(), expected)
    blocks = risk.per_sample_gradients()
    assert isinstance(blocks, Iterator)
    actual = list(blocks)
    assert all(block.ndim == 2 and block.shape[1] == case.dim for block in actual)
    cases.assert_matches(torch.cat(actual), slopes)

    decay = case.truth.theta
    cases.assert_matches(expected.sum() / risk.normalizer, case.truth.loss())
    gradient = torch.cat(actual).sum(0) / risk.normalizer + 0.5 * decay
    cases.assert_matches(gradient, risk.gradient())


def test_per_sample_of_a_separable_callable() -> None:
    case = cases.make("mse")

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).abs().pow(3).sum(1).mean()

    risk = EmpiricalRisk(case.model, loss, case.params, case.batches, reduction="mean")
    each = (case.truth.prediction() - case.truth.y).abs().pow(3).sum(1)
    cases.assert_matches(risk.per_sample_losses(), each)
    gradient = torch.cat(list(risk.per_sample_gradients())).mean(0)
    cases.assert_matches(gradient, risk.gradient())


def test_predictions() -> None:
    case = cases.make("ce-sequence")
    risk = EmpiricalRisk(*case.args)
    pairs = list(risk.predictions())
    assert not any(f.requires_grad for f, _ in pairs)
    cases.assert_matches(torch.cat([f for f, _ in pairs]), case.truth.prediction())
    assert torch.equal(torch.cat([y for _, y in pairs]), case.truth.y)


def test_attributes() -> None:
    case = cases.make("ce", "mean", torch.float32)
    risk = EmpiricalRisk(*case.args, weight_decay=0.25)
    assert risk.num_data == 8
    assert float(risk.normalizer) == 8.0
    assert risk.dtype == torch.float32
    assert risk.device == torch.device("cpu")
    assert risk.reduction == "mean"
    assert risk.weight_decay == 0.25
    assert list(risk.params) == list(case.params)
    assert risk.space.dim == case.dim
    assert list(risk.space.names) == list(case.params)
    cases.assert_matches(risk.theta, case.truth.theta, torch.float32)
    risk.theta.zero_()  # a copy
    assert risk.theta.abs().max() > 0


# Other points ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "list", "dict"])
def test_at_another_point(layout: str) -> None:
    case = cases.make("ce-weight-mask")
    risk = EmpiricalRisk(*case.args, weight_decay=0.2)
    theta = cases.randn(case.dim, seed=8)
    blocks = _blocks(theta, case)
    given: Any = {"flat": theta, "list": list(blocks.values()), "dict": blocks}[layout]
    before = {n: p.clone() for n, p in case.model.named_parameters()}

    there = risk.at(given)
    dense = truth.Dense(truth.module_predict(case.model), case.loss, blocks, case.batches)
    cases.assert_matches(there.loss(), dense.loss() + 0.1 * theta @ theta)
    cases.assert_matches(there.gradient(), dense.gradient() + 0.2 * theta)
    eye = torch.eye(case.dim, dtype=torch.float64)
    hessian = HessianLinearOperator.from_risk(there).to_dense()
    cases.assert_matches(hessian, dense.hessian() + 0.2 * eye)
    assert torch.equal(there.theta, theta)

    # neither the module, nor the parameters given, nor the first risk has moved
    assert all(torch.equal(p, before[n]) for n, p in case.model.named_parameters())
    here = case.truth
    cases.assert_matches(risk.loss(), here.loss() + 0.1 * here.theta @ here.theta)
    cases.assert_matches(there.at(risk.theta).loss(), risk.loss())


def test_at_copies_its_point() -> None:
    case = cases.make("ce")
    theta = cases.randn(case.dim, seed=8)
    there = EmpiricalRisk(*case.args).at(theta)
    before = there.loss()
    theta.zero_()
    assert torch.equal(there.loss(), before)


def test_at_rejects_matrices_and_other_shapes() -> None:
    case = cases.make("ce")
    risk = EmpiricalRisk(*case.args)
    with pytest.raises(InputError, match="3"):
        risk.at(torch.zeros(case.dim, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match=str(case.dim)):
        risk.at(torch.zeros(case.dim - 1, dtype=torch.float64))


def test_weight_decay(reduction: str) -> None:
    """(lambda/2) |theta|^2, whatever the reduction."""
    case = cases.make("mse", reduction)
    risk = EmpiricalRisk(*case.args, weight_decay=0.8)
    dense, theta = case.truth, case.truth.theta
    cases.assert_matches(risk.loss(), dense.loss() + 0.4 * theta @ theta)
    cases.assert_matches(risk.gradient(), dense.gradient() + 0.8 * theta)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_impossible_weight_decay(decay: float) -> None:
    with pytest.raises(InputError, match="weight_decay"):
        EmpiricalRisk(*cases.make("mse").args, weight_decay=decay)


# Parameters --------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Names with dots in them, for globs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.Linear(3, 3), "mlp": nn.Linear(3, 3)}) for _ in range(2)
        )
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block["mlp"](torch.tanh(block["attn"](x))))
        return self.head(x)


def _blocks_problem() -> tuple[nn.Module, nn.Module, list[Any]]:
    with cases.seeded(0):
        model = Blocks().double()
    batches = cases.cut(cases.randn(8, 3, seed=1), cases.randint(3, 8, seed=2))
    return model, nn.CrossEntropyLoss(), batches


GLOBS = {
    "blocks.*.attn.*": [f"blocks.{i}.attn.{p}" for i in (0, 1) for p in ("weight", "bias")],
    "*bias": [
        "blocks.0.attn.bias",
        "blocks.0.mlp.bias",
        "blocks.1.attn.bias",
        "blocks.1.mlp.bias",
        "head.bias",
    ],
    "head.weight": ["head.weight"],
}


@pytest.mark.parametrize("glob", GLOBS)
def test_globs(glob: str) -> None:
    model, loss, batches = _blocks_problem()
    own = dict(model.named_parameters())
    chosen = {name: own[name] for name in GLOBS[glob]}
    dense = truth.Dense(truth.module_predict(model), loss, chosen, batches)
    risk = EmpiricalRisk(model, loss, glob, batches)
    assert list(risk.params) == GLOBS[glob]
    cases.assert_matches(risk.gradient(), dense.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())


def test_lists_of_globs_choose_once_in_the_order_of_the_module() -> None:
    model, loss, batches = _blocks_problem()
    risk = EmpiricalRisk(model, loss, ["head.*", "blocks.1.attn.*", "*.bias"], batches)
    wanted = [
        n
        for n, _ in model.named_parameters()
        if n.startswith(("head.", "blocks.1.attn.")) or n.endswith(".bias")
    ]
    assert list(risk.params) == wanted


def test_globs_that_choose_nothing() -> None:
    model, loss, batches = _blocks_problem()
    for given in ("blocks.*.conv.*", ["head.*", "tail.*"]):
        with pytest.raises(InputError, match=r"conv|tail"):
            EmpiricalRisk(model, loss, given, batches)


def test_a_module_means_its_trainable_parameters() -> None:
    model, loss, batches = _blocks_problem()
    model.blocks[0]["attn"].weight.requires_grad_(False)
    risk = EmpiricalRisk(model, loss, model, batches)
    assert list(risk.params) == [n for n, p in model.named_parameters() if p.requires_grad]
    # a part of the model means the parameters of that part, under the names of the whole
    risk = EmpiricalRisk(model, loss, model.head, batches)
    assert list(risk.params) == ["head.weight", "head.bias"]


def test_lists_dicts_and_modules_are_the_same_risk() -> None:
    model, loss, batches = _blocks_problem()
    params = dict(model.named_parameters())
    expected = EmpiricalRisk(model, loss, model, batches).gradient()
    for given in (params, list(params.values()), model.parameters(), OrderedDict(params), "*"):
        risk = EmpiricalRisk(model, loss, given, batches)
        assert list(risk.params) == list(params)
        assert torch.equal(risk.gradient(), expected)


def test_the_callers_order_is_kept() -> None:
    model, loss, batches = _blocks_problem()
    own = dict(model.named_parameters())
    names = ["head.bias", "blocks.1.mlp.weight", "head.weight"]
    chosen = {name: own[name] for name in names}
    dense = truth.Dense(truth.module_predict(model), loss, chosen, batches)
    for given in (chosen, list(chosen.values())):
        risk = EmpiricalRisk(model, loss, given, batches)
        assert list(risk.params) == names
        cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


def test_a_list_of_other_tensors_stands_for_all_parameters() -> None:
    case = cases.make("ce-conv")
    given = list(case.params.values())
    risk = EmpiricalRisk(case.model, case.loss, given, case.batches)
    assert list(risk.params) == list(case.params)
    cases.assert_matches(risk.loss(), case.truth.loss())


def test_subset_of_perturbed_parameters_leaves_the_rest_at_the_modules_values() -> None:
    model, loss, batches = _blocks_problem()
    moved = {n: p for n, p in cases.perturbed(model).items() if "mlp" in n}
    dense = truth.Dense(truth.module_predict(model), loss, moved, batches)
    risk = EmpiricalRisk(model, loss, moved, batches)
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
    own = EmpiricalRisk(model, loss, model, batches)
    assert (risk.loss() - own.loss()).abs() > 1e-3


def test_parameters_that_require_grad_and_have_a_history() -> None:
    """Nothing flows back into what the parameters were computed from."""
    case = cases.make("ce")
    root = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    params = {n: p * root for n, p in case.params.items()}
    risk = EmpiricalRisk(case.model, case.loss, params, case.batches)
    cases.assert_matches(risk.gradient(), case.truth.gradient())
    assert not risk.loss().requires_grad
    assert root.grad is None


class TiedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def _tied() -> tuple[nn.Module, truth.Dense, dict[str, Tensor], list[Any]]:
    with cases.seeded(0):
        model = TiedNet().double()
    params = cases.perturbed(model)
    batches = cases.cut(cases.randn(8, 3, seed=1), cases.randint(3, 8, seed=2))

    def predict(p: Any, x: Tensor) -> Tensor:
        w = p["first.weight"]
        return torch.tanh(x @ w.T + p["first.bias"]) @ w.T

    return model, truth.Dense(predict, nn.CrossEntropyLoss(), params, batches), params, batches


def test_tied_parameters_are_one() -> None:
    model, dense, params, batches = _tied()
    assert list(params) == ["first.weight", "first.bias"]
    loss = nn.CrossEntropyLoss()
    by_second_name = {"second.weight": params["first.weight"], "first.bias": params["first.bias"]}
    for given in (params, list(params.values()), by_second_name):
        risk = EmpiricalRisk(model, loss, given, batches)
        assert risk.space.dim == 12
        cases.assert_matches(risk.loss(), dense.loss())
        cases.assert_matches(risk.gradient(), dense.gradient())


@pytest.mark.parametrize("glob", ["second.weight", "first.weight", "*.weight"])
def test_either_name_of_a_tied_parameter_finds_it(glob: str) -> None:
    model, _, _, batches = _tied()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), glob, batches)
    assert risk.space.dim == 9
    everything = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches)
    cases.assert_matches(risk.gradient(), everything.gradient()[:9])


def test_tied_parameters_given_twice_are_refused() -> None:
    model, _, params, batches = _tied()
    twice = {**params, "second.weight": params["first.weight"].clone()}
    with pytest.raises(InputError, match=r"first\.weight|second\.weight"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), twice, batches)
    w = model.first.weight
    with pytest.raises(InputError, match=r"first\.weight"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), [w, w], batches)


def test_bad_parameters() -> None:
    case = cases.make("ce")
    model, loss, params, batches = case.args

    def build(given: Any) -> EmpiricalRisk:
        return EmpiricalRisk(model, loss, given, batches)

    bad: list[tuple[Any, type[Exception], str]] = [
        ({}, InputError, "empty|param"),
        ([], InputError, "empty|param"),
        ({**params, "3.weight": params["0.weight"]}, InputError, r"3\.weight"),
        ({**params, "0.bias": params["0.bias"][:2]}, ShapeError, r"0\.bias"),
        ({**params, "0.bias": params["0.bias"] * torch.nan}, NonFiniteError, r"0\.bias"),
        ({**params, "0.bias": params["0.bias"] / 0}, NonFiniteError, r"0\.bias"),
        ({**params, "0.bias": params["0.bias"].long()}, DTypeError, r"0\.bias.*int64"),
        ({**params, "0.bias": params["0.bias"] * 1j}, DTypeError, r"0\.bias.*complex"),
        ({**params, "0.bias": params["0.bias"].tolist()}, InputError, r"0\.bias"),
        ({**params, "0.bias": params["0.bias"].to("meta")}, DeviceError, "meta"),
        ([torch.zeros(2, 2, dtype=torch.float64)], InputError, "param"),
        ([*params.values()][:2], InputError, "param"),
        (3, InputError, "params"),
    ]
    for given, error, message in bad:
        with pytest.raises(error, match=message) as caught:
            build(given)
        assert isinstance(caught.value, CurvopsError)


def test_a_model_without_trainable_parameters() -> None:
    case = cases.make("ce")
    for p in case.model.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match=r"grad|param"):
        EmpiricalRisk(case.model, case.loss, case.model, case.batches)
    with pytest.raises(InputError, match=r"grad|param"):
        EmpiricalRisk(nn.Flatten(), case.loss, nn.Flatten(), case.batches)


# Models ------------------------------------------------------------------------------------


def test_a_callable_of_parameters_and_inputs(reduction: str) -> None:
    case = cases.make("ce", reduction)

    def model(params: dict[str, Tensor], X: Tensor) -> Tensor:
        hidden = torch.tanh(X @ params["U"].T + params["c"])
        return hidden @ params["V"].T + params["b"]

    names = ("U", "c", "V", "b")
    params = dict(zip(names, case.params.values(), strict=True))
    risk = EmpiricalRisk(model, case.loss, params, case.batches)
    assert list(risk.params) == list(names)
    cases.assert_matches(risk.loss(), case.truth.loss())
    cases.assert_matches(risk.gradient(), case.truth.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), case.truth.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), case.truth.ggn())


def test_a_callable_needs_named_parameters() -> None:
    case = cases.make("ce")
    with pytest.raises(InputError, match="dict"):
        EmpiricalRisk(lambda p, X: X, case.loss, list(case.params.values()), case.batches)
    with pytest.raises(InputError, match="model"):
        EmpiricalRisk(3, case.loss, case.params, case.batches)  # type: ignore[arg-type]


def test_forward_hook() -> None:
    """A model of two arguments that returns a tuple."""

    class Awkward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp()

        def forward(self, left: Tensor, *, right: Tensor) -> tuple[str, Tensor]:
            return "aux", self.net(left + right)

    with cases.seeded(0):
        model = Awkward().double()
    params, loss = cases.perturbed(model), nn.CrossEntropyLoss()
    X = {"left": cases.randn(8, 3, seed=1), "right": cases.randn(8, 3, seed=2)}
    batches = cases.cut(X, cases.randint(3, 8, seed=3))

    def forward(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return module(batch["left"], right=batch["right"])[1]

    def predict(p: Any, batch: Any) -> Tensor:
        x = batch["left"] + batch["right"]
        hidden = torch.tanh(x @ p["net.0.weight"].T + p["net.0.bias"])
        return hidden @ p["net.2.weight"].T + p["net.2.bias"]

    dense = truth.Dense(predict, loss, params, batches)
    risk = EmpiricalRisk(model, loss, params, batches, forward=forward, **cases.UNMERGED)
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())
    with pytest.raises(CurvopsError, match="forward"):
        EmpiricalRisk(
            model, loss, params, batches, forward=lambda module, b: forward(module, b).tolist()
        ).loss()


# Losses ------------------------------------------------------------------------------------


def test_normalizer_of_a_masked_mean() -> None:
    """A callable that averages over the positions a mask lets through."""
    case = cases.make("mse-sequence")
    mask = (cases.rand(8, 3, seed=7) > 0.4).double()
    mask[4] = 0  # a batch with nothing in it: 0/0 to the callable
    y = {"target": case.truth.y, "mask": mask}
    batches = cases.cut(case.truth.X, y)

    def loss(prediction: Tensor, y: dict[str, Tensor]) -> Tensor:
        error = (prediction - y["target"]).pow(2).mean(-1) * y["mask"]
        return error.sum() / y["mask"].sum().clamp(min=1)

    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, batches)
    risk = EmpiricalRisk(
        case.model,
        loss,
        case.params,
        batches,
        reduction="mean",
        normalizer=lambda prediction, y: y["mask"].sum(),
        **cases.UNMERGED,
    )
    assert float(risk.normalizer) == mask.sum().item()
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


def test_a_batch_of_zero_normalizer_contributes_nothing_even_if_its_loss_is_nan() -> None:
    case = cases.make("mse-sequence")
    mask = torch.ones(8, 3, dtype=torch.float64)
    mask[4] = 0
    y = {"target": case.truth.y, "mask": mask}
    batches = cases.cut(case.truth.X, y)

    def loss(prediction: Tensor, y: dict[str, Tensor]) -> Tensor:  # NaN where the mask is empty
        error = (prediction - y["target"]).pow(2).mean(-1) * y["mask"]
        return error.sum() / y["mask"].sum()

    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, batches)
    risk = EmpiricalRisk(
        case.model,
        loss,
        case.params,
        batches,
        reduction="mean",
        normalizer=lambda prediction, y: y["mask"].sum(),
        **cases.UNMERGED,
    )
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


def test_a_plain_sum(reduction: str) -> None:
    case = cases.make("mse", reduction)

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        error = (prediction - y).pow(2).sum(1)
        return error.sum() if reduction == "sum" else error.mean()

    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, case.batches)
    risk = EmpiricalRisk(
        case.model, loss, case.params, case.batches, reduction=reduction, **cases.UNMERGED
    )
    assert float(risk.normalizer) == (1.0 if reduction == "sum" else 8.0)
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())


def test_detached_and_nonscalar_losses_and_predictions() -> None:
    case = cases.make("mse")
    model, _, params, batches = case.args

    def detached(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction.detach() - y).pow(2).mean()

    with pytest.raises(CurvopsError, match=r"(?i)detach|differentia"):
        EmpiricalRisk(model, detached, params, batches, reduction="mean").gradient()

    def number(prediction: Tensor, y: Tensor) -> float:
        return (prediction - y).pow(2).mean().item()

    with pytest.raises(CurvopsError, match=r"float|[Tt]ensor"):
        EmpiricalRisk(model, number, params, batches, reduction="mean").gradient()  # type: ignore[arg-type]

    def cut_off(p: dict[str, Tensor], X: Tensor) -> Tensor:
        return (X @ p["w"]).detach()

    w = {"w": torch.zeros(3, 2, dtype=torch.float64)}
    with pytest.raises(CurvopsError, match="detach"):
        EmpiricalRisk(cut_off, nn.MSELoss(), w, batches).gradient()
    with pytest.raises(CurvopsError, match=r"(?i)prediction|model"):
        EmpiricalRisk(lambda p, X: [X @ p["w"]], nn.MSELoss(), w, batches).gradient()


def test_targets_out_of_range() -> None:
    case = cases.make("ce")
    for y in (3, 2**40, -1):
        batches = [(X, torch.full_like(t, y)) for X, t in case.batches]
        with pytest.raises(CurvopsError, match=r"target|class|label"):
            EmpiricalRisk(case.model, case.loss, case.params, batches).loss()


# Batches -----------------------------------------------------------------------------------


class Nested(nn.Module):
    """Takes X as it comes: mappings, tuples and lists of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cases.mlp()

    def forward(self, batch: Any) -> Tensor:
        if isinstance(batch, dict | UserDict):
            left, (right, [scale]) = batch["left"], batch["rest"]
        else:
            left, (right, [scale]) = batch
        return self.net(left * scale + right)


def _nest(kind: str, left: Tensor, right: Tensor, scale: Tensor) -> Any:
    match kind:
        case "dict":
            return {"left": left, "rest": (right, [scale])}
        case "UserDict":
            return UserDict({"left": left, "rest": (right, [scale])})
        case "tuple":
            return (left, (right, [scale]))
        case "list":
            return [left, (right, [scale])]
    raise AssertionError(kind)


@pytest.mark.parametrize("merge", [False, "auto"])
@pytest.mark.parametrize("kind", ["dict", "UserDict", "tuple", "list"])
def test_nested_batches(kind: str, merge: Any) -> None:
    with cases.seeded(0):
        model = Nested().double()
    params, loss = cases.perturbed(model), nn.CrossEntropyLoss()
    left, right = cases.randn(8, 3, seed=1), cases.randn(8, 3, seed=2)
    scale, y = cases.rand(8, 1, seed=3), cases.randint(3, 8, seed=4)
    pieces = cases.cut((left, right, scale), y)
    batches = [(_nest(kind, *X), target) for X, target in pieces]

    def predict(p: Any, x: Any) -> Tensor:
        mixed = x[0] * x[2] + x[1]
        hidden = torch.tanh(mixed @ p["net.0.weight"].T + p["net.0.bias"])
        return hidden @ p["net.2.weight"].T + p["net.2.bias"]

    dense = truth.Dense(predict, loss, params, pieces)
    risk = EmpiricalRisk(model, loss, params, batches, merge_batches=merge)
    assert risk.num_data == 8
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


def test_batch_size_fn() -> None:
    """Time-major data ``[T, N, D]``: the leading axis is not the batch."""

    class TimeMajor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.mean(0))

    with cases.seeded(0):
        model = TimeMajor().double()
    params = cases.perturbed(model)
    X, y = cases.randn(5, 8, 3, seed=1), cases.randn(8, 3, seed=2)
    batches = [(X[:, a:b], y[a:b]) for a, b in ((0, 4), (4, 5), (5, 8))]

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).pow(4).sum(1).mean()

    dense = truth.Dense(truth.module_predict(model), loss, params, [(X, y)])
    risk = EmpiricalRisk(
        model,
        loss,
        params,
        batches,
        reduction="mean",
        batch_size_fn=lambda x: x.shape[1],
        **cases.UNMERGED,
    )
    assert risk.num_data == 8
    assert float(risk.normalizer) == 8.0
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


def test_num_data_is_checked() -> None:
    case = cases.make("ce")
    assert EmpiricalRisk(*case.args, num_data=8).num_data == 8
    with pytest.raises(DataError, match=r"9.*8"):
        EmpiricalRisk(*case.args, num_data=9)


def test_progressbar(capsys: pytest.CaptureFixture[str]) -> None:
    case = cases.make("ce")
    for shown in (False, True):
        risk = EmpiricalRisk(*case.args, progressbar=shown, **cases.UNMERGED)
        risk.gradient()
        captured = capsys.readouterr()
        assert ("3" in captured.err) is shown
        assert captured.out == ""


def test_a_thousand_batches_in_float32_do_not_add_up_their_rounding() -> None:
    """1000 batches of one datum: as accurate as one batch of 1000."""
    with cases.seeded(0):
        model = nn.Linear(3, 1, bias=False)
    X = cases.rand(1000, 3, seed=1).float() + 100
    y = cases.randn(1000, 1, seed=2).float()
    params, loss = cases.perturbed(model), nn.MSELoss(reduction="sum")
    dense = truth.Dense(truth.module_predict(model.double()), loss, params, [(X, y)])
    model.float()
    data = cases.cut(X, y, (1,) * 1000)
    risk = EmpiricalRisk(model, loss, params, data, **cases.UNMERGED)
    eps = torch.finfo(torch.float32).eps
    assert abs(risk.loss().double() - dense.loss()) < 4 * eps * dense.loss()
    hessian = HessianLinearOperator.from_risk(risk).to_dense().double()
    assert (hessian - dense.hessian()).abs().max() < 4 * eps * dense.hessian().abs().max()


# Hugging Face ------------------------------------------------------------------------------


class ModelOutput(OrderedDict):
    """What transformers returns: a dict whose values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class FakeClassifier(nn.Module):
    """Embedding, masked mean, head; keyword arguments as transformers has them."""

    def __init__(self, *, per_token: bool = False, output: type = ModelOutput) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 2)
        self.head = nn.Linear(2, 3)
        self.per_token, self.output = per_token, output

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
    ) -> Any:
        assert input_ids.dtype == torch.int64
        mask = attention_mask.unsqueeze(-1).to(self.head.weight.dtype)
        hidden = torch.tanh(self.embedding(input_ids))
        if not self.per_token:
            hidden = (hidden * mask).sum(1) / mask.sum(1)
        logits = self.head(hidden)
        extra = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return self.output(**extra, logits=logits, hidden_states=(hidden,))


def _hf_batches(*, per_token: bool, kind: Any = dict) -> list[tuple[Any, Tensor]]:
    ids = cases.randint(6, 8, 4, seed=1)
    mask = torch.ones(8, 4, dtype=torch.int64)
    mask[2, 2:], mask[6, 1:] = 0, 0
    labels = cases.randint(3, *((8, 4) if per_token else (8,)), seed=2)
    if per_token:
        labels[mask == 0] = -100
    X = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return [(kind(x), y) for x, y in cases.cut(X, labels)]


def _hf_predict(per_token: bool) -> truth.Predict:
    def predict(p: Any, X: Any) -> Tensor:
        mask = X["attention_mask"].unsqueeze(-1).double()
        hidden = torch.tanh(p["embedding.weight"][X["input_ids"]])
        if not per_token:
            hidden = (hidden * mask).sum(1) / mask.sum(1)
        logits = hidden @ p["head.weight"].T + p["head.bias"]
        return logits.transpose(1, 2) if per_token else logits

    return predict


@pytest.mark.parametrize("output", [ModelOutput, SimpleNamespace, dict])
@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("per_token", [False, True])
def test_huggingface_adapter(per_token: bool, kind: Any, output: Any) -> None:
    with cases.seeded(0):
        model = FakeClassifier(per_token=per_token, output=output).double()
    params, loss = cases.perturbed(model), nn.CrossEntropyLoss()
    plain = _hf_batches(per_token=per_token)
    dense = truth.Dense(_hf_predict(per_token), loss, params, plain)
    batches = _hf_batches(per_token=per_token, kind=kind)
    risk = EmpiricalRisk(model, loss, params, batches, forward=huggingface, **cases.UNMERGED)
    assert risk.num_data == 8
    cases.assert_matches(risk.loss(), dense.loss())
    cases.assert_matches(risk.gradient(), dense.gradient())
    cases.assert_matches(HessianLinearOperator.from_risk(risk).to_dense(), dense.hessian())
    cases.assert_matches(GGNLinearOperator.from_risk(risk).to_dense(), dense.ggn())


def test_huggingface_loader_of_mappings() -> None:
    """A loader of ``{input_ids, attention_mask, labels}``, as ``Trainer`` has it."""
    with cases.seeded(0):
        model = FakeClassifier().double()
    params, loss = cases.perturbed(model), nn.CrossEntropyLoss()
    pairs = _hf_batches(per_token=False)
    loader = huggingface_batches([X for X, _ in pairs])
    dense = truth.Dense(_hf_predict(False), loss, params, pairs)
    operator = GGNLinearOperator(model, loss, params, loader, forward=huggingface)
    cases.assert_matches(operator.to_dense(), dense.ggn())
    with pytest.raises(DataError, match=r"(?i)iter|list|one-shot"):
        huggingface_batches(iter([X for X, _ in pairs]))
    with pytest.raises(DataError, match="answers"):
        list(huggingface_batches([X for X, _ in pairs], labels="answers"))


def test_huggingface_causal_labels_are_the_next_tokens() -> None:
    """The loss of a causal model, as transformers shifts it: logits[:-1] against labels[1:]."""
    with cases.seeded(0):
        model = FakeClassifier(per_token=True).double()
    params = cases.perturbed(model)
    pairs = _hf_batches(per_token=True)
    loader = huggingface_batches([X for X, _ in pairs], causal=True)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), params, loader, forward=huggingface)
    X, labels = truth.concatenate([X for X, _ in pairs]), torch.cat([y for _, y in pairs])
    logits = _hf_predict(True)(params, X)
    expected = F.cross_entropy(logits[:, :, :-1], labels[:, 1:])
    cases.assert_matches(risk.loss(), expected)


def test_huggingface_output_without_logits() -> None:
    class NoLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(last_hidden_state=self.head(x))

    model = NoLogits()
    batches = [({"x": torch.randn(2, 2, generator=cases.rng(0))}, torch.tensor([0, 1]))]
    with pytest.raises(InputError, match="logits"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches, forward=huggingface).loss()


def test_partial_of_a_loss_keeps_its_options() -> None:
    case = cases.make("ce")
    loss = partial(F.cross_entropy, label_smoothing=0.2)
    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, case.batches)
    risk = EmpiricalRisk(case.model, loss, case.params, case.batches, reduction="mean")
    cases.assert_matches(risk.loss(), dense.loss())
