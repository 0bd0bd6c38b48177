"""Values on disk as soon as they are measured: one JSON object a line.

Every line is handed to the operating system at once, so that a run that is killed loses nothing
that was measured. A journal is only ever appended to; each run in it begins with a header.
"""

from __future__ import annotations

import json
import os
import warnings
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from curvops.errors import DataError
from curvops.training.run import Record, Run, plain

FORMAT = 1
_MARK = "curvops_training"
_START = f'{{"{_MARK}": '
"""What a header begins with."""


class JournalWarning(UserWarning):
    """The journal cannot be written; values are still kept in memory."""


class Journal:
    """Appends records to a file.

    Args:
        path: The file; it is created, with its folder, or appended to.
        header: What the run is, written as its first line.

    Raises:
        DataError: If the file holds something else, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = _check(self.path)
            self._file: Any = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - kept open
        except OSError as error:
            raise DataError(f"log={str(path)!r} cannot be written: {error}") from error
        # A monitor that is never closed has nothing left to write, but a file to let go of.
        weakref.finalize(self, self._file.close)
        if torn:  # a run that was killed may have left half a line
            self._write("")
        self._write(json.dumps({_MARK: FORMAT, **plain(header)}, ensure_ascii=False))

    def append(self, records: Iterable[Record]) -> None:
        """Write records, and hand them to the operating system."""
        lines = [
            json.dumps(plain(record.to_dict()), ensure_ascii=False, allow_nan=False)
            for record in records
        ]
        if lines:
            self._write("\n".join(lines))

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(text + "\n")
            self._file.flush()
        except OSError as error:
            # A full disk must not end a training run.
            warnings.warn(
                f"{self.path} cannot be written any more ({error}); values from now on are kept "
                "in memory only. Free some space and start another monitor.",
                JournalWarning,
                stacklevel=2,
            )
            self.close()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # what could not be written has been told already
                return


def read_journal(path: str | os.PathLike[str], run: int = -1) -> Run:
    """Return a run from a journal, whole or cut off by a crash.

    Args:
        path: The file.
        run: Which run of the journal, the last one by default.

    Returns:
        Its header and records. A line that a crash has cut in two is left out.

    Raises:
        DataError: If the file is no journal, or has no such run.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> journal = Journal(Path(folder.name) / "run.jsonl", {"model": "MLP"})
        >>> journal.append([Record(0, "alpha", {"alpha": 0.1})])
        >>> journal.close()
        >>> print(read_journal(journal.path))
        Run: 1 steps; alpha × 1; 0 s
        >>> folder.cleanup()
    """
    runs: list[tuple[dict[str, Any], list[Record]]] = []
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"the journal {str(path)!r} cannot be read: {error}") from error
    for line in text.split("\n"):  # JSON may hold other ends of lines, such as U+2028
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if _MARK in entry:
            runs.append(({k: v for k, v in entry.items() if k != _MARK}, []))
        elif runs and {"step", "quantity", "values"} <= set(entry):
            runs[-1][1].append(_record(entry))
    if not runs:
        raise DataError(f"{str(path)!r} is not a journal of curvops.training.Monitor.")
    if not -len(runs) <= run < len(runs):
        raise DataError(f"run={run}, but {str(path)!r} holds {len(runs)}.")
    header, records = runs[run]
    return Run(header, tuple(records))


def _record(entry: Mapping[str, Any]) -> Record:
    values = entry["values"] if isinstance(entry["values"], dict) else {}
    seconds = entry.get("seconds")
    return Record(
        int(entry["step"]),
        str(entry["quantity"]),
        values,
        float(seconds) if isinstance(seconds, (int, float)) else 0.0,
    )


def _check(path: Path) -> bool:
    """Return whether the file's last line is torn; refuse a file that is no journal."""
    if not path.exists() or not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        lines = file.read(1 << 16).decode("utf-8", errors="replace").split("\n")
        file.seek(-1, os.SEEK_END)
        torn = file.read(1) != b"\n"
    # Runs that were killed at once may have left no more than beginnings of headers.
    first = next((line for line in lines if not _START.startswith(line)), "")
    if first and _MARK not in first:
        raise DataError(f"log={str(path)!r} exists and is no journal; name another file.")
    return torn
