"""Every layer that must work: H and GGN right against dense truth, no user action needed.

The truth runs the same module under torch's math attention kernel with the fast path off
(checkpointed models: the same layers without checkpointing), differentiated densely in float64.
Parameters are perturbed away from the module's values, so that whatever recomputes the forward
pass with the module's own weights is caught.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from curvops import EmpiricalRisk, GGNLinearOperator, HessianLinearOperator
from curvops.errors import DeterminismError, DifferentiationError, InputError
from tests import cases, truth

CLASSES = 3


# Models ------------------------------------------------------------------------------------


class OneStep(nn.Module):
    """A recurrent layer and a readout of its last state."""

    def __init__(self, kind: type[nn.RNNBase], head: int = 2, **options: Any) -> None:
        super().__init__()
        self.cell = kind(2, 2, batch_first=True, **options)
        self.head = nn.Linear(head, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    """``scaled_dot_product_attention`` on a linear map's queries, keys and values."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(3, 6)
        self.head = nn.Linear(2, CLASSES)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)  # [N, 1 head, T, 2]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.head(mixed.squeeze(1).mean(1))


class MultiHead(nn.Module):
    """``nn.MultiheadAttention``, with or without returning its weights."""

    def __init__(self, *, need_weights: bool, causal: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, CLASSES)
        self.need_weights, self.causal = need_weights, causal

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        mixed, _ = self.attention(
            x, x, x, need_weights=self.need_weights, attn_mask=mask, is_causal=self.causal
        )
        return self.head(mixed.mean(1))


class Transformer(nn.Module):
    """A ``TransformerEncoderLayer`` in eval mode, where torch would take its fast path."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            4, 2, 4, dropout=0.1, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Encoder(nn.Module):
    """A ``TransformerEncoder`` of one layer with padding, where torch would nest tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        keep = batch["mask"].unsqueeze(-1)
        f = self.encoder(batch["x"], src_key_padding_mask=~batch["mask"])
        return self.head((f * keep).sum(1) / keep.sum(1))


class Checkpointed(nn.Module):
    """A two-block network whose blocks may be recomputed in the backward pass."""

    def __init__(self, *, recompute: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(4, 3), nn.SiLU())
        self.head = nn.Linear(3, CLASSES)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.first, self.second):
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return self.head(x)


class TiedEmbedding(nn.Module):
    """A language model whose readout is its embedding: two names, one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.readout = nn.Linear(3, 5, bias=False)
        self.readout.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(self.embedding(tokens)))
        return self.readout(hidden).transpose(1, 2)


class TiedLayers(nn.Module):
    """One weight used by two linear layers, with biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


class CalledTwice(nn.Module):
    """A module called several times in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(3, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + torch.tanh(self.block(x))
        return self.head(x)


class WithUnused(nn.Module):
    """Parameters that the prediction does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)))


class FromDict(nn.Module):
    """A model of dict batches, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(1, 3)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        left, (right, scale) = batch["left"], batch["rest"]
        return self.head(torch.tanh(self.left(left) + self.right(right)) * scale)


class Collections(nn.Module):
    """Parameters in lists and dicts, and a scalar one."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ParameterList([nn.Parameter(torch.ones(3, 2)) for _ in range(2)])
        self.named = nn.ParameterDict({"out": nn.Parameter(torch.ones(2, CLASSES))})
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.listed[0]) * torch.sigmoid(x @ self.listed[1])
        return self.temperature.exp() * hidden @ self.named["out"]


class PartlyFrozen(nn.Module):
    """A part of the forward pass under ``no_grad``: its parameters count as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(3, 3), cases.mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.tanh(self.features(x))
        return self.head(x)


class InPlace(nn.Module):
    """In-place arithmetic on what the model computed itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.rectify = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += torch.tanh(h)
        h = self.rectify(h) + 0.1
        h[:, 0] = torch.tanh(h[:, 1])
        return self.head(h)


def _warmed_up(model: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norm running statistics other than zero and one."""
    model.train()
    with torch.no_grad():
        model(3 * x + 1)
    return model.eval()


def _images(*shape: int) -> Tensor:
    return cases.randn(6, *shape, seed=1)


def _flat_head(inputs: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(inputs, CLASSES)]


def _conv1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 2, 3, padding=1, stride=2), nn.SiLU(), *_flat_head(6))


def _conv2d() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.ReLU(), *_flat_head(8))


def _conv2d_groups() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 2, 2, groups=2, padding_mode="circular", padding=1), nn.Tanh(), *_flat_head(32)
    )


def _conv3d() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.GELU(), *_flat_head(16))


def _transposed() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(1, 2, 2, stride=2), nn.Tanh(), *_flat_head(32))


def _pooling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.MaxPool2d(2, stride=1), nn.AvgPool2d(2, stride=1), *_flat_head(8)
    )


def _adaptive_pooling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(1),
        *_flat_head(2),
    )  # fmt: skip


def _batch_norm() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), *_flat_head(18))
    return _warmed_up(model.double(), _images(1, 4, 4))


def _norm(norm: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, CLASSES))


def _activation(activation: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, CLASSES))


def _dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, CLASSES), nn.Dropout(0.5)
    )


class Embedding(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 2, **options)
        self.head = nn.Linear(2, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens).sum(1)))


VECTORS = cases.randn(6, 3, seed=1)
SEQUENCES = cases.randn(6, 3, 3, seed=1)
TOKENS = cases.randint(5, 6, 3, seed=1)
WIDE = cases.randn(6, 3, 4, seed=1)
NESTED = {
    "left": cases.randn(6, 2, seed=1),
    "rest": (cases.randn(6, 1, seed=2), cases.rand(6, 1, seed=3) + 0.5),
}
PADDED = {"x": WIDE, "mask": torch.tensor([[True, True, False], [True] * 3] * 3)}

MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "linear": (lambda: nn.Linear(3, CLASSES), VECTORS),
    "bilinear-tanh": (lambda: cases.mlp(), VECTORS),
    "conv1d": (_conv1d, _images(2, 6)),
    "conv2d": (_conv2d, _images(1, 4, 4)),
    "conv2d-groups": (_conv2d_groups, _images(2, 3, 3)),
    "conv3d": (_conv3d, _images(1, 3, 3, 3)),
    "conv-transposed": (_transposed, _images(1, 2, 2)),
    "pooling": (_pooling, _images(1, 5, 5)),
    "adaptive-pooling": (_adaptive_pooling, _images(1, 5, 5)),
    "layer-norm": (_norm(nn.LayerNorm(4)), VECTORS),
    "group-norm": (_norm(nn.GroupNorm(2, 4)), VECTORS),
    "rms-norm": (_norm(nn.RMSNorm(4)), VECTORS),
    "batch-norm-eval": (_batch_norm, _images(1, 4, 4)),
    "dropout-eval": (_dropout, VECTORS),
    "relu": (_activation(nn.ReLU()), VECTORS),
    "gelu": (_activation(nn.GELU()), VECTORS),
    "gelu-tanh": (_activation(nn.GELU(approximate="tanh")), VECTORS),
    "silu": (_activation(nn.SiLU()), VECTORS),
    "softplus": (_activation(nn.Softplus()), VECTORS),
    "embedding": (Embedding, TOKENS),
    "embedding-padding": (lambda: Embedding(padding_idx=0), TOKENS),
    "sdpa": (lambda: Attention(causal=False), SEQUENCES),
    "sdpa-causal": (lambda: Attention(causal=True), SEQUENCES),
    "multihead": (lambda: MultiHead(need_weights=True), WIDE),
    "multihead-no-weights": (lambda: MultiHead(need_weights=False), WIDE),
    "multihead-causal": (lambda: MultiHead(need_weights=False, causal=True), WIDE),
    "transformer-layer": (lambda: Transformer(norm_first=False), WIDE),
    "transformer-layer-norm-first": (lambda: Transformer(norm_first=True), WIDE),
    "transformer-encoder-padded": (Encoder, PADDED),
    "rnn": (lambda: OneStep(nn.RNN), cases.randn(6, 3, 2, seed=1)),
    "lstm": (lambda: OneStep(nn.LSTM), cases.randn(6, 3, 2, seed=1)),
    "lstm-bidirectional": (
        lambda: OneStep(nn.LSTM, head=4, bidirectional=True),
        cases.randn(6, 3, 2, seed=1),
    ),
    "gru": (lambda: OneStep(nn.GRU), cases.randn(6, 3, 2, seed=1)),
    "checkpointed": (lambda: Checkpointed(recompute=True), VECTORS),
    "tied-layers": (TiedLayers, VECTORS),
    "called-several-times": (CalledTwice, VECTORS),
    "unused": (WithUnused, VECTORS),
    "dict-batches": (FromDict, NESTED),
    "parameter-collections": (Collections, VECTORS),
    "partly-frozen": (PartlyFrozen, VECTORS),
    "in-place": (InPlace, VECTORS),
    "rnn-deep-projected": (
        lambda: OneStep(nn.LSTM, num_layers=2, proj_size=1, head=1),
        cases.randn(6, 3, 2, seed=1),
    ),
}


@contextlib.contextmanager
def _math_kernels() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _build(name: str) -> tuple[nn.Module, nn.Module, dict[str, Tensor], list[Any]]:
    make, X = MODELS[name]
    with cases.seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on nested tensors
        model = make().double().eval()
    y = cases.randint(CLASSES, 6, seed=2)
    return model, nn.CrossEntropyLoss(), cases.perturbed(model), cases.cut(X, y, (3, 1, 2))


def _reference(model: nn.Module) -> nn.Module:
    """The same module as the truth evaluates it."""
    if isinstance(model, Checkpointed):
        reference = Checkpointed(recompute=False).double()
        assert [n for n, _ in reference.named_parameters()] == [
            n for n, _ in model.named_parameters()
        ]
        return reference
    return model


def _dense(model: nn.Module, loss: nn.Module, params: Any, batches: Any) -> truth.Dense:
    return truth.Dense(truth.module_predict(_reference(model)), loss, params, batches)


PIECEWISE_LINEAR = ("linear", "relu", "pooling")


@pytest.mark.parametrize("name", MODELS)
def test_hessian_and_ggn(name: str) -> None:
    problem = _build(name)
    dense = _dense(*problem)
    assert len(dense.theta) < 300
    with _math_kernels():
        # layers without a forward-mode derivative have a double backward
        hessian, ggn = dense.hessian_by_double_backward(), dense.ggn()
    assert ggn.abs().max() > 1e-4
    if name not in PIECEWISE_LINEAR:  # the Hessian is not the GGN in disguise
        assert (hessian - ggn).abs().max() > 1e-3 * ggn.abs().max()

    settings = _attention_settings()
    x = cases.randn(len(dense.theta), seed=5)
    for merge in (False, "auto"):
        risk = EmpiricalRisk(*problem, merge_batches=merge)
        H, G = HessianLinearOperator.from_risk(risk), GGNLinearOperator.from_risk(risk)
        cases.assert_matches(H @ x, hessian @ x)
        cases.assert_matches(G @ x, ggn @ x)
        if merge:
            cases.assert_matches(H.to_dense(), hessian)
            cases.assert_matches(G.to_dense(), ggn)
    assert _attention_settings() == settings


def test_tied_embedding() -> None:
    """Two uses of one parameter: one block, its curvature that of both uses together."""
    with cases.seeded(0):
        model = TiedEmbedding().double()
    params = cases.perturbed(model)
    assert list(params) == ["embedding.weight", "mix.weight", "mix.bias"]
    loss = nn.CrossEntropyLoss()
    y = cases.randint(5, 6, 3, seed=2)
    y[3] = -100
    batches = cases.cut(TOKENS, y, (3, 1, 2))

    def predict(p: Any, tokens: Tensor) -> Tensor:
        table = p["embedding.weight"]
        hidden = torch.tanh(table[tokens] @ p["mix.weight"].T + p["mix.bias"])
        return (hidden @ table.T).transpose(1, 2)

    dense = truth.Dense(predict, loss, params, batches)
    for given in (params, list(params.values())):
        problem = (model, loss, given, batches)
        hessian = HessianLinearOperator(*problem, **cases.UNMERGED)
        cases.assert_matches(hessian.to_dense(), dense.hessian())
        ggn = GGNLinearOperator(*problem, **cases.UNMERGED)
        cases.assert_matches(ggn.to_dense(), dense.ggn())


def test_unused_parameters_have_zero_rows() -> None:
    problem = _build("unused")
    start = 12
    for operator in (HessianLinearOperator(*problem), GGNLinearOperator(*problem)):
        matrix = operator.to_dense()
        unused = slice(start, start + 6)
        assert torch.equal(matrix[unused], torch.zeros(6, len(matrix), dtype=torch.float64))
        assert torch.equal(matrix[:, unused], torch.zeros(len(matrix), 6, dtype=torch.float64))
        assert matrix[:start, :start].abs().max() > 1e-3


def test_weight_norm() -> None:
    """Parametrised weights. GGN only: torch's second derivative of weight norm is wrong on CPU
    (``gradgradcheck`` says so), so there is no truth for the Hessian."""
    with cases.seeded(0):
        linear = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        model = nn.Sequential(linear, nn.Tanh(), nn.Linear(4, CLASSES)).double()
    params = cases.perturbed(model)
    g, v = (f"0.parametrizations.weight.original{i}" for i in (0, 1))

    def predict(p: Any, x: Tensor) -> Tensor:
        weight = p[g] * p[v] / p[v].norm(dim=1, keepdim=True)
        return torch.tanh(x @ weight.T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]

    loss, batches = nn.CrossEntropyLoss(), [(VECTORS, cases.randint(CLASSES, 6, seed=2))]
    dense = truth.Dense(predict, loss, params, batches)
    operator = GGNLinearOperator(model, loss, params, batches)
    cases.assert_matches(operator.to_dense(), dense.ggn())
    cases.assert_matches(operator.risk.gradient(), dense.gradient())


def test_only_unused_parameters_cannot_be_told_from_a_detached_model() -> None:
    model, loss, params, batches = _build("unused")
    given = {name: p for name, p in params.items() if name.startswith("unused")}
    operator = HessianLinearOperator(model, loss, given, batches)
    with pytest.raises(DifferentiationError, match="unused"):
        operator.to_dense()


def test_parameters_that_some_batches_do_not_use() -> None:
    """Two heads, one for each sequence length: half of the batches know nothing of one."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.long = cases.mlp(), cases.mlp()

        def forward(self, x: Tensor) -> Tensor:
            return (self.short if x.shape[1] == 2 else self.long)(x.mean(1))

    model, loss = Branches().double(), nn.CrossEntropyLoss()
    params = cases.perturbed(model)
    batches = [
        (cases.randn(3, 2, 3, seed=1), cases.randint(3, 3, seed=2)),
        (cases.randn(4, 5, 3, seed=3), cases.randint(3, 4, seed=4)),
    ]
    for prefix, (X, y) in (("short.", batches[0]), ("long.", batches[1])):
        given = {name: p for name, p in params.items() if name.startswith(prefix)}
        dense = truth.Dense(
            truth.module_predict(model),
            nn.CrossEntropyLoss(reduction="sum"),
            given,
            [(X, y)],
        )
        hessian = HessianLinearOperator(model, loss, given, batches)
        cases.assert_matches(hessian.to_dense(), dense.hessian() / 7)
        ggn = GGNLinearOperator(model, loss, given, batches)
        cases.assert_matches(ggn.to_dense(), dense.ggn() / 7)
        cases.assert_matches(hessian.risk.gradient(), dense.gradient() / 7)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_with_the_remedy() -> None:
    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = nn.Linear(3, 3), nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.head(x))
            return self.head(checkpoint(self.block, hidden, use_reentrant=True))

    model = Reentrant().double()
    batches = [(VECTORS, cases.randint(CLASSES, 6, seed=2))]
    with pytest.raises(DifferentiationError, match="use_reentrant=False"):
        HessianLinearOperator(model, nn.CrossEntropyLoss(), model, batches)


def test_operations_without_a_second_derivative_are_refused() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 3 * x**2 * g

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return Cube.apply(self.head(x))

    model = Once().double()
    batches = [(VECTORS, cases.randint(CLASSES, 6, seed=2))]
    with pytest.raises(DifferentiationError, match="Cube"):
        HessianLinearOperator(model, nn.CrossEntropyLoss(), model, batches)
    operator = GGNLinearOperator(model, nn.CrossEntropyLoss(), model, batches)
    with pytest.raises(DifferentiationError, match="Cube"):
        operator @ cases.randn(operator.shape[1], seed=1)


def test_a_wrong_second_derivative_of_torch_is_refused() -> None:
    """torch's double backward of weight normalisation is not symmetric on the CPU."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    model = nn.Sequential(normed, nn.Tanh(), nn.Linear(4, CLASSES)).double()
    batches = [(VECTORS, cases.randint(CLASSES, 6, seed=2))]
    with pytest.raises(DifferentiationError, match="not symmetric"):
        HessianLinearOperator(model, nn.CrossEntropyLoss(), model, batches)


def test_inference_mode_around_a_product_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    batches = [(VECTORS, cases.randint(CLASSES, 6, seed=2))]
    expected = HessianLinearOperator(model, nn.CrossEntropyLoss(), model, batches).to_dense()
    with torch.inference_mode():
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), model, batches)
        inside = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
        gradient = operator.risk.gradient()
    cases.assert_matches(inside, expected)
    cases.assert_matches(gradient, operator.risk.gradient())


@pytest.mark.parametrize("data", ["list", "loader"])
def test_a_model_that_writes_to_its_input(data: str) -> None:
    """Right, or refused by name; never a number that changes from product to product."""

    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.mul_(1.5))

    class Source:
        def __iter__(self) -> Iterator[Any]:
            return iter([(VECTORS.clone(), y)])

    y = cases.randint(CLASSES, 6, seed=2)
    with cases.seeded(0):
        model = Greedy().double()
    params, loss = cases.perturbed(model), nn.CrossEntropyLoss()
    source: Any = [(VECTORS.clone(), y)] if data == "list" else Source()

    def predict(p: Any, x: Tensor) -> Tensor:
        hidden = torch.tanh(1.5 * x @ p["net.0.weight"].T + p["net.0.bias"])
        return hidden @ p["net.2.weight"].T + p["net.2.bias"]

    dense = truth.Dense(predict, loss, params, [(VECTORS, y)])
    try:
        operator = HessianLinearOperator(model, loss, params, source)
        for _ in range(2):
            cases.assert_matches(operator.to_dense(), dense.hessian())
    except DeterminismError as refusal:
        assert "place" in str(refusal) or "input" in str(refusal)  # noqa: PT017


def test_mixed_requires_grad() -> None:
    """A module means its trainable parameters; frozen ones stay at the module's values."""
    model, loss, _, batches = _build("bilinear-tanh")
    model[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert list(params) == ["0.bias", "2.weight", "2.bias"]
    dense = truth.Dense(truth.module_predict(model), loss, params, batches)
    hessian = HessianLinearOperator(model, loss, model, batches)
    cases.assert_matches(hessian.to_dense(), dense.hessian())
    cases.assert_matches(GGNLinearOperator(model, loss, model, batches).to_dense(), dense.ggn())
    assert [p.requires_grad for p in model.parameters()] == flags


def test_frozen_parameters_of_the_module_that_are_asked_for_are_refused() -> None:
    model, loss, _, batches = _build("bilinear-tanh")
    model[0].bias.requires_grad_(False)
    params = dict(model.named_parameters())
    for given in (params, list(params.values()), "0.bias", ["0.bias"]):
        with pytest.raises(InputError, match=r"0\.bias"):
            HessianLinearOperator(model, loss, given, batches)
    assert not model[0].bias.requires_grad
    assert model[0].weight.requires_grad


# Attention settings ------------------------------------------------------------------------


def _attention_settings() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


@pytest.fixture
def unusual_attention_settings() -> Iterator[tuple[bool, ...]]:
    cuda, before = torch.backends.cuda, _attention_settings()

    def apply(fast: bool, flash: bool, efficient: bool, math: bool, cudnn: bool) -> None:
        torch.backends.mha.set_fastpath_enabled(fast)
        cuda.enable_flash_sdp(flash)
        cuda.enable_mem_efficient_sdp(efficient)
        cuda.enable_math_sdp(math)
        cuda.enable_cudnn_sdp(cudnn)

    chosen = (True, True, False, False, True)
    apply(*chosen)
    assert _attention_settings() == chosen
    yield chosen
    apply(*before)


@pytest.mark.parametrize("name", ["sdpa", "multihead-no-weights", "transformer-layer"])
def test_attention_settings_are_restored(
    name: str, unusual_attention_settings: tuple[bool, ...]
) -> None:
    model, loss, params, batches = _build(name)
    risk = EmpiricalRisk(model, loss, params, batches)
    x = cases.randn(risk.space.dim, seed=1)
    for operator in (HessianLinearOperator.from_risk(risk), GGNLinearOperator.from_risk(risk)):
        assert torch.isfinite(operator @ x).all()
        assert _attention_settings() == unusual_attention_settings
    risk.gradient()
    list(risk.predictions())
    assert _attention_settings() == unusual_attention_settings


def test_attention_settings_are_restored_after_an_exception(
    unusual_attention_settings: tuple[bool, ...],
) -> None:
    class Boom(Exception):
        pass

    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.armed = Attention(causal=False), False

        def forward(self, x: Tensor) -> Tensor:
            if self.armed:
                raise Boom
            return self.attention(x)

    model = Fragile().double()
    batches = cases.cut(SEQUENCES, cases.randint(CLASSES, 6, seed=2), (3, 3))
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), model, batches)
    model.armed = True
    with pytest.raises(Boom):
        operator @ cases.randn(operator.shape[1], seed=1)
    assert _attention_settings() == unusual_attention_settings


# Precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["conv2d", "layer-norm", "transformer-layer", "lstm", "checkpointed"]
)
def test_float32(name: str) -> None:
    """Error below 2e-5 of the largest entry, against float64 at the same float32 values."""
    model, loss, params, batches = _build(name)
    params = {n: p.float() for n, p in params.items()}
    batches = [(X.float(), y) for X, y in batches]
    dense = _dense(model, loss, params, batches)
    with _math_kernels():
        hessian, ggn = dense.hessian_by_double_backward(), dense.ggn()
    model = model.float()
    problem = (model, loss, params, batches)
    cases.assert_matches(HessianLinearOperator(*problem).to_dense(), hessian, torch.float32)
    cases.assert_matches(GGNLinearOperator(*problem).to_dense(), ggn, torch.float32)


@pytest.mark.parametrize("name", ["bilinear-tanh", "layer-norm", "sdpa"])
def test_bfloat16_parameters(name: str) -> None:
    """Eight bits of mantissa: error below 5 % in the Frobenius norm, dtype bfloat16."""
    model, loss, params, batches = _build(name)
    params = {n: p.bfloat16() for n, p in params.items()}
    batches = [(X.bfloat16(), y) for X, y in batches]
    dense = _dense(model, loss, params, batches)
    with _math_kernels():
        expected = {
            HessianLinearOperator: dense.hessian_by_double_backward(),
            GGNLinearOperator: dense.ggn(),
        }
    model = model.bfloat16()
    for kind, matrix in expected.items():
        operator = kind(model, loss, params, batches)
        assert operator.dtype == torch.bfloat16
        actual = operator.to_dense()
        assert actual.dtype == torch.bfloat16
        error = (actual.double() - matrix).norm() / matrix.norm()
        assert error < 0.05
        x = cases.randn(len(matrix), seed=3).bfloat16()
        product = (operator @ x).double()
        wanted = matrix @ x.double()
        assert (product - wanted).norm() / wanted.norm() < 0.05


def test_autocast_on_request() -> None:
    """Float32 parameters, bfloat16 forward pass: near the float32 answer, and not equal to it."""
    model, loss, params, batches = _build("bilinear-tanh")
    params = {n: p.float() for n, p in params.items()}
    batches = [(X.float(), y) for X, y in batches]
    dense = _dense(model, loss, params, batches)
    model = model.float()
    for kind, matrix in (
        (HessianLinearOperator, dense.hessian()),
        (GGNLinearOperator, dense.ggn()),
    ):
        operator = kind(model, loss, params, batches, autocast=torch.bfloat16)
        assert operator.dtype == torch.float32
        actual = operator.to_dense()
        assert actual.dtype == torch.float32
        error = (actual.double() - matrix).norm() / matrix.norm()
        assert 1e-5 < error < 0.05
    assert not torch.is_autocast_enabled("cpu")


def test_the_users_own_autocast_is_not_inherited_unasked() -> None:
    """float64 stays float64: an autocast region around a product does not round it."""
    problem = _build("bilinear-tanh")
    expected = _dense(*problem).hessian()
    operator = HessianLinearOperator(*problem)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = operator.to_dense()
    cases.assert_matches(actual, expected)


def test_under_the_users_no_grad() -> None:
    problem = _build("bilinear-tanh")
    dense = _dense(*problem)
    with torch.no_grad():
        hessian = HessianLinearOperator(*problem).to_dense()
        gradient = EmpiricalRisk(*problem).gradient()
    cases.assert_matches(hessian, dense.hessian())
    cases.assert_matches(gradient, dense.gradient())
