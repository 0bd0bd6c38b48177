"""The points that training passes through, kept in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curvops.data import parse_bytes
from curvops.errors import InputError, ShapeError
from curvops.landscape.points import Point, read_points, trainable
from curvops.landscape.shards import Shards
from curvops.landscape.storage import StrPath
from curvops.tensors import Format, Space

if TYPE_CHECKING:
    from curvops.landscape.trajectory_pca import TrajectoryPCA

_KEPT = 16


class Trajectory:
    """Snapshots of the parameters, in the order of their steps.

    On disk, snapshots are collected and written a few at a time, each file whole or not at all:
    a process that is killed loses those that were not written yet. A folder that exists is gone
    on with, so a training that is resumed calls :meth:`rewind` with the step it resumes from and
    records on. Use it in a ``with`` block, or call :meth:`flush` at the end.

    Args:
        folder: Where to keep snapshots; in memory by default.
        every: Record only steps that this divides; 1 by default, or what the folder says.
        shard: How many snapshots a file on disk holds.
        dtype: What they are kept in, on the CPU; the parameters' own by default, at least
            float32.

    Raises:
        InputError: If an argument is impossible, or disagrees with the folder.
        DataError: If the folder is damaged.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> trajectory = Trajectory(every=10)
        >>> for step in range(25):
        ...     recorded = trajectory.record(net)
        >>> trajectory.steps.tolist(), trajectory.columns().shape
        ([0, 10, 20], torch.Size([3, 3]))
    """

    def __init__(
        self,
        folder: StrPath | None = None,
        *,
        every: int | None = None,
        shard: int = _KEPT,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("every", 1 if every is None else every), ("shard", shard)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be an integer of 1 or more, got {value!r}.")
        if dtype is not None and dtype not in (torch.float32, torch.float64, torch.float16):
            raise InputError(f"dtype is {dtype}; snapshots are kept in float16, 32 or 64.")
        self._shards = None if folder is None else Shards(Path(folder))
        self._shard = shard
        self._dtype = dtype
        self._steps: list[int] = []
        self._rows: list[Tensor] = []
        self._space: Space | None = None
        self._format = Format("flat", True)
        self.every = every or 1
        header = None if self._shards is None else self._shards.header
        if header is not None:
            self._resume(header, every)
        self._calls = (self._last + 1) if len(self) else 0

    def record(self, params: Point, step: int | None = None) -> bool:
        """Keep a snapshot of the parameters, if it is due.

        Args:
            params: A module (its trainable parameters), or a vector in any format, the same at
                every call. It is copied.
            step: Which step of the training it is; by default one more than at the last call.

        Returns:
            Whether the step was recorded.

        Raises:
            InputError: If the step is not after the last one.
            ShapeError: If the parameters are not those of the first call.
            NonFiniteError: If a parameter is NaN or infinite.
        """
        if step is None:
            step = self._calls
        elif isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InputError(f"step must be an integer of 0 or more, got {step!r}.")
        if len(self) and step <= self._last:
            raise InputError(
                f"step {step} is not after the last one recorded, {self._last}. If the training "
                f"goes on from there again, call rewind({step}) first."
            )
        self._calls = step + 1
        if step % self.every:
            return False
        self._rows.append(self._read(params))
        self._steps.append(step)
        if self._shards is not None and len(self._rows) >= self._shard:
            self.flush()
        return True

    def flush(self) -> None:
        """Write what has been recorded to disk; in memory, nothing happens.

        Raises:
            OSError: If it cannot be written. Then it is still there, and may be flushed again.
        """
        if self._shards is not None and self._rows:
            self._shards.append(self._steps, torch.stack(self._rows))
            self._steps, self._rows = [], []

    def rewind(self, step: int) -> None:
        """Forget the snapshots of a step and of all later ones, to record them again.

        Args:
            step: The next step that will be recorded.
        """
        keep = sum(s < step for s in self._steps)
        self._steps, self._rows = self._steps[:keep], self._rows[:keep]
        if self._shards is not None and self._space is not None:
            self._shards.cut(step, self._space.dim)
        self._calls = step

    @property
    def steps(self) -> Tensor:
        """The step of each snapshot ``[T]``."""
        return torch.tensor(self._all_steps(), dtype=torch.int64)

    @property
    def space(self) -> Space:
        """The parameter space.

        Raises:
            InputError: If nothing has been recorded yet.
        """
        if self._space is None:
            raise InputError("the trajectory is empty: nothing has been recorded yet.")
        return self._space

    @property
    def format(self) -> Format:
        """How snapshots were written."""
        return self._format

    def __len__(self) -> int:
        """Return the number of snapshots T."""
        return len(self._steps) + (0 if self._shards is None else len(self._shards.steps))

    def __getitem__(self, index: int) -> Any:
        """Return a snapshot in the format that was recorded (a dict for a module)."""
        total = len(self)
        if not -total <= index < total:
            raise IndexError(f"snapshot {index} of {total}")
        index %= total
        for shard in self._shards or ():
            if index < len(shard.steps):
                return self._written(shard.points(self.space.dim)[index])
            index -= len(shard.steps)
        return self._written(self._rows[index])

    def __iter__(self) -> Iterator[Any]:
        """Yield every snapshot in the format that was recorded."""
        for _, rows in self._parts():
            yield from map(self._written, rows)

    def _written(self, row: Tensor) -> Any:
        return self.space.write(row.clone().unsqueeze(1), self._format)

    def columns(self) -> Tensor:
        """Return all snapshots as columns ``[P, T]``, in memory."""
        dim = self.space.dim
        parts = [rows for _, rows in self._parts()]
        return torch.cat(parts).T if parts else torch.zeros(dim, 0)

    def blocks(self, memory_budget: int | str = "1GiB") -> Iterator[tuple[int, Tensor]]:
        """Yield snapshots as rows ``[n, P]``, each block with the index of its first one.

        Args:
            memory_budget: What a block may take, in bytes or as ``"1GiB"``.
        """
        budget = parse_bytes(memory_budget, "memory_budget")
        waiting: list[Tensor] = []
        first = size = 0
        for start, rows in self._parts():
            num_bytes = rows.numel() * rows.element_size()
            if waiting and size + num_bytes > budget:
                yield first, torch.cat(waiting)
                waiting, first, size = [], start, 0
            waiting.append(rows)
            size += num_bytes
        if waiting:
            yield first, torch.cat(waiting) if len(waiting) > 1 else waiting[0]

    def pca(
        self, num_components: int = 2, *, memory_budget: int | str = "1GiB", progress: bool = False
    ) -> TrajectoryPCA:
        """Return the principal components of the snapshots, beside those of a random walk.

        See :func:`curvops.landscape.trajectory_pca.trajectory_pca`.
        """
        from curvops.landscape.trajectory_pca import trajectory_pca

        return trajectory_pca(self, num_components, memory_budget=memory_budget, progress=progress)

    def __enter__(self) -> Trajectory:
        """Return the trajectory; on leaving the block it is flushed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()

    def __repr__(self) -> str:
        """Describe the trajectory in one line."""
        where = "memory" if self._shards is None else str(self._shards.folder)
        dim = "?" if self._space is None else self._space.dim
        return f"Trajectory(T={len(self)}, P={dim}, every={self.every}, in {where})"

    @property
    def _last(self) -> int:
        return self._all_steps()[-1]

    def _all_steps(self) -> list[int]:
        written = [] if self._shards is None else self._shards.steps
        return [*written, *self._steps]

    def _parts(self) -> Iterator[tuple[int, Tensor]]:
        """Yield what is on disk file by file, and then what is in memory."""
        start = 0
        for shard in self._shards or ():
            yield start, shard.points(self.space.dim)
            start += len(shard.steps)
        if self._rows:
            yield start, torch.stack(self._rows)

    def _read(self, params: Point) -> Tensor:
        if isinstance(params, nn.Module):
            params = trainable(params, "params")
        if self._space is None:
            rows, self._space, _, self._format = read_points([params], ["params"])
            kept = torch.promote_types(rows.dtype, torch.float32)
            self._dtype = self._dtype or kept
            if self._shards is not None:
                self._shards.begin(self._header())
            row = rows[0]
        else:
            device = _device(params)
            columns, fmt = self._space.read(params, torch.float64, device, "params")
            if not fmt.is_vector:
                raise ShapeError(f"params has {columns.shape[1]} columns; expected one point.")
            row = columns[:, 0]
        # A copy: the parameters will change.
        return row.detach().to("cpu", self._dtype, copy=True)

    def _header(self) -> dict[str, Any]:
        assert self._space is not None
        return {
            "every": self.every,
            "dtype": str(self._dtype).removeprefix("torch."),
            "layout": self._format.layout,
            "names": list(self._space.names),
            "shapes": [list(shape) for shape in self._space.shapes],
        }

    def _resume(self, header: dict[str, Any], every: int | None) -> None:
        assert self._shards is not None
        if every is not None and every != header["every"]:
            raise InputError(
                f"every is {every}, but {self._shards.folder} was recorded with "
                f"every={header['every']}. Leave it out, or name another folder."
            )
        dtype = getattr(torch, header["dtype"])
        if self._dtype not in (None, dtype):
            raise InputError(
                f"dtype is {self._dtype}, but {self._shards.folder} was recorded in {dtype}."
            )
        self.every, self._dtype = header["every"], dtype
        shapes = tuple(torch.Size(shape) for shape in header["shapes"])
        self._space = Space(tuple(header["names"]), shapes)
        self._format = Format(header["layout"], True)


def _device(params: Any) -> torch.device:
    """Return where a vector lives."""
    if isinstance(params, Tensor):
        return params.device
    blocks = params.values() if hasattr(params, "values") else params
    for block in blocks:
        if isinstance(block, Tensor):
            return block.device
    return torch.device("cpu")
