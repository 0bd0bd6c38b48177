"""The rules of the house that a machine can see."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "curvops"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_public(path: Path) -> bool:
    return not any(p.startswith("_") and p != "__init__.py" for p in path.relative_to(ROOT).parts)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_is_one_idea(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines: it holds two ideas"


@pytest.mark.parametrize("path", [p for p in FILES if is_public(p)], ids=relative)
def test_a_public_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parts[-1] != "cli.py" and "report" not in p.parts], ids=relative
)
def test_imports_name_the_module_they_come_from(path: Path) -> None:
    """``from curvops import X`` would pull in every floor and hide from the import contract."""
    if path == PACKAGE / "__init__.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "curvops", f"{relative(path)}:{node.lineno}"
        elif isinstance(node, ast.Import):
            assert "curvops" not in [a.name for a in node.names], f"{relative(path)}:{node.lineno}"


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_public_names_can_be_imported() -> None:
    curvops = importlib.import_module("curvops")
    assert [name for name in curvops.__all__ if not hasattr(curvops, name)] == []
    assert len(set(curvops.__all__)) == len(curvops.__all__)


def test_public_names_are_grouped_and_sorted() -> None:
    """Comments (or blank lines) within ``__all__`` separate groups; each group is sorted."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    listed = re.search(r"^__all__ = \[\n(.*?)^\]", source, re.MULTILINE | re.DOTALL)
    assert listed, "curvops/__init__.py has no __all__ of one name a line"
    groups: list[list[str]] = [[]]
    for line in listed[1].splitlines():
        name = re.match(r'\s*"(\w+)",', line)
        if name:
            groups[-1].append(name[1])
        else:
            groups.append([])
    assert [g for g in groups if g != sorted(g)] == []


def test_the_changelog_knows_the_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{version[1]}]" in changelog
