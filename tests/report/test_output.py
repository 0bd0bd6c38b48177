"""Files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvops.report.output import OutputError, prepare_file, prepare_folder, write_whole


def test_folders_are_made(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    prepare_file(tmp_path / "c" / "report.json")
    assert (tmp_path / "c").is_dir()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="Cannot write to"):
            prepare_folder(folder)
    with pytest.raises(OutputError, match="it is a folder"):
        prepare_file(tmp_path)


def test_a_failing_write_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_whole(path, "old")

    def full(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_whole(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
