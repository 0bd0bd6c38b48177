"""Files that are whole or absent, and an early word when they cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from curvops.errors import InputError


class OutputError(InputError):
    """A file or a folder cannot be written."""


def prepare_folder(folder: Path) -> None:
    """Create a folder and make sure that files can be written there.

    Raises:
        OutputError: If not; the message says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise OutputError(f"Cannot write to {folder}: {error.strerror or error}.") from error


def prepare_file(path: Path) -> None:
    """Make sure that a file can be written; create its folder if there is none.

    Raises:
        OutputError: If not; the message says why.
    """
    if path.is_dir():
        raise OutputError(f"Cannot write to {path}: it is a folder.")
    prepare_folder(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never seen half-written, also if the disk fills up.

    Raises:
        OutputError: If it cannot be written; an older file of that name is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
