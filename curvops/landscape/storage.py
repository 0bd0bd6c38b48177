"""Results in a file: every tensor in an npz archive, everything else in a JSON header beside them.

Nothing is pickled, on the way out or in, so a file from a stranger can hold wrong numbers but no
code. What comes back is equal to the last bit, non-finite values and dtypes included.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np
import torch
from torch import Tensor

from curvops.errors import DataError, InputError

StrPath = Union[str, "PathLike[str]"]
"""A path in a file system."""

VERSION = 1
"""Of the layout of files; a newer one is refused."""

_HEADER = "header"
_KINDS: dict[str, type[Stored]] = {}

R = TypeVar("R", bound="Stored")


class Stored:
    """A frozen dataclass that saves itself, comes back equal, and converts to plain Python.

    Its fields hold tensors, NumPy arrays, strings, numbers, ``None``, dtypes, other results, or
    tuples, lists and dicts of them. A field with a default may be missing in an older file.

    Example:
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Scan(Stored):
        ...     label: str
        ...     losses: Tensor
        >>> scan = Scan("top", torch.tensor([1.0, float("nan")]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scan.save(folder + "/scan.npz")
        ...     Scan.load(folder + "/scan.npz")
        Scan(label='top', losses=tensor([1., nan]))
        >>> scan.to_dict()
        {'label': 'top', 'losses': [1.0, nan]}
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _KINDS[cls.__name__] = cls

    def save(self, path: StrPath) -> None:
        """Write the result to a file, whole or not at all.

        Args:
            path: The file, by custom ``*.npz``; the name is taken as it is. An existing file is
                replaced once the new one is complete.

        Raises:
            InputError: If a field holds something that no file can.
            OSError: If the file cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        header = {"format": "curvops", "version": VERSION, "result": _encode(self, arrays, "")}
        text = json.dumps(header, allow_nan=False).encode()
        arrays[_HEADER] = np.frombuffer(text, dtype=np.uint8)
        target = Path(path)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls: type[R], path: StrPath) -> R:
        """Read a result back, with its tensors on the CPU.

        Args:
            path: A file written by :meth:`save`.

        Returns:
            The result, equal to the one that was saved.

        Raises:
            DataError: If the file is damaged, holds another kind of result, or was written by a
                newer version.
            OSError: If the file cannot be read.
        """
        arrays, header = _read(Path(path))
        if header.get("version", 0) > VERSION:
            raise DataError(
                f"{path} has layout {header['version']}, and this curvops reads up to {VERSION}. "
                "Install a newer curvops."
            )
        try:
            result = _decode(header["result"], arrays)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} holds a damaged result: {error}") from error
        if not isinstance(result, cls):
            raise DataError(
                f"{path} holds {type(result).__name__}, not {cls.__name__}. "
                f"Load it with {type(result).__name__}.load."
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python; tensors become nested lists."""
        return {name: _plain(value) for name, value in _items(self)}


def _items(result: Stored) -> list[tuple[str, Any]]:
    assert is_dataclass(result)
    return [(f.name, getattr(result, f.name)) for f in fields(result)]


def _plain(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, Stored):
        return value.to_dict()
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


# What JSON does not know is an object of one or two entries, the first of which says what it is.


def _encode(value: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else {"float": str(number)}
    if isinstance(value, (Tensor, np.ndarray)):
        return _encode_array(value, arrays, where)
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Stored):
        return {
            "kind": type(value).__name__,
            "fields": {
                name: _encode(item, arrays, f"{where}.{name}" if where else name)
                for name, item in _items(value)
            },
        }
    if isinstance(value, (tuple, list)):
        items = [_encode(item, arrays, f"{where}.{i}") for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {k: _encode(item, arrays, f"{where}.{k}") for k, item in value.items()}}
    raise InputError(
        f"{where} is {type(value).__name__}, which cannot be saved; tensors, strings, numbers, "
        "and tuples, lists and dicts of them by name can."
    )


def _encode_array(
    value: Tensor | np.ndarray, arrays: dict[str, np.ndarray], where: str
) -> dict[str, str]:
    # Names inside the archive are for whoever opens it without curvops; the number keeps them
    # unique whatever a dict's keys are.
    name = f"{len(arrays)}_{''.join(c if c.isalnum() else '_' for c in where)}"
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise InputError(f"{where} is an array of Python objects, which cannot be saved.")
        arrays[name] = value
        return {"array": name}
    tensor = value.detach().to("cpu").contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype == torch.bfloat16:  # NumPy has none: the bits are kept
        tensor = tensor.view(torch.int16)
    arrays[name] = tensor.numpy()
    return {"tensor": name, "dtype": dtype}


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "nothing")
    inner: Any = value.get(tag)
    if tag == "float":
        return float(inner)
    if tag == "dtype":
        return _dtype(inner)
    if tag == "array":
        return arrays[inner]
    if tag == "tensor":
        tensor, dtype = torch.from_numpy(arrays[inner]), _dtype(value["dtype"])
        return tensor.view(dtype) if dtype == torch.bfloat16 else tensor.to(dtype)
    if tag == "tuple":
        return tuple(_decode(item, arrays) for item in inner)
    if tag == "dict":
        return {key: _decode(item, arrays) for key, item in inner.items()}
    if tag == "kind" and inner in _KINDS:
        # Only classes of this registry are ever built, and only from values made here.
        return _KINDS[inner](**{k: _decode(item, arrays) for k, item in value["fields"].items()})
    raise ValueError(f"unknown entry {tag!r}: {str(inner)[:40]!r}.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype of torch.")
    return dtype


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return every array of an archive, and its header."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path} is not an npz archive, or only a part of one.")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(arrays.pop(_HEADER).tobytes())
            known = header["format"] == "curvops" and isinstance(header["version"], int)
        except (
            zipfile.BadZipFile,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            RecursionError,
        ) as error:
            raise DataError(f"{path} was not written by curvops, or is damaged: {error}") from error
    if not known:
        raise DataError(f"{path} was not written by curvops.")
    return arrays, header
