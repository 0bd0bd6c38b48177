"""Every python block of the README and the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<url>[^)#\s]+)[^)]*\)|(?:src|href)=\"(?P<attr>[^\"#]+)\"")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str]]:
    """The line number and the code of each block."""
    text = page.read_text(encoding="utf-8")
    return [
        (
            text.count("\n", 0, match.start("code")),
            re.sub(rf"^{match['indent']}", "", match["code"], flags=re.M),
        )
        for match in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=relative)
def test_examples_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The blocks of one page share a namespace and run in order, away from the repository.

    None of them raises, nor prints a number that is none.
    """
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": f"example of {relative(page)}"}
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for line, code in blocks(page):
                # Blank lines in front give tracebacks the line numbers of the page.
                exec(compile("\n" * line + code, str(page), "exec"), namespace)
    finally:
        torch.set_default_dtype(dtype)
    assert re.search(r"\bnan\b", capsys.readouterr().out) is None


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_local_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    urls = [match["url"] or match["attr"] for match in LINK.finditer(text)]
    local = [url for url in urls if not re.match(r"\w+:", url)]
    assert [url for url in local if not (page.parent / url).exists()] == []
