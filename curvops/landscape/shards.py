"""Rows of numbers on disk, in files that are whole or not there.

A folder holds a header ``trajectory.json`` and shards ``00000.npz``, ``00001.npz``, …, each with
the steps and the points of a few snapshots. A file is written beside its place and moved into it,
so a process that dies at any moment leaves a readable folder. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from curvops.errors import DataError

HEADER = "trajectory.json"
VERSION = 1
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        path: The file.
        steps: The step of each row, ascending.
    """

    path: Path
    steps: tuple[int, ...]

    def points(self, dim: int) -> Tensor:
        """Return the rows ``[n, P]``.

        Raises:
            DataError: If the file is damaged.
        """
        points = _read(self.path, "points")
        if points.shape != (len(self.steps), dim):
            raise DataError(f"{self.path} holds {points.shape}; expected {len(self.steps), dim}.")
        return torch.from_numpy(points)


class Shards:
    """The files of a folder.

    Args:
        folder: Created where it is missing.

    Raises:
        DataError: If a file is damaged, or the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.header = self._read_header()
        self._files: list[Shard] = []
        for path in sorted(folder.glob("[0-9]*.npz")):
            self._files.append(Shard(path, tuple(_read(path, "steps").tolist())))
        if self._files and self.header is None:
            raise DataError(f"{folder} holds shards but no {HEADER}. Name an empty folder.")

    def __iter__(self) -> Iterator[Shard]:
        """Yield the files in order."""
        return iter(self._files)

    @property
    def steps(self) -> list[int]:
        """The steps of all rows."""
        return [step for shard in self._files for step in shard.steps]

    def begin(self, header: dict[str, Any]) -> None:
        """Write the header of an empty folder."""
        text = json.dumps({"format": "curvops trajectory", "version": VERSION, **header}, indent=1)
        _replace(self.folder / HEADER, lambda file: file.write(text.encode()))
        self.header = header

    def append(self, steps: list[int], points: Tensor) -> None:
        """Write rows ``[n, P]`` as a new file, whole or not at all."""
        number = int(self._files[-1].path.stem) + 1 if self._files else 0
        path = self.folder / f"{number:05d}.npz"
        self._write(path, steps, points)
        self._files.append(Shard(path, tuple(steps)))

    def cut(self, step: int, dim: int) -> None:
        """Remove the rows of a step and of all later ones, the last file first."""
        while self._files and self._files[-1].steps[-1] >= step:
            last = self._files.pop()
            kept = [s for s in last.steps if s < step]
            if kept:
                self._write(last.path, kept, last.points(dim)[: len(kept)])
                self._files.append(Shard(last.path, tuple(kept)))
            else:
                last.path.unlink()

    def _write(self, path: Path, steps: list[int], points: Tensor) -> None:
        arrays = {"steps": np.asarray(steps, dtype=np.int64), "points": points.numpy()}
        _replace(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def _read_header(self) -> dict[str, Any] | None:
        path = self.folder / HEADER
        if not path.exists():
            return None
        try:
            header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = header["version"]
            known = header["format"] == "curvops trajectory" and isinstance(version, int)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}.") from error
        if not known or version > VERSION:
            raise DataError(f"{path} is no trajectory that this curvops can read.")
        return header


def _replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place, onto the disk, and move it there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path, name: str) -> np.ndarray:
    """Return one of the arrays of a file; the others are not read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            array: np.ndarray = archive[name]
            return array
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged: {error}. Remove it and what follows it.") from error
