"""Hugging Face models: batches that are mappings, outputs that are ``ModelOutput``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from curvops.errors import DataError, InputError


def huggingface(model: Any, X: Any) -> Tensor:
    """Return the logits of a Hugging Face model, laid out for ``nn.CrossEntropyLoss``.

    Pass it as ``forward=`` of a risk or an operator. A mapping X is passed as keyword
    arguments (without its ``labels``, so that the model does not compute a loss of its own).
    Logits per token ``[N, T, C]`` become ``[N, C, T]``.

    Args:
        model: A model whose output has ``.logits``.
        X: The inputs of one batch.

    Returns:
        Logits ``[N, C]`` or ``[N, C, T]``.

    Raises:
        InputError: If the output has no logits.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> def model(input_ids):
        ...     return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 7))
        >>> huggingface(model, {"input_ids": torch.zeros(2, 5, dtype=torch.long)}).shape
        torch.Size([2, 7, 5])
    """
    if isinstance(X, Mapping):
        output = model(**{key: value for key, value in X.items() if key != "labels"})
    else:
        output = model(X)
    logits = output["logits"] if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{type(model).__name__} returned {type(output).__name__} without .logits. Write "
            "your own forward=lambda model, X: ... that picks the prediction."
        )
    return logits.movedim(-1, 1) if logits.ndim == 3 else logits


class huggingface_batches:  # noqa: N801 - reads as the function it is
    """Turn a loader of mappings with labels into one of pairs ``(X, labels)``.

    It can be iterated again as often as the loader can.

    Args:
        loader: A re-iterable of mappings.
        labels: The key of the labels.
        causal: For causal language models: the label of a position is the next token. Positions
            without one (the last, and what an ``attention_mask`` hides) get ``ignore_index``.
        ignore_index: The label that the loss ignores.

    Raises:
        DataError: If a batch is not a mapping, or has no labels.

    Example:
        >>> import torch
        >>> loader = [{"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[5, 6, 7]])}]
        >>> [(X, y)] = huggingface_batches(loader, causal=True)
        >>> list(X), y
        (['input_ids'], tensor([[   6,    7, -100]]))
    """

    def __init__(
        self,
        loader: Iterable[Mapping[str, Any]],
        labels: str = "labels",
        causal: bool = False,
        ignore_index: int = -100,
    ) -> None:
        if isinstance(loader, Iterator):
            raise DataError(
                f"loader is a one-shot {type(loader).__name__}: every product needs all of it. "
                "Pass list(loader), or a DataLoader."
            )
        self._loader = loader
        self._labels = labels
        self._causal = causal
        self._ignore_index = ignore_index

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yield the pairs."""
        for i, batch in enumerate(self._loader):
            if not isinstance(batch, Mapping):
                raise DataError(f"batch {i} is a {type(batch).__name__}, not a mapping.")
            if self._labels not in batch:
                raise DataError(f"batch {i} has no {self._labels!r}; it has {list(batch)}.")
            X = {key: value for key, value in batch.items() if key != self._labels}
            y = batch[self._labels]
            yield X, self._shifted(y, X.get("attention_mask")) if self._causal else y

    def _shifted(self, y: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            y = y.masked_fill(mask == 0, self._ignore_index)
        last = torch.full_like(y[:, :1], self._ignore_index)
        return torch.cat([y[:, 1:], last], dim=1)
