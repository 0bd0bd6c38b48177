"""The problems that every library is measured on, with data made from a fixed seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from curvops.datasets import DEBIAN_FASHION_MNIST, StrPath, fashion_mnist
from curvops.datasets import batches as batches_of


@dataclass(frozen=True)
class Problem:
    """A model, a loss and batches.

    Attributes:
        name: What tables call it.
        model: In eval mode, float32.
        loss: A torch loss with ``reduction="mean"``.
        data: Batches ``(X, y)``.
        attention: Whether the model uses ``scaled_dot_product_attention``.
    """

    name: str
    model: nn.Module
    loss: nn.Module
    data: list[tuple[Tensor, Tensor]]
    attention: bool = False

    @property
    def params(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def dim(self) -> int:
        """The number of parameters P."""
        return sum(p.numel() for p in self.params)

    @property
    def num_data(self) -> int:
        """The number of data N."""
        return sum(len(y) for _, y in self.data)

    def to(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Problem:
        """Return a copy elsewhere, or in another floating dtype."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None)

        model = copy.deepcopy(self.model).to(device, dtype)
        return replace(self, model=model, data=[(move(X), move(y)) for X, y in self.data])

    def twice_differentiable(self) -> AbstractContextManager[None]:
        """Return a context in which attention has second derivatives.

        The fused attention kernels have none; without this the peers refuse the model.
        """
        return sdpa_kernel(SDPBackend.MATH) if self.attention else nullcontext()


def mlp(batches: int = 8, size: int = 128, width: int = 512) -> Problem:
    """MLP 784-width-width/2-10 with ReLU on MNIST-shaped data; 784-512-256-10 by default."""
    data = _images(batches, size, (1, 28, 28))
    return Problem("MLP", _mlp(width), nn.CrossEntropyLoss(), data)


def _mlp(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width),
        nn.ReLU(),
        nn.Linear(width, width // 2),
        nn.ReLU(),
        nn.Linear(width // 2, 10),
    )


def cnn(batches: int = 8, size: int = 128) -> Problem:
    """Two convolutions with max pooling and two linear layers on MNIST-shaped data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return Problem("CNN", model, nn.CrossEntropyLoss(), _images(batches, size, (1, 28, 28)))


class _Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.norm2(x))


class _GPT(nn.Module):
    """A small decoder; logits are laid out ``[N, C, T]``."""

    def __init__(self, vocabulary: int, width: int, heads: int, blocks: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(h))).transpose(1, 2)


def gpt(batches: int = 8, size: int = 16, width: int = 64) -> Problem:
    """A 2-layer GPT, vocabulary 64, width 64, 4 heads, 32 positions, loss on every one."""
    torch.manual_seed(0)
    model = _GPT(vocabulary=64, width=width, heads=4, blocks=2, length=32)
    g = torch.Generator().manual_seed(1)
    data = [
        (
            torch.randint(64, (size, 32), generator=g),
            torch.randint(64, (size, 32), generator=g),
        )
        for _ in range(batches)
    ]
    return Problem("GPT", model.eval(), nn.CrossEntropyLoss(), data, attention=True)


class _Residual(nn.Module):
    """Two 3 × 3 convolutions with batch norm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(batches: int = 2, size: int = 32) -> Problem:
    """ResNet-18 of width 64 with a 3 × 3 stem, batch norm in eval mode, CIFAR-shaped data."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Residual(width, outputs, stride), _Residual(outputs, outputs, 1)]
        width = outputs
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    for module in model.modules():  # statistics of a trained net, not zeros and ones
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    data = _images(batches, size, (3, 32, 32))
    return Problem("ResNet-18", model.eval(), nn.CrossEntropyLoss(), data)


def fashion(
    batches: int = 8, size: int = 128, root: StrPath = DEBIAN_FASHION_MNIST, steps: int = 40
) -> Problem:
    """The MLP on the first images of Fashion-MNIST, after a few steps of gradient descent.

    Raises:
        DataError: If the files are not below ``root``.
    """
    images, labels = fashion_mnist(root)
    data = batches_of(images[: batches * size], labels[: batches * size], size)
    model, loss = _mlp(512), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        X, y = data[step % len(data)]
        optimizer.zero_grad()
        loss(model(X), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Problem("Fashion-MNIST", model, loss, data)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "mlp": mlp,
    "cnn": cnn,
    "gpt": gpt,
    "resnet18": resnet18,
    "fashion": fashion,
}

QUICK: dict[str, dict[str, int]] = {
    "mlp": {"batches": 2},
    "cnn": {"batches": 2, "size": 64},
    "gpt": {"batches": 2},
    "resnet18": {"batches": 1, "size": 4},
    "fashion": {"batches": 2},
}
"""Smaller data for a first look; the models are the same."""

TITLES = {
    "mlp": "MLP",
    "cnn": "CNN",
    "gpt": "GPT",
    "resnet18": "ResNet-18",
    "fashion": "Fashion-MNIST",
    "digits": "digits",  # of the log-determinants alone
    "landscape": "landscape",  # of the landscape alone
}


def build(name: str, quick: bool = False, root: StrPath | None = None, **sizes: int) -> Problem:
    """Return a problem by name.

    Args:
        name: A key of :data:`PROBLEMS`.
        quick: Use the smaller data.
        root: Where Fashion-MNIST lies.
        sizes: Arguments of the problem's function; they win over ``quick``.
    """
    arguments: dict[str, Any] = {**(QUICK[name] if quick else {}), **sizes}
    if name == "fashion" and root is not None:
        arguments["root"] = root
    return PROBLEMS[name](**arguments)


def _images(batches: int, size: int, shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, *shape, generator=g), torch.randint(10, (size,), generator=g))
        for _ in range(batches)
    ]
