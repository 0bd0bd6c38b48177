"""A deterministic stream of mini-batches.

The data are read once. What fits the cache budget stays in the device's memory in that order;
beyond it the source is read again for every pass and each batch is compared with its
fingerprint from the first pass, so that no two products can silently see different data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvops.errors import DataError, DeterminismError, InputError, NonFiniteError
from curvops.nesting import (
    can_concatenate,
    concatenate,
    leading_size,
    leaves,
    map_tensors,
    tensors_of,
)
from curvops.rng import PrivateRNG

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "b": 1}


def parse_bytes(size: int | str, name: str) -> int:
    """Return a number of bytes written as ``1073741824``, ``"1GiB"`` or ``"500 MB"``.

    Raises:
        InputError: If the text is not a size, or negative.

    Example:
        >>> parse_bytes("1.5 KiB", "cache_data")
        1536
    """
    try:
        if isinstance(size, str):
            text = size.strip().lower()
            digits = text.rstrip("kmgtib ")
            value = int(float(digits) * _UNITS[text[len(digits) :].strip() or "b"])
        else:
            value = int(size)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise InputError(f'{name} must be bytes or text such as "1GiB", got {size!r}.') from None
    if value < 0:
        raise InputError(f"{name} must not be negative, got {size!r}.")
    return value


@dataclass(frozen=True)
class Batch:
    """A mini-batch on the device.

    Attributes:
        index: Its position in the stream.
        X: Inputs, any nesting of tensors.
        y: Targets, any nesting of tensors.
        size: Number of data.
    """

    index: int
    X: Any
    y: Any
    size: int


class BatchStream:
    """A re-iterable stream of :class:`Batch` over a user's data source.

    Args:
        data: A re-iterable of pairs ``(X, y)``.
        device: Where to move the batches.
        cache_bytes: How much device memory may be spent on keeping them.
        batch_size_fn: Number of data of a batch from its X; the leading axis by default.
        check_finite: Refuse NaN and infinity in the data.
        verify: Fingerprint what is re-read.
        inspect: Called with every batch when it is first read.

    Raises:
        DataError: If ``data`` is one-shot, empty, or a batch is not a pair.
        NonFiniteError: If a batch holds NaN or infinity.
    """

    def __init__(
        self,
        data: Iterable[Any],
        device: torch.device,
        cache_bytes: int,
        batch_size_fn: Callable[[Any], int] | None = None,
        check_finite: bool = True,
        verify: bool = True,
        inspect: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._data = data
        self._device = device
        self._batch_size_fn = batch_size_fn or leading_size
        self._check_finite = check_finite
        self._rng = PrivateRNG(seed=0)
        self._size_of_batches = 0
        self._fingerprints: list[bytes] | None = [] if verify else None
        self._cache: list[Batch] | None = []
        self.sizes: list[int] = []
        _refuse_one_shot(data)
        self._scan(cache_bytes, inspect)

    @property
    def num_data(self) -> int:
        """Number of data in all batches."""
        return sum(self.sizes)

    @property
    def is_cached(self) -> bool:
        """Whether the batches are kept in the device's memory."""
        return self._cache is not None

    @property
    def is_recut(self) -> bool:
        """Whether batches are cut where it suits, since every datum counts for itself."""
        return self._size_of_batches > 0

    def __len__(self) -> int:
        """Return the number of batches of a pass (at least, where shapes keep them apart)."""
        if self._cache is not None:
            return len(self._cache)
        size = self._size_of_batches
        return -(-self.num_data // size) if size else len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, always the same ones in the same order."""
        if self._cache is not None:
            self._check_cache_unchanged()
            yield from self._cache
        elif self._size_of_batches:
            yield from _recut(self._read_again(), self._size_of_batches)
        else:
            yield from self._read_again()

    def recut(self, limit: int) -> None:
        """Re-cut the data to batches of equal size, at most ``limit`` data each.

        The last one may be smaller, so that there are at most two shapes; batches of other
        shapes stay apart.
        """
        self._size_of_batches = -(-self.num_data // -(-self.num_data // limit))
        if self._cache is not None:
            with torch.inference_mode(False):
                self._cache = list(_recut(iter(self._cache), self._size_of_batches))
            self._versions = [_versions(b) for b in self._cache]

    def _scan(self, cache_bytes: int, inspect: Callable[[Batch], None]) -> None:
        spent = 0
        for i, (X, y) in self._read():
            if self._fingerprints is not None:
                self._fingerprints.append(_fingerprint((X, y)))
            if self._check_finite:
                _refuse_non_finite(i, X, y)
            size = self._size(i, X)
            if size == 0:
                continue
            batch = self._place(len(self.sizes), X, y, size)
            inspect(batch)
            self.sizes.append(size)
            # What a list of batches already holds on the device costs nothing to keep.
            held = {t.data_ptr() for t in tensors_of((X, y))} if _is_held(self._data) else set()
            spent += sum(
                t.numel() * t.element_size()
                for t in tensors_of((batch.X, batch.y))
                if t.data_ptr() not in held
            )
            if self._cache is not None:
                self._cache.append(batch)
                if spent > cache_bytes:
                    self._cache = None
        if not self.sizes:
            raise DataError("data is empty: it has no batch with at least one datum.")
        if self._cache is not None:
            self._fingerprints = None
            self._versions = [_versions(b) for b in self._cache]

    def _read(self) -> Iterator[tuple[int, tuple[Any, Any]]]:
        """Iterate over the source without touching the global random generators."""
        with self._rng.active():
            source = iter(self._data)
        i = 0
        while True:
            with self._rng.active():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield i, _as_pair(i, item)
            i += 1

    def _read_again(self) -> Iterator[Batch]:
        index = -1
        for i, (X, y) in self._read():
            if self._fingerprints is not None:
                expected = self._fingerprints[i] if i < len(self._fingerprints) else None
                if _fingerprint((X, y)) != expected:
                    raise DeterminismError(self._changed(f"batch {i} differs from"))
            size = self._size(i, X)
            if size:
                index += 1
                yield self._place(index, X, y, size)
        if self._fingerprints is not None and index + 1 != len(self.sizes):
            raise DeterminismError(
                self._changed(f"a pass ended after {index + 1} of {len(self.sizes)} batches of")
            )

    def _changed(self, what: str) -> str:
        sampler = getattr(self._data, "sampler", None)
        culprit = type(self._data).__name__
        if sampler is not None:
            culprit += f" with {type(sampler).__name__}"
        return (
            f"The data changed between two passes: {what} the first pass. Source: {culprit}. "
            "Use shuffle=False and no random augmentation, or raise cache_data= so that the "
            "data are read once and kept."
        )

    def _size(self, i: int, X: Any) -> int:
        size = self._batch_size_fn(X)
        if not isinstance(size, int) or size < 0:
            raise DataError(f"batch {i}: batch_size_fn returned {size!r}; expected an int >= 0.")
        return size

    def _place(self, index: int, X: Any, y: Any, size: int) -> Batch:
        def move(t: Tensor) -> Tensor:
            # autograd cannot save tensors that were made in inference mode
            return (t.clone() if t.is_inference() else t.detach()).to(self._device)

        with torch.inference_mode(False):
            return Batch(index, map_tensors(move, X), map_tensors(move, y), size)

    def _check_cache_unchanged(self) -> None:
        assert self._cache is not None
        for batch, versions in zip(self._cache, self._versions, strict=True):
            if _versions(batch) != versions:
                raise DeterminismError(
                    f"batch {batch.index} of data was modified in place since the risk was "
                    "built. Build a new risk for new data."
                )


class CastStream:
    """The batches of a stream with their floating tensors in another dtype.

    Args:
        stream: The stream, or anything that stands for one.
        dtype: The real floating dtype.
        cache_bytes: Memory for keeping the copies, if the stream keeps its batches; without it
            they are made for every pass.
    """

    def __init__(self, stream: Any, dtype: torch.dtype, cache_bytes: int) -> None:
        self._stream = stream
        self._dtype = dtype
        self._kept: list[Batch] | None = None
        if stream.is_cached and self._num_bytes() <= cache_bytes:
            self._kept = [self._cast(batch) for batch in stream]

    def __getattr__(self, name: str) -> Any:
        """Return what the stream says of itself: sizes do not depend on the dtype."""
        return getattr(self._stream, name)

    def __len__(self) -> int:
        """Return the number of batches of a pass."""
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, in the order of the stream."""
        if self._kept is None:
            yield from map(self._cast, self._stream)
        else:
            next(iter(self._stream))  # which refuses data that were modified since
            yield from self._kept

    def _cast(self, batch: Batch) -> Batch:
        def cast(t: Tensor) -> Tensor:
            return t.to(self._dtype) if t.is_floating_point() else t

        with torch.inference_mode(False):
            X, y = map_tensors(cast, batch.X), map_tensors(cast, batch.y)
        return Batch(batch.index, X, y, batch.size)

    def _num_bytes(self) -> int:
        tensors = (t for batch in self._stream for t in tensors_of((batch.X, batch.y)))
        return sum(t.numel() * self._dtype.itemsize for t in tensors if t.is_floating_point())


def _is_held(data: Any) -> bool:
    return isinstance(data, (list, tuple))


def _versions(batch: Batch) -> list[int]:
    return [t._version for t in tensors_of((batch.X, batch.y))]


def _refuse_one_shot(data: Any) -> None:
    if not isinstance(data, Iterable):
        raise DataError(f"data must be a re-iterable of batches (X, y), got {type(data).__name__}.")
    if isinstance(data, Iterator) or (
        not isinstance(data, torch.utils.data.DataLoader) and iter(data) is data
    ):
        raise DataError(
            f"data is a one-shot {type(data).__name__}: it can be read once, but every product "
            "needs all of it. Pass list(data), or a DataLoader."
        )


def _as_pair(i: int, item: Any) -> tuple[Any, Any]:
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    length = f" of length {len(item)}" if isinstance(item, (tuple, list)) else ""
    raise DataError(
        f"batch {i} is a {type(item).__name__}{length}; expected a pair (X, y). "
        "For batches that are one mapping see curvops.adapters.huggingface_batches."
    )


def _refuse_non_finite(i: int, X: Any, y: Any) -> None:
    for name, nest in (("X", X), ("y", y)):
        for path, leaf in leaves(nest, name):
            if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point:
                bad = leaf.numel() - int(torch.isfinite(leaf).sum())
                if bad:
                    raise NonFiniteError(
                        f"batch {i}: {path} holds {bad} non-finite values (NaN or infinity). "
                        "Clean the data, or pass check_finite=False if the model handles them."
                    )


def _fingerprint(nest: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in leaves(nest):
        digest.update(path.encode())
        if isinstance(leaf, Tensor):
            digest.update(repr((leaf.dtype, tuple(leaf.shape))).encode())
            data = leaf.detach().cpu().contiguous()
            if data.numel():
                digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(leaf).encode())
    return digest.digest()


def _recut(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Re-cut batches to ``size`` data each, the last one (before a change of shape) smaller."""
    waiting: list[Batch] = []
    index = 0
    for batch in batches:
        if waiting and not _fit_together(waiting[0], batch):
            yield _join(index, waiting)
            index, waiting = index + 1, []
        waiting.append(batch)
        if sum(b.size for b in waiting) >= size:
            whole = _join(index, waiting)
            stop = whole.size - whole.size % size
            for start in range(0, stop, size):
                yield _slice(index, whole, start, start + size)
                index += 1
            waiting = [_slice(index, whole, stop, whole.size)] if stop < whole.size else []
    if waiting:
        yield _join(index, waiting)


def _fit_together(a: Batch, b: Batch) -> bool:
    return can_concatenate([(a.X, a.y), (b.X, b.y)], (a.size, b.size))


def _join(index: int, group: list[Batch]) -> Batch:
    if len(group) == 1:
        return Batch(index, group[0].X, group[0].y, group[0].size)
    X, y = concatenate([b.X for b in group]), concatenate([b.y for b in group])
    return Batch(index, X, y, sum(b.size for b in group))


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield a batch in parts of ``size`` data, the last one smaller."""
    for start in range(0, batch.size, size):
        yield _slice(batch.index, batch, start, min(start + size, batch.size))


def _slice(index: int, batch: Batch, start: int, stop: int) -> Batch:
    if stop - start == batch.size:
        return Batch(index, batch.X, batch.y, batch.size)
    X, y = (map_tensors(lambda t: t[start:stop], nest) for nest in (batch.X, batch.y))
    return Batch(index, X, y, stop - start)
