"""The streaming base of every curvature operator: a sum over mini-batches, times a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from curvops.autodiff import (
    BlockMap,
    Columns,
    ExtraStream,
    Keep,
    Keeping,
    Linearization,
    NoExtras,
    Params,
    Product,
)
from curvops.operators.linear import LinearOperator
from curvops.risk import EmpiricalRisk
from curvops.tensors import Space

Self = TypeVar("Self", bound="CurvatureLinearOperator")


class CurvatureLinearOperator(LinearOperator):
    """A matrix A = (1/Z) Σ_b A_b + λI in parameter space, one term per mini-batch.

    A subclass states A_b v once, as a chain of jvp, vjp and hvp of the batch's
    :class:`~curvops.autodiff.Linearization`, in :meth:`_chain`. What does not depend on the
    vector is kept from the second product on (or from the first, see :meth:`prepare`), within a
    memory budget; batches beyond it are streamed, one alive at a time.

    The operator follows its parameters: after an update in place, what was kept is built again.

    Args:
        model_func: An ``nn.Module``, or a callable ``(params_dict, X) -> prediction``.
        loss_func: ``(prediction, y) -> scalar``.
        params: What the risk is a function of, P numbers in all.
        data: A re-iterable of batches ``(X, y)``.
        progressbar: Show a bar over the batches of each product.
        check_deterministic: Refuse random models and changing data.
        num_data: The number of data you expect; another number found is an error.
        batch_size_fn: Number of data of a batch from its X.
        keep: What products share: ``"residuals"`` (traced, seconds of set-up), ``"graph"``
            (autograd's), ``"layers"`` (layer inputs and output gradients, Fisher matrices only),
            ``"nothing"`` (streamed), or ``"auto"``: the fastest, measured.
        columns: How K > 1 columns go through: ``"loop"``, ``"vmap"``, a number of columns at a
            time, or ``"auto"``: the faster, measured.
        memory_budget: Memory for what is kept, in bytes or as ``"2GB"``; by default half of
            what the device has free.
        compile: Compile kept residuals with ``torch.compile``; ``"auto"`` where it pays.
        options: Further arguments of :class:`~curvops.risk.EmpiricalRisk`.

    Attributes:
        risk: The empirical risk whose curvature this is.
    """

    risk: EmpiricalRisk
    _OPTIONS: tuple[str, ...] = ()
    """What a subclass takes beside the arguments of this class and of the risk."""

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[..., Any] | None,
        params: Params,
        data: Iterable[Any],
        *,
        progressbar: bool = False,
        check_deterministic: bool = True,
        num_data: int | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        keep: Keep = "auto",
        columns: Columns = "auto",
        memory_budget: int | str | None = None,
        compile: bool | Literal["auto"] = "auto",
        **options: Any,
    ) -> None:
        own = {name: options.pop(name) for name in self._OPTIONS if name in options}
        self._bind(
            EmpiricalRisk(
                model_func,
                loss_func,
                params,
                data,
                progressbar=progressbar,
                check_deterministic=check_deterministic,
                num_data=num_data,
                batch_size_fn=batch_size_fn,
                **options,
            ),
            **own,
            keep=keep,
            columns=columns,
            memory_budget=memory_budget,
            compile=compile,
        )

    @classmethod
    def from_risk(cls: type[Self], risk: EmpiricalRisk, **options: Any) -> Self:
        """Return this curvature of an existing risk.

        Args:
            risk: The empirical risk; data, checks and caches are shared with it.
            options: The operator's own options, those of its constructor after ``data``.
        """
        operator = cls.__new__(cls)
        operator._bind(risk, **options)
        return operator

    def _bind(self, risk: EmpiricalRisk, **keeping: Any) -> None:
        """Attach to a risk. Subclasses with options extend the signature."""
        self.risk = risk
        in_space, out_space = self._spaces(risk)
        LinearOperator.__init__(self, in_space, out_space, risk.dtype, risk.device)
        self._keeper = risk.keeper(self._product(), Keeping(**keeping))

    def prepare(self: Self, num_products: int) -> Self:
        """Announce how many columns will be multiplied.

        What makes products cheaper takes time to set up; announced products let the operator
        set it up as soon as it pays. Solvers of this library announce theirs.

        Args:
            num_products: The number of columns to come.

        Returns:
            The operator itself.

        Raises:
            InputError: If the number is not a nonnegative integer.
        """
        self._keeper.prepare(num_products)
        return self

    def release(self) -> None:
        """Free what products share. It is built again when needed."""
        self._keeper.release()

    @property
    def kept(self) -> str:
        """What products share now: ``"residuals"``, ``"graph"``, ``"layers"`` or ``"nothing"``."""
        return self._keeper.form

    @property
    def kept_bytes(self) -> int:
        """Memory that what products share takes."""
        return self._keeper.kept_bytes

    def _spaces(self, risk: EmpiricalRisk) -> tuple[Space, Space]:
        return risk.space, risk.space

    def _product(self) -> Product:
        """Return the product of one batch. Subclasses may say more about it."""
        return Product(self._chain, self._extras)

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        """Return v ↦ A_b v for the batch of ``lin``, one tensor per parameter.

        A pure function of the linearization and of what goes with the batch: it may be traced.
        """
        raise NotImplementedError(f"{type(self).__name__} does not state its product.")

    def _extras(self) -> ExtraStream:
        """Start the stream of tensors that go with the batches; there are none by default."""
        return NoExtras()

    def _matmat(self, X: Tensor) -> Tensor:
        product = self.risk.sum_products(self._keeper, X)
        if self.risk.weight_decay:
            product += self.risk.weight_decay * X
        return product


def outputs_space(risk: EmpiricalRisk) -> Space:
    """Return the space of all predictions, stacked over the data in their order."""
    shapes = [prediction.shape for prediction, _ in risk.predictions()]
    if len({shape[1:] for shape in shapes}) == 1 and all(shapes):
        rows = sum(shape[0] for shape in shapes)
        return Space(("prediction",), (torch.Size([rows, *shapes[0][1:]]),))
    return Space.flat(sum(shape.numel() for shape in shapes), "prediction")
