"""Dense truth: what the operators should be, from the definitions, by torch alone.

Nothing here knows the library under test. The whole data set is one big batch, the loss is
torch's own on that batch, and every matrix is formed by ``torch.func`` in float64:

* Hessian: the second derivative of the loss with respect to the flat parameters;
* Jacobian ``J``: the first derivative of the flattened prediction;
* GGN: ``J^T (d^2 loss / d prediction^2) J``;
* EF: ``(1/Z) sum_t g_t g_t^T`` with ``g_t`` the gradient of the term ``t``, where the caller
  writes the terms out by hand.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, jvp

with warnings.catch_warnings():
    # torch compiles its forward-mode rules on first use, and warns about how it does that
    warnings.simplefilter("ignore", FutureWarning)
    jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))

Predict = Callable[[Mapping[str, Tensor], Any], Tensor]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch about its own vmap rules and about averages that it would rename."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        warnings.filterwarnings("ignore", message="reduction: 'mean' divides")
        yield


def concatenate(parts: list[Any]) -> Any:
    """Join nested batches along the first axis of every tensor in them."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping | UserDict):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(concatenate([p[i] for p in parts]) for i in range(len(first)))
    raise TypeError(f"cannot join {type(first)}")


def to(tree: Any, dtype: torch.dtype) -> Any:
    """Cast the floating tensors of a nested batch."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, UserDict):
        return UserDict({key: to(value, dtype) for key, value in tree.items()})
    if isinstance(tree, Mapping):
        return {key: to(value, dtype) for key, value in tree.items()}
    return type(tree)(to(value, dtype) for value in tree)


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """Parameters in their order, row-major, as one vector ``[P]``."""
    return torch.cat([p.detach().reshape(-1) for p in params.values()])


def unflatten(theta: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`flatten`."""
    pieces = theta.split([p.numel() for p in like.values()])
    return {name: x.view_as(p) for x, (name, p) in zip(pieces, like.items(), strict=True)}


def module_predict(module: nn.Module) -> Predict:
    """Return ``(params, X) -> prediction`` of a module, its other tensors as they are."""
    return lambda params, X: functional_call(module, dict(params), (X,))


class Dense:
    """The dense quantities of one problem: ``theta -> loss(predict(theta, X), y)``.

    Args:
        predict: ``(params, X) -> prediction``.
        loss: ``(prediction, y) -> scalar`` on the whole data set, reduction included.
        params: The point, by name.
        batches: The data, any cut.
        y_is_tuple: Pass ``y`` to the loss as several arguments.
    """

    def __init__(
        self,
        predict: Predict,
        loss: Callable[..., Tensor],
        params: Mapping[str, Tensor],
        batches: Iterable[tuple[Any, Any]],
        *,
        y_is_tuple: bool = False,
    ) -> None:
        batches = list(batches)
        self.X = to(concatenate([X for X, _ in batches]), torch.float64)
        self.y = to(concatenate([y for _, y in batches]), torch.float64)
        self.params = {name: p.detach().to(torch.float64) for name, p in params.items()}
        self.theta = flatten(self.params)
        self._predict, self._loss, self._y_is_tuple = predict, loss, y_is_tuple

    def prediction_at(self, theta: Tensor) -> Tensor:
        """Prediction of the whole data set at a flat ``theta``."""
        return self._predict(unflatten(theta, self.params), self.X)

    def loss_of(self, prediction: Tensor) -> Tensor:
        """Loss of the whole data set as a function of its prediction."""
        y = self.y if self._y_is_tuple else (self.y,)
        return self._loss(prediction, *y)

    def loss_at(self, theta: Tensor) -> Tensor:
        """Loss of the whole data set at a flat ``theta``."""
        return self.loss_of(self.prediction_at(theta))

    @quiet()
    def prediction(self) -> Tensor:
        return self.prediction_at(self.theta).detach()

    @quiet()
    def loss(self) -> Tensor:
        return self.loss_at(self.theta).detach()

    @quiet()
    def gradient(self) -> Tensor:
        theta = self.theta.clone().requires_grad_()
        return torch.autograd.grad(self.loss_at(theta), theta)[0]

    @quiet()
    def hessian(self) -> Tensor:
        return hessian(self.loss_at)(self.theta).detach()

    @quiet()
    def hessian_by_double_backward(self) -> Tensor:
        """The Hessian without forward mode or vmap, for layers that lack either."""
        return torch.autograd.functional.hessian(self.loss_at, self.theta).detach()

    @quiet()
    def jacobian(self) -> Tensor:
        """``[prediction.numel(), P]``, rows row-major in the prediction."""
        rows = torch.autograd.functional.jacobian(
            lambda theta: self.prediction_at(theta).reshape(-1), self.theta
        )
        return rows.detach()

    @quiet()
    def output_hessian(self) -> Tensor:
        """Second derivative of the loss with respect to the flattened prediction."""
        prediction = self.prediction()
        return torch.autograd.functional.hessian(
            lambda f: self.loss_of(f.view_as(prediction)), prediction.reshape(-1)
        )

    def ggn(self) -> Tensor:
        jacobian = self.jacobian()
        return jacobian.T @ self.output_hessian() @ jacobian

    def ef(self, terms: Callable[[Tensor], Tensor], normalizer: float) -> Tensor:
        """``(1/Z) sum_t g_t g_t^T`` with ``g_t`` the gradient of ``terms(prediction)[t]``.

        A term that counts with weight ``w`` is written ``sqrt(w) * term``.
        """
        g = jacrev(lambda theta: terms(self.prediction_at(theta)))(self.theta).detach()
        return g.T @ g / normalizer


def one_hot(index: int, dim: int) -> Tensor:
    """The unit vector ``e_index`` in float64."""
    return torch.eye(dim, dtype=torch.float64)[index]
