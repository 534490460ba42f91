"""The documentation is executed: every python block of README.md and docs/*.md, in order, one namespace a page."""

from __future__ import annotations

import functools
import re
import runpy
import textwrap
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^[ ]*```python[ ]*\n(.*?)^[ ]*```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def blocks(page: Path) -> list[tuple[int, str]]:
    """The python blocks of a page, each with the line it begins in."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, textwrap.dedent(found[1])) for found in FENCE.finditer(text)]


def execute(page: Path) -> dict[str, Any]:
    """Runs a page and returns its names. A failure names the page and the line."""
    names: dict[str, Any] = {"__name__": page.stem}
    for line, code in blocks(page):
        # Blank lines in front make the line numbers of the code those of the page.
        source = "\n" * (line - 1) + code
        try:
            exec(compile(source, str(page), "exec"), names)
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(page)]
            at = frames[0].lineno if frames else getattr(error, "lineno", line)
            wrong = source.splitlines()[(at or line) - 1].strip()
            raise AssertionError(f"{page.name}:{at}: {wrong}\n{type(error).__name__}: {error}") from error
    return names


@functools.cache
def names_of(page: Path) -> dict[str, Any]:
    """A page runs once, for its own test and for its plots. What it sets of torch's global state is put back."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        return execute(page)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names_of(page)


def test_failure_names_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\n```python\nassert x == 1\nassert x == 2, 'no'\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:9: assert x == 2, 'no'\nAssertionError: no"):
        execute(page)
    page.write_text("1. In a list:\n\n   ```python\n   x = (\n   ```\n")
    with pytest.raises(AssertionError, match=r"page\.md:4: x = \("):
        execute(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name}: no such file: {', '.join(missing)}"


def test_plots_are_drawn_from_the_pages(tmp_path: Path) -> None:
    plots = runpy.run_path(str(ROOT / "docs" / "plots.py"))["PLOTS"]
    shown = {
        Path(link).name
        for page in (ROOT / "docs").glob("*.md")
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if link.endswith(".svg")
    }
    assert shown == set(plots), "docs/plots.py draws other plots than the pages show"
    for name, (page, plot) in plots.items():
        plot(names_of(ROOT / "docs" / page), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
